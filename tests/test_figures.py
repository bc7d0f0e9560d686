from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backend_bases import KeyEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from PIL import Image

from neurodetect import figures
from neurodetect.figures import (
    GIF_FRAMES,
    OUTLINE,
    Movie,
    draw_matches,
    draw_regions,
    gif_palette,
    grey_limits,
    outlines,
    require_display,
    round_length,
    save_figure,
)
from neurodetect.files import UserError
from neurodetect.recording import open_recording

regions_of_pixels = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=60, unique=True
).map(np.array)


def pixel_edges(region):
    """Sides of pixels with the neuron on one side only, each a pair of corners: by looking at each pixel."""
    pixels = set(map(tuple, region.tolist()))
    edges = set()
    for row, column in pixels:
        up, down, left, right = row - 0.5, row + 0.5, column - 0.5, column + 0.5
        if (row - 1, column) not in pixels:
            edges.add(((up, left), (up, right)))
        if (row + 1, column) not in pixels:
            edges.add(((down, left), (down, right)))
        if (row, column - 1) not in pixels:
            edges.add(((up, left), (down, left)))
        if (row, column + 1) not in pixels:
            edges.add(((up, right), (down, right)))
    return edges


def ring_edges(rings):
    """The same of closed polygons, with how often each is drawn."""
    edges = []
    for ring in rings:
        for start, end in zip(ring[:-1], ring[1:], strict=True):
            assert (start == end).sum() == 1, "an outline runs along rows and columns"
            length = int(np.abs(end - start).sum())
            points = [tuple(p) for p in np.linspace(start, end, length + 1)]
            edges += [tuple(sorted(pair)) for pair in zip(points[:-1], points[1:], strict=True)]
    return edges


def rendered(figure):
    """The figure as (height, width, 3) ints."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def panel_pixels(figure, axes):
    """What is drawn inside a panel: its first row on top."""
    picture, box = rendered(figure), axes.get_window_extent()
    top, bottom = round(picture.shape[0] - box.y1), round(picture.shape[0] - box.y0)
    return picture[top:bottom, round(box.x0) : round(box.x1)]


def line_collection(axes):
    (lines,) = (artist for artist in axes.collections if isinstance(artist, LineCollection))
    return lines


# Outlines


@given(regions_of_pixels)
def test_outlines_are_the_edges_of_the_pixels(region):
    rings = outlines([region])
    edges = ring_edges(rings)
    assert sorted(edges) == sorted(pixel_edges(region))
    assert all((ring[0] == ring[-1]).all() for ring in rings)


def test_outline_of_two_pixels_has_four_corners():
    (ring,) = outlines([np.array([[3, 7], [3, 8]])])
    assert ring.tolist() == [[2.5, 6.5], [2.5, 8.5], [3.5, 8.5], [3.5, 6.5], [2.5, 6.5]]


def test_a_hole_has_its_own_outline():
    region = np.argwhere(np.pad(np.zeros((1, 2), int), 1, constant_values=1))
    areas = [
        abs(np.sum(r[:-1, 0] * r[1:, 1] - r[1:, 0] * r[:-1, 1])) / 2  # shoelace formula
        for r in outlines([region])
    ]
    assert sorted(areas) == [2, 12]


def test_touching_neurons_keep_their_outlines():
    left, right = np.array([[0, 0], [1, 0]]), np.array([[0, 1], [1, 1]])
    rings = outlines([left, right])
    assert len(rings) == 2
    shared = ((0.5, 0.5), (1.5, 0.5))
    assert ring_edges(rings).count(shared) == 2


def test_no_neurons_have_no_outlines():
    assert outlines([]) == []


# Pictures


@pytest.mark.parametrize("shape", [(40, 40), (30, 47), (20, 90), (90, 20), (1, 700), (1, 1)])
def test_every_pixel_is_drawn_where_it_belongs(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(float)
    image.flat[0] = 0
    figure = draw_regions(image, title="recording")
    panel = panel_pixels(figure, figure.axes[0])
    zoom = panel.shape[0] // shape[0]
    assert panel.shape[:2] == (shape[0] * zoom, shape[1] * zoom)
    blocks = panel[..., 0].reshape(shape[0], zoom, shape[1], zoom)
    assert (blocks == blocks[:, :1, :, :1]).all()
    low, high = grey_limits(image)
    expected = np.clip((image - low) / (high - low), 0, 1) * 255
    assert np.abs(blocks[:, 0, :, 0] - expected).max() < 2.5  # the grey scale has 256 steps


@pytest.mark.parametrize("side, least", [(512, 1.5), (40, 10), (2048, 1)])
def test_pictures_are_sharp_and_no_larger_than_useful(side, least):
    figure = draw_regions(np.eye(side), [np.array([[0, 0]])], title="recording")
    width, height = figure.get_size_inches() * figure.dpi
    box = figure.axes[0].get_window_extent()
    assert round(box.width) / side >= least
    assert box.width == pytest.approx(box.height)
    assert max(width, height) < 6000


@pytest.mark.parametrize("shape", [(10, 3000), (3000, 10)])
def test_elongated_images_keep_their_shape_and_stay_apart(shape):
    figure = draw_matches(np.eye(*shape), [], [], [], title="a recording", pixels_per_micron=1.0)
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert boxes[0].width / boxes[0].height == pytest.approx(shape[1] / shape[0], rel=0.1)
    assert not boxes[0].overlaps(boxes[1])
    assert rendered(figure).shape[0] < 4000


def test_outlines_are_drawn_around_their_pixels_on_an_image_that_is_not_square():
    image = np.zeros((24, 60))
    image[3, 50] = 1.0
    figure = draw_regions(image, [np.array([[3, 50]])], title="recording")
    (path,) = line_collection(figure.axes[1]).get_paths()
    x, y = path.vertices.T
    assert (x.min(), x.max(), y.min(), y.max()) == (49.5, 50.5, 2.5, 3.5)
    panel = panel_pixels(figure, figure.axes[1])
    zoom = panel.shape[0] // 24
    reddest = panel[..., 0] - panel[..., 2] > 100
    rows, columns = np.nonzero(reddest)
    assert abs(rows.mean() / zoom - 3.5) < 0.2 and abs(columns.mean() / zoom - 50.5) < 0.2
    assert (panel[3 * zoom + zoom // 2, 50 * zoom + zoom // 2] == 255).all()


def test_without_labels_there_is_one_panel():
    figure = draw_regions(np.eye(30), title="recording")
    assert len(figure.axes) == 1 and not figure.axes[0].collections


def test_the_title_of_the_panel_counts_the_neurons():
    region = np.array([[2, 3], [2, 4]])
    titles = [
        draw_regions(np.eye(30), [region] * n, title="recording", labels="found").axes[1].get_title()
        for n in range(3)
    ]
    assert titles == ["0 found neurons", "1 found neuron", "2 found neurons"]


def test_the_legend_counts_matches_and_tells_them_apart_by_colour_and_by_line():
    square = np.argwhere(np.ones((4, 4)))
    truth = [square, square + 10, square + 20]
    found = [square + 21, square + 1, square + (0, 25), square + (25, 0), square + (30, 40)]
    pairs = [(0, 1), (2, 0)]
    figure = draw_matches(np.eye(50), truth, found, pairs, title="recording")
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["labelled, matched: 2", "found, matched: 2", "labelled, missed: 1", "found, false: 3"]
    drawn = figure.axes[1].collections
    expected = [
        [truth[0], truth[2]],
        [found[0], found[1]],
        [truth[1]],
        [found[2], found[3], found[4]],
    ]
    for lines, regions in zip(drawn, expected, strict=True):
        paths = [path.vertices[:, ::-1].tolist() for path in lines.get_paths()]
        assert paths == [ring.tolist() for ring in outlines(regions)]
    assert len({to_hex(lines.get_color()[0]) for lines in drawn}) == 4
    dashed = [lines.get_linestyle()[0][1] is not None for lines in drawn]
    assert dashed == [False, True, False, True]


def test_matches_of_nothing_can_be_drawn(tmp_path):
    figure = draw_matches(np.eye(30), [], [], [], title="recording")
    save_figure(tmp_path / "matches.png", figure)
    assert [text.get_text()[-1] for text in figure.legends[0].get_texts()] == ["0"] * 4


@given(st.floats(1e-3, 1e6))
def test_scale_bars_have_round_lengths(largest):
    length = round_length(largest)
    assert largest / 2.51 <= length <= largest
    assert f"{length:e}"[0] in "125" and f"{length:e}"[1:8] == ".000000"


def test_the_scale_bar_is_as_long_as_it_says():
    figure = draw_regions(np.eye(400), title="recording", pixels_per_micron=0.8)
    (bar,) = (artist for artist in figure.axes[0].artists if isinstance(artist, AnchoredSizeBar))
    (rectangle,) = bar.size_bar.get_children()
    assert bar.txt_label.get_text() == "100 µm" and rectangle.get_width() == 80  # pixels
    assert not draw_regions(np.eye(400), title="recording").axes[0].artists


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e30, np.nan])
def test_a_constant_image_can_be_drawn(tmp_path, value):
    save_figure(tmp_path / "flat.png", draw_regions(np.full((20, 20), value), title="flat"))
    low, high = grey_limits(np.full((20, 20), value))
    assert low < high


def test_the_grey_scale_is_that_of_most_pixels():
    values = np.append(np.linspace(0, 100, 100_001), [1e9, -1e9, np.nan, np.inf])
    low, high = grey_limits(values)
    assert low == pytest.approx(1, abs=0.1) and high == pytest.approx(99.7, abs=0.1)


def test_a_few_bright_pixels_on_nothing_are_seen():
    image = np.zeros((100, 100))
    image[4, 5] = 7
    assert grey_limits(image) == (0, 7)


def test_the_same_picture_is_the_same_file(tmp_path):
    image = np.random.default_rng(0).normal(size=(50, 60))
    for name in ("a.png", "b.png"):
        figure = draw_regions(image, [np.array([[2, 3], [2, 4]])], title="name", pixels_per_micron=1.0)
        save_figure(tmp_path / name, figure)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert "Software" not in picture.info and not any("date" in key.lower() for key in picture.info)
        assert (np.asarray(picture)[..., :3] == rendered(figure)).all()


def test_a_name_with_dollars_is_no_formula(tmp_path):
    save_figure(tmp_path / "a.png", draw_regions(np.eye(30), title=r"run $\frac$ 3"))
    assert (tmp_path / "a.png").exists()


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def fill_the_disk(self, filename, *args, **kwargs):
        with open(filename, "wb") as file:
            file.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", fill_the_disk)
    with pytest.raises(UserError, match=r"picture\.png.*No space left"):
        save_figure(path, draw_regions(np.eye(30), title="recording"))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["picture.png"]


def test_drawing_files_does_not_import_pyplot(tmp_path):
    program = (
        "import sys, numpy as np; from neurodetect.figures import draw_regions, save_figure;"
        "save_figure(sys.argv[1], draw_regions(np.eye(30), title='recording'));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program, tmp_path / "a.png"], cwd=ROOT, timeout=100)
    assert result.returncode == 0 and (tmp_path / "a.png").exists()


def test_without_a_display_the_user_learns_what_to_do(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UserError, match="no display.*use --save"):
        require_display("use --save")


# The movie


def write_movie(folder, frames, info=None):
    (folder / "images").mkdir(parents=True)
    for index, frame in enumerate(frames):
        tifffile.imwrite(folder / "images" / f"image{index:05}.tiff", frame)
    if info is not None:
        (folder / "info.json").write_text(json.dumps(info))
    return open_recording(folder)


@pytest.fixture
def recording(tmp_path):
    """Twelve frames of 24 x 60; in frame n, pixel [5, n] is bright."""
    frames = np.full((12, 24, 60), 10, np.uint16)
    frames[np.arange(12), 5, np.arange(12)] = 1000
    return write_movie(tmp_path / "neurofinder.07.00", frames, {"rate-hz": 5})


REGIONS = [np.array([[5, 40], [5, 41], [6, 40]])]


def bright_column(picture, movie, panel=0):
    """Image column of the brightest pixel that a picture shows in image row 5."""
    box = movie.figure.axes[panel].get_window_extent()
    zoom = box.width / 60
    row = round(picture.shape[0] - box.y1 + 5.5 * zoom)
    line = picture[row, round(box.x0) : round(box.x1)].astype(int).sum(axis=-1)
    return int(np.flatnonzero(line == line.max()).mean() / zoom)


def test_a_gif_has_the_frames_in_their_order_and_keeps_the_time(tmp_path, recording):
    movie = Movie(recording, REGIONS)
    assert movie.save(tmp_path / "movie.gif") == 12
    with Image.open(tmp_path / "movie.gif") as gif:
        assert gif.n_frames == 12
        assert gif.size == tuple(np.round(movie.figure.get_size_inches() * movie.figure.dpi))
        assert gif.info["loop"] == 0
        for index in range(12):
            gif.seek(index)
            assert gif.info["duration"] == 200  # ms: 5 frames a second
            picture = np.asarray(gif.convert("RGB"))
            assert bright_column(picture, movie, 0) == index
            assert bright_column(picture, movie, 1) == index


def test_a_gif_looks_like_the_movie(tmp_path, recording):
    movie = Movie(recording, REGIONS)
    movie.save(tmp_path / "movie.gif")
    movie.figure.canvas.draw()
    with Image.open(tmp_path / "movie.gif") as gif:
        for index in (0, 7):
            gif.seek(index)
            movie.show(index)
            shown = np.asarray(movie.figure.canvas.buffer_rgba())[..., :3].astype(int)
            difference = np.abs(np.asarray(gif.convert("RGB")) - shown)
            assert difference.mean() < 1 and difference.max() < 20
            assert (np.asarray(gif.convert("RGB"))[0, 0] == 255).all()


def test_the_palette_has_black_white_and_the_outlines():
    palette = gif_palette()
    assert palette.shape == (256, 3)
    for color in ([0, 0, 0], [255, 255, 255], [int(OUTLINE[i : i + 2], 16) for i in (1, 3, 5)]):
        assert (palette == color).all(axis=1).any()


def test_frames_are_counted_from_1_and_timed_from_0(recording):
    movie = Movie(recording, REGIONS)
    movie.show(3)
    assert movie.figure.axes[0].get_title(loc="left") == "frame 4 of 12, 0.60 s"


def test_the_time_is_left_out_where_the_rate_is_unknown(tmp_path):
    movie = Movie(write_movie(tmp_path / "a", np.zeros((2, 20, 20), np.uint8)))
    assert movie.figure.axes[0].get_title(loc="left") == "frame 1 of 2"
    assert movie.fps == 30 and len(movie.figure.axes) == 1


def test_some_frames_can_be_chosen(tmp_path, recording):
    movie = Movie(recording, frames=(4, 6))
    assert list(movie.shown) == [3, 4, 5]
    assert movie.save(tmp_path / "movie.gif") == 3
    assert list(Movie(recording, frames=(11, 99)).shown) == [10, 11]
    with pytest.raises(UserError, match=r"neurofinder\.07\.00.*frames 1 to 12"):
        Movie(recording, frames=(13, 20))


@pytest.mark.parametrize(
    "speed, fps, shown", [(0.5, 2.5, 12), (1, 5, 12), (10, 50, 12), (11, 27.5, 6), (100, 50, 2)]
)
def test_speed_leaves_out_frames_only_where_it_must(recording, speed, fps, shown):
    movie = Movie(recording, speed=speed)
    assert movie.fps == pytest.approx(fps) and len(movie) == shown


def test_gif_durations_add_up_at_any_rate(tmp_path):
    frames = np.random.default_rng(0).integers(0, 99, (31, 20, 20)).astype(np.uint8)
    movie = Movie(write_movie(tmp_path / "a", frames))  # 30 frames a second are 3.33 hundredths each
    movie.save(tmp_path / "movie.gif")
    total = 0
    with Image.open(tmp_path / "movie.gif") as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            total += gif.info["duration"]
    assert total == 1030


def test_a_gif_of_a_long_recording_has_its_beginning(tmp_path, monkeypatch, recording):
    assert GIF_FRAMES == 100
    monkeypatch.setattr(figures, "GIF_FRAMES", 5)
    assert Movie(recording).save(tmp_path / "movie.gif") == 5
    assert Movie(recording, frames=(1, 8)).save(tmp_path / "movie.gif") == 8


def test_one_grey_scale_for_the_whole_movie(tmp_path):
    frames = np.stack([np.full((20, 20), level, np.uint16) for level in range(0, 1000, 10)])
    movie = Movie(write_movie(tmp_path / "a", frames))
    limits = [image.get_clim() for image in movie.figure.axes[0].images]
    movie.show(50)
    movie.show(99)
    assert [image.get_clim() for image in movie.figure.axes[0].images] == limits
    assert limits[0][0] < 20 and limits[0][1] > 970


def test_one_frame_is_a_movie_too(tmp_path):
    movie = Movie(write_movie(tmp_path / "a", np.eye(20, dtype=np.uint16)[None]), REGIONS[:0])
    assert movie.save(tmp_path / "movie.gif") == 1
    with Image.open(tmp_path / "movie.gif") as gif:
        assert gif.n_frames == 1


def test_frames_are_read_when_they_are_drawn(tmp_path, recording, monkeypatch):
    movie = Movie(recording)
    read = []
    frame = recording.frame
    monkeypatch.setattr(recording, "frame", lambda index: read.append(index) or frame(index))
    movie.show(7)
    movie.show(2)
    assert read == [7, 2]


def test_space_pauses_and_arrows_step(recording, monkeypatch):
    movie = Movie(recording)  # 5 frames a second

    def press(key):
        canvas = movie.figure.canvas
        canvas.callbacks.process("key_press_event", KeyEvent("key_press_event", canvas, key))

    clock = [0.0]
    monkeypatch.setattr(figures.time, "perf_counter", lambda: clock[0])

    def wait(seconds):
        clock[0] += seconds
        movie._on_timer()
        return movie.position

    assert [wait(0.1), wait(0.11), wait(0.2)] == [0, 1, 2]
    assert wait(0.6) == 5  # where drawing is slow, pictures are left out
    press(" ")
    assert wait(10) == 5
    press("right")
    assert movie.position == 6
    press("left")
    press("left")
    assert movie.position == 4
    press(" ")
    assert wait(0.21) == 5
    assert wait(0.2 * 8) == 1  # over and over
    press("left")
    press("left")
    assert movie.position == 11 and movie.paused


def test_only_what_moves_is_drawn_anew(recording, monkeypatch):
    movie = Movie(recording, REGIONS)
    movie.figure.canvas.draw()
    draws = []
    monkeypatch.setattr(type(movie.figure), "draw", lambda *_: draws.append(1))
    before = np.asarray(movie.figure.canvas.buffer_rgba()).copy()
    movie.show(9)
    after = np.asarray(movie.figure.canvas.buffer_rgba())
    assert not draws
    assert bright_column(before, movie) == 0 and bright_column(after, movie) == 9


def test_a_movie_that_fails_leaves_the_old_one(tmp_path, recording):
    path = tmp_path / "movie.gif"
    path.write_bytes(b"old")
    movie = Movie(recording)
    (tmp_path / "neurofinder.07.00" / "images" / "image00005.tiff").write_bytes(b"II*\0")
    with pytest.raises(UserError, match="image00005"):
        movie.save(path)
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["movie.gif", "neurofinder.07.00"]


def test_other_suffixes_are_refused(tmp_path, recording):
    with pytest.raises(UserError, match=r"movie\.avi.*\.gif or \.mp4"):
        Movie(recording).save(tmp_path / "movie.avi")


def test_without_ffmpeg_a_video_is_refused(tmp_path, recording, monkeypatch):
    monkeypatch.setattr("matplotlib.animation.FFMpegWriter.isAvailable", lambda: False)
    with pytest.raises(UserError, match="ffmpeg.*gif"):
        Movie(recording).save(tmp_path / "movie.mp4")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_a_video_is_written(tmp_path, recording):
    assert Movie(recording, REGIONS).save(tmp_path / "movie.mp4") == 12
    assert (tmp_path / "movie.mp4").read_bytes()[4:8] == b"ftyp"
    assert sorted(os.listdir(tmp_path)) == ["movie.mp4", "neurofinder.07.00"]
