from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from PIL import Image

from neurodetect.files import UserError
from neurodetect.regions import outlines
from neurodetect.view.figures import (
    draw_curve,
    draw_matches,
    draw_regions,
    draw_scores,
    draw_training,
    grey_limits,
    require_display,
    round_length,
    save_figure,
)

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


def histories(folds, held_out=True):
    """What `train` returned for so many folds, with numbers that tell them apart."""
    return [
        {
            "held_out": [f"recording {fold}"],
            "history": [
                {"iteration": i, "loss": fold + 1 / i}
                | ({"held_out_error": 0.1 * fold + 1 / i} if held_out else {})
                for i in (100, 200, 250)
            ],
        }
        for fold in range(folds)
    ]


def test_training_is_a_line_for_each_fold():
    figure = draw_training(histories(3))
    for axes, key in zip(figure.axes, ("loss", "held_out_error"), strict=True):
        for line, fold in zip(axes.lines, histories(3), strict=True):
            assert line.get_xdata().tolist() == [100, 200, 250]
            assert line.get_ydata().tolist() == [entry[key] for entry in fold["history"]]
        assert len({to_hex(line.get_color()) for line in axes.lines}) == 3
        assert axes.get_ylim()[0] == 0
    (legend,) = (axes.get_legend() for axes in figure.axes if axes.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == ["fold 1", "fold 2", "fold 3"]
    assert not any(axes.get_legend() for axes in draw_training(histories(12)).axes)


def test_training_without_held_out_windows_is_one_panel():
    (axes,) = draw_training(histories(2, held_out=False)).axes
    assert len(axes.lines) == 2


def test_one_look_at_the_training_is_seen():
    before = draw_training([{"held_out": [], "history": []}])
    after = draw_training([{"held_out": [], "history": [{"iteration": 5, "loss": 0.7}]}])
    for axes in before.axes:
        axes.set_xlim(after.axes[0].get_xlim())
        axes.set_ylim(after.axes[0].get_ylim())
    assert (rendered(before) != rendered(after)).any()


@pytest.mark.parametrize("names", [["a"], ["mouse 1", "mouse 2"], ["W" * 60, "$x$"], [r"a$\frac$"] * 100])
def test_scores_are_dots_beside_their_names_and_all_of_it_fits(names):
    rng = np.random.default_rng(0)
    keys = ("recall", "precision", "combined", "f1_iou50")
    rows = [dict(zip(keys, rng.random(4), strict=True)) for _ in names]
    figure = draw_scores(rows, names)
    picture = rendered(figure)
    for axes, key in zip(figure.axes, keys, strict=True):
        (dots,) = (line for line in axes.lines if line.get_marker() == "o")
        (mean,) = (line for line in axes.lines if line.get_marker() != "o")
        assert dots.get_xdata().tolist() == [row[key] for row in rows]
        assert set(mean.get_xdata()) == {np.mean([row[key] for row in rows])}
        assert f"{mean.get_xdata()[0]:.2f}" in axes.get_title()
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == names
    boxes = [label.get_window_extent() for label in labels]
    for label, box, y in zip(labels, boxes, dots.get_ydata(), strict=True):
        centre = figure.axes[0].transData.transform((0, y))[1]
        assert box.y0 < centre < box.y1 and box.x0 >= 0, label
    assert all(above.y0 > below.y1 for above, below in zip(boxes[:-1], boxes[1:], strict=True))
    titles = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(left.x1 < right.x0 for left, right in zip(titles[:-1], titles[1:], strict=True))
    border = np.concatenate([picture[[0, -1]].reshape(-1, 3), picture[:, [0, -1]].reshape(-1, 3)])
    assert (border == 255).all()  # nothing is cut off


def test_the_curve_shows_every_threshold_and_marks_those_in_use():
    keys = ("probability", "recall", "precision", "combined", "f1_iou50")
    values = np.random.default_rng(0).random((17, 5))
    values[:, 0] = np.linspace(0.1, 0.9, 17)
    curve = [dict(zip(keys, row, strict=True)) for row in values.tolist()]
    figure = draw_curve(curve, {0.35, 0.45})
    trade, scores = figure.axes
    (line,) = trade.lines
    assert np.array_equal(line.get_xydata(), values[:, [1, 2]])
    assert [text.get_text() for text in trade.texts] == ["0.1", "0.3", "0.5", "0.7", "0.9"]
    *lines, one, another = scores.lines
    for line, column in zip(lines, values.T[1:], strict=True):
        assert np.array_equal(line.get_xydata(), np.column_stack([values[:, 0], column]))
    assert {*one.get_xdata()} | {*another.get_xdata()} == {0.35, 0.45}
    labels = [text.get_text() for text in scores.get_legend().get_texts()]
    assert labels.count("used here") == 1 and len(labels) == len(lines) + 1


def test_perfect_scores_are_whole_dots():
    row = dict.fromkeys(("recall", "precision", "combined", "f1_iou50"), 1.0)
    figure = draw_scores([row], ["mouse"])
    box = figure.axes[0].bbox
    picture = rendered(figure)
    beyond = picture[:, round(box.x1) + 2 : round(box.x1) + 12]
    assert (beyond[..., 2] - beyond[..., 0] > 100).any()


def test_a_name_with_dollars_is_no_formula(tmp_path):
    save_figure(tmp_path / "a.png", draw_regions(np.eye(30), title=r"run $\frac$ 3"))
    assert (tmp_path / "a.png").exists()


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def fill_the_disk(self, content):
        with open(self, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", fill_the_disk)
    with pytest.raises(UserError, match=r"picture\.png.*No space left"):
        save_figure(path, draw_regions(np.eye(30), title="recording"))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["picture.png"]


def test_drawing_files_does_not_import_pyplot(tmp_path):
    program = (
        "import sys, numpy as np; from neurodetect.view.figures import draw_regions, save_figure;"
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
