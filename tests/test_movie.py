from __future__ import annotations

import json
import os
import shutil
import subprocess
import weakref

import numpy as np
import pytest
import tifffile
from matplotlib import cm
from matplotlib.backend_bases import KeyEvent, MouseEvent
from matplotlib.colors import Normalize
from PIL import Image

from neurodetect.files import UserError
from neurodetect.recording import open_recording
from neurodetect.view import movie as player
from neurodetect.view.figures import OUTLINE
from neurodetect.view.movie import (
    BRIGHTER,
    GIF_FRAMES,
    Movie,
    gif_palette,
    grey_picture,
    movie_limits,
    pixels_of,
    save_gif,
)


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
    assert movie.rate == 30 and len(movie.figure.axes) == 1


def test_some_frames_can_be_chosen(tmp_path, recording):
    movie = Movie(recording, frames=(4, 6))
    assert list(movie.shown) == [3, 4, 5]
    assert movie.save(tmp_path / "movie.gif") == 3
    assert list(Movie(recording, frames=(11, 99)).shown) == [10, 11]
    with pytest.raises(UserError, match=r"neurofinder\.07\.00.*frames 1 to 12"):
        Movie(recording, frames=(13, 20))


@pytest.mark.parametrize(
    "speed, frames, duration",
    [(0.5, range(12), 4800), (1, range(12), 2400), (10, range(12), 240), (11, range(0, 12, 2), 220)],
)
def test_a_file_leaves_out_frames_only_where_it_must(tmp_path, recording, speed, frames, duration):
    movie = Movie(recording, speed=speed)  # of 5 frames a second
    assert movie.save(tmp_path / "movie.gif") == len(frames)
    columns, total = [], 0
    with Image.open(tmp_path / "movie.gif") as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            columns.append(bright_column(np.asarray(gif.convert("RGB")), movie))
            total += gif.info["duration"]
    assert columns == list(frames) and total == duration


def test_pictures_of_a_gif_are_not_kept(tmp_path, monkeypatch):
    images, alive = [], []
    fromarray = Image.fromarray

    def watched(array):
        alive.append(sum(image() is not None for image in images))
        image = fromarray(array)
        images.append(weakref.ref(image))
        return image

    monkeypatch.setattr(Image, "fromarray", watched)
    pictures = (np.full((4, 6, 3), 5 * number, np.uint8) for number in range(50))
    save_gif(tmp_path / "a.gif", pictures, (6, 4), 10)
    assert len(images) == 50 and max(alive) <= 1
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 50 and gif.size == (6, 4)


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
    monkeypatch.setattr(player, "GIF_FRAMES", 5)
    assert Movie(recording).save(tmp_path / "movie.gif") == 5
    assert Movie(recording, frames=(1, 8)).save(tmp_path / "movie.gif") == 8


def test_one_grey_scale_for_the_whole_movie(tmp_path):
    frames = np.stack([np.full((20, 20), level, np.uint16) for level in range(0, 1000, 10)])
    recording = write_movie(tmp_path / "a", frames)
    low, high = movie_limits(recording)
    assert low < 20 and high > 970
    movie = Movie(recording)
    movie.figure.canvas.draw()
    for index in (0, 50, 99):
        movie.show(index)
        level = np.clip((10 * index - low) / (high - low), 0, 1) * 255
        assert np.abs(pixels_of(movie.figure.axes[0])[..., :3] - level).max() < 2


def test_grey_pictures_are_those_of_a_colour_map():
    frame = np.random.default_rng(0).normal(100, 60, (30, 40))
    expected = cm.gray(Normalize(20, 170, clip=True)(frame), bytes=True)
    assert np.abs(grey_picture(frame, 20, 170).astype(int) - expected).max() <= 1  # float32 and float64
    assert (grey_picture(np.arange(256)[None], 0, 256)[0, :, 0] == np.arange(256)).all()
    extremes = np.array([[0, 2**16 - 1]], np.uint16)
    assert grey_picture(extremes, 0, 2**16 - 1)[0].tolist() == [[0, 0, 0, 255], [255, 255, 255, 255]]


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


# In a window


@pytest.fixture
def clock(monkeypatch):
    """What the movie takes for the time: `clock[0]`, seconds."""
    now = [0.0]
    monkeypatch.setattr(player.time, "perf_counter", lambda: now[0])
    return now


def with_controls(*arguments, **options):
    """A movie as in a window, but on a canvas without one."""
    movie = Movie(*arguments, **options)
    movie.add_controls()
    movie.figure.canvas.draw()
    return movie


def press(movie, *keys):
    canvas = movie.figure.canvas
    for key in keys:
        canvas.callbacks.process("key_press_event", KeyEvent("key_press_event", canvas, key))


def mouse(movie, what, position, up=0.0, button=1):
    """A mouse event on the slider at a frame, or so many of its heights above it."""
    canvas, slider = movie.figure.canvas, movie.figure.axes[-1]
    x = slider.transData.transform((position, 0))[0]
    y = slider.bbox.y0 + (0.5 + up) * slider.bbox.height
    canvas.callbacks.process(what, MouseEvent(what, canvas, x, y, button))


def shown(movie):
    """What is on the screen: (height, width, 3) ints."""
    return np.asarray(movie.figure.canvas.buffer_rgba())[..., :3].astype(int)


def said(movie):
    """The line below the slider."""
    return movie.figure.texts[-1].get_text()


def test_space_pauses_and_arrows_step(recording, clock):
    movie = with_controls(recording)  # 5 frames a second

    def wait(seconds):
        clock[0] += seconds
        movie._on_timer()
        return movie.position

    assert [wait(0.1), wait(0.11), wait(0.2)] == [0, 1, 2]
    assert wait(0.6) == 5  # where drawing is slow, frames are left out
    press(movie, " ")
    assert wait(10) == 5
    press(movie, "right")
    assert movie.position == 6
    press(movie, "left", "left")
    assert movie.position == 4
    press(movie, " ")
    assert wait(0.21) == 5
    assert wait(0.2 * 8) == 1  # over and over
    press(movie, "left", "left")
    assert movie.position == 11 and movie.paused


def test_keys_change_the_speed(recording, clock):
    movie = with_controls(recording, speed=1.5)
    assert "speed 1.5x" in said(movie)
    press(movie, "+", "=")
    assert movie.rate == 30 and "speed 6x" in said(movie)
    clock[0] = 0.11
    movie._on_timer()
    assert movie.position == 3
    press(movie, "-", "-", "-")
    assert movie.rate == 3.75 and "speed 0.75x" in said(movie)
    press(movie, *"-" * 9)
    assert 0.01 <= movie.speed < 0.02
    press(movie, *"+" * 19)
    assert 500 < movie.speed <= 1000


def test_keys_change_the_brightness(tmp_path, monkeypatch):
    frame = np.arange(400, dtype=np.uint16).reshape(20, 20)
    recording = write_movie(tmp_path / "a", np.stack([frame, frame]))
    movie = with_controls(recording)
    low, high = movie_limits(recording)
    monkeypatch.setattr(recording, "frame", lambda _: pytest.fail("the frame is there already"))
    for key, presses in (("up", 2), ("down", -1), ("up", 0)):
        press(movie, *[key] * abs(presses - movie.brightness))
        expected = np.clip((frame - low) / (high - low) * 255 * BRIGHTER**presses, 0, 255)
        pixels = pixels_of(movie.figure.axes[0])
        zoom = pixels.shape[0] // 20
        assert np.abs(pixels[::zoom, ::zoom, 0] - expected).max() < 2
        assert f"brightness {BRIGHTER**presses:.2g}x" in said(movie)
    press(movie, *["up"] * 25)
    assert (pixels_of(movie.figure.axes[0])[zoom:, :, 0] == 255).all()
    press(movie, *["down"] * 45)
    assert pixels_of(movie.figure.axes[0])[..., 0].max() < 5


@pytest.mark.parametrize("regions", [None, REGIONS])
def test_the_slider_is_clicked_and_dragged(recording, clock, regions):
    movie = with_controls(recording, regions)
    mouse(movie, "motion_notify_event", 4)
    assert movie.position == 0  # the mouse only passes
    mouse(movie, "button_press_event", 7)
    assert movie.position == 7 and bright_column(shown(movie), movie) == 7
    clock[0] = 5
    movie._on_timer()
    assert movie.position == 7  # held
    for place, position in ((2.4, 2), (2.6, 3), (-9, 0), (99, 11), (5, 5)):
        mouse(movie, "motion_notify_event", place, up=3)
        assert movie.position == position
        assert all(
            bright_column(shown(movie), movie, panel) == position for panel in range(len(movie._panels))
        )
    mouse(movie, "button_release_event", 5)
    mouse(movie, "motion_notify_event", 9)
    assert movie.position == 5
    clock[0] = 5.21
    movie._on_timer()
    assert movie.position == 6 and not movie.paused


def test_only_the_slider_seeks_and_only_by_the_left_button(recording):
    movie = with_controls(recording)
    movie.show(4)
    mouse(movie, "button_press_event", 7, button=3)
    assert movie.position == 4
    for up in (2, 9, -1.2):
        mouse(movie, "button_press_event", 7, up=up)
        assert movie.position == 4 and not movie._dragging


def test_the_handle_is_where_the_movie_is(recording):
    movie = with_controls(recording)
    slider = movie.figure.axes[-1]
    for position in (0, 4, 11):
        movie.show(position)
        dark = np.flatnonzero((pixels_of(slider)[..., 0] < 90).any(axis=0)) + round(slider.bbox.x0)
        assert dark.mean() == pytest.approx(slider.transData.transform((position, 0))[0], abs=1)
        assert len(dark) < 25  # the one before is gone


@pytest.mark.parametrize("shape", [(512, 512), (24, 60), (60, 24), (20, 400), (400, 20), (1, 1), (30, 3000)])
@pytest.mark.parametrize("regions", [None, []])
def test_the_controls_have_their_place_below_images_of_any_shape(tmp_path, shape, regions):
    recording = write_movie(tmp_path / "a", np.zeros((2, *shape), np.uint8), {"pixels-per-micron": 1.0})
    bare = Movie(recording, regions).figure
    movie = with_controls(recording, regions)
    figure = movie.figure
    *panels, slider = figure.axes
    renderer = figure.canvas.get_renderer()
    line = figure.texts[-1].get_window_extent(renderer)
    (bar,) = (artist for panel in panels for artist in panel.artists)
    strip = figure.bbox.height - bare.bbox.height
    assert strip == pytest.approx(round(strip), abs=0.01)  # the panels stay on whole pixels
    for panel, alone in zip(panels, bare.axes, strict=True):
        assert panel.bbox.extents - (0, strip, 0, strip) == pytest.approx(alone.bbox.extents, abs=0.01)
    assert 0 <= line.y0 and line.y1 <= slider.bbox.y0
    assert slider.bbox.y1 < bar.get_window_extent(renderer).y0
    assert all(slider.bbox.y1 < panel.bbox.y0 for panel in panels)
    title = figure.texts[0].get_window_extent(renderer)
    assert title.y1 - strip == pytest.approx(bare.texts[0].get_window_extent().y1, abs=1)
    for box in (line, slider.bbox):
        assert 0 <= box.x0 and box.x1 <= figure.bbox.x1
    assert figure.texts[-1].get_fontsize() > 6


def test_one_frame_has_a_slider_too(tmp_path):
    movie = with_controls(write_movie(tmp_path / "a", np.eye(20, dtype=np.uint16)[None]))
    mouse(movie, "button_press_event", 1)
    assert movie.position == 0


def test_what_is_blitted_is_what_a_whole_drawing_shows(tmp_path, recording):
    movie = with_controls(recording, REGIONS)
    for zoomed in (False, True):
        if zoomed:  # as the toolbar does it
            movie.figure.axes[0].set_xlim(4.5, 34.5)
            movie.figure.axes[0].set_ylim(12.5, 0.5)
            movie.figure.canvas.draw()
        movie.show(9)
        blitted = shown(movie)
        movie.figure.savefig(tmp_path / "whole.png", dpi="figure")
        with Image.open(tmp_path / "whole.png") as whole:
            assert np.abs(np.asarray(whole.convert("RGB")) - blitted).max() <= 1


def test_another_window_size_is_drawn_anew(recording):
    movie = with_controls(recording, REGIONS)
    for width, height in ((7.0, 5.0), (5.03, 3.07), (12.1, 4.4)):
        movie.figure.set_size_inches(width, height)
        movie.figure.canvas.draw()
        movie.show(6)
        for panel in movie.figure.axes[:2]:
            pixels = pixels_of(panel)[..., :3].astype(int)
            rows, columns = np.nonzero((pixels.sum(axis=-1) > 600) & (np.ptp(pixels, axis=-1) < 20))
            zoom = panel.bbox.width / 60
            assert (columns.mean() + 0.5) / zoom == pytest.approx(6.5, abs=0.3)
            assert (rows.mean() + 0.5) / zoom == pytest.approx(5.5, abs=0.3)


def test_the_value_under_the_mouse(recording):
    movie = Movie(recording)
    movie.show(3)
    assert movie.figure.axes[0].format_coord(3.2, 4.9) == "row 5, column 3: 1000"
    assert movie.figure.axes[0].format_coord(-1.0, 4.9) == "row 5, column -1"


def test_an_unreadable_frame_ends_the_movie(tmp_path, recording, clock):
    movie = with_controls(recording)
    (tmp_path / "neurofinder.07.00" / "images" / "image00005.tiff").write_bytes(b"II*\0")
    mouse(movie, "button_press_event", 5)
    assert isinstance(movie._error, UserError) and "image00005" in str(movie._error)


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
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="ffmpeg.*gif"):
        Movie(recording).save(tmp_path / "movie.mp4")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_a_video_has_the_frames_in_their_order(tmp_path, recording):
    movie = Movie(recording, REGIONS)
    assert movie.save(tmp_path / "movie.mp4") == 12
    command = f"ffmpeg -loglevel error -i {tmp_path / 'movie.mp4'} -f rawvideo -pix_fmt rgb24 pipe:"
    pixels = np.frombuffer(subprocess.run(command.split(), capture_output=True, check=True).stdout, np.uint8)
    width, height = movie.figure.canvas.get_width_height()
    pictures = pixels.reshape(12, height, width, 3)
    for panel in (0, 1):
        assert [bright_column(picture, movie, panel) for picture in pictures] == list(range(12))
    assert sorted(os.listdir(tmp_path)) == ["movie.mp4", "neurofinder.07.00"]
