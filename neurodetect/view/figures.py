"""Everything that draws: mean images with outlines of neurons, matches, training curves and scores.

Files are drawn without any window toolkit; only what opens a window imports pyplot.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from neurodetect.files import UserError, write_together
from neurodetect.regions import outlines
from neurodetect.signals import signals_held

if TYPE_CHECKING:
    from neurodetect.detection import Found
    from neurodetect.prepared import Prepared

PANEL_INCHES = 5.5  #: longer side of a panel; text is sized for a panel as large as this
NARROWEST_INCHES = 2.8  #: room for the text of a panel, however narrow its image
# Whole pixels go through inches and fractions, and matplotlib cuts off what is left: a figure a little too
# small would lose its last pixel, an image a little too large would be stretched over another one.
TOLERANCE = 1e-5  #: pixels, more than rounding errors and less than anyone sees
PICTURE_PIXELS = (1000, 2500)  #: longer side of a picture's panel: about, at most
GREY_PERCENTILES = (1.0, 99.7)  #: drawn black and white; what is beyond are a few hot or dead pixels
CHART_DPI = 150
LABELS_APART = 0.06  #: of recall or precision, between two labelled dots of the chart of thresholds
SCREEN_DPI = 100

# Colours of Okabe and Ito (2008), told apart with every kind of colour vision, on grey too.
OUTLINE = "#E69F00"
LINE_WIDTH = 0.8
SOLID, DASHED = "solid", (0, (2.2, 1.4))
MATCHED_TRUE = {"colors": "#56B4E9", "linestyles": [SOLID]}
MATCHED_FOUND = {"colors": "#F0E442", "linestyles": [DASHED]}
MISSED_TRUE = {"colors": "#CC79A7", "linestyles": [SOLID]}
FALSE_FOUND = {"colors": "#D55E00", "linestyles": [DASHED], "linewidths": [1.2]}  # the darkest of them

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # on white

# The measures that charts show, and their names there.
CHARTED = {key: key for key in ("recall", "precision", "combined")} | {"f1_iou50": "F1 at IoU 0.5"}


# Pictures


@signals_held()
def draw_regions(
    image: np.ndarray,
    regions: Sequence[np.ndarray] | None = None,
    *,
    title: str,
    labels: str = "labelled",
    pixels_per_micron: float | None = None,
) -> Figure:
    """The mean image and, beside it, the same with the outlines of the neurons.

    Parameters
    ----------
    image : (H, W) array
    regions : sequence of (n, 2) int arrays, optional
        Neurons as `[row, column]` pixels; without them there is one panel.
    title : str
        Above the picture.
    labels : str
        What the neurons are: labelled, found.
    pixels_per_micron : float, optional
        For the scale bar.

    Returns
    -------
    matplotlib.figure.Figure
    """
    count = 1 if regions is None else 2
    figure, axes = make_panels(image.shape, count, title, PICTURE_PIXELS, pixels_per_micron)
    for panel in axes:
        draw_image(panel, image)
    axes[0].set_title("mean image")
    if regions is not None:
        draw_outlines(axes[1], regions, colors=OUTLINE)
        axes[1].set_title(neurons_in_words(len(regions), labels))
    return figure


def draw_found(
    recording: Prepared, found: Found, pairs: Sequence[tuple[int, int]] = (), note: str = ""
) -> Figure:
    """What was found in a recording: with labels as `draw_matches` shows it, else as `draw_regions` does.

    Parameters
    ----------
    recording : Prepared
    found : Found
    pairs : sequence of (int, int)
        What `detection.assess` returned.
    note : str
        What the reader has to know of this recording, e.g. that it was trained on.

    Returns
    -------
    matplotlib.figure.Figure
    """
    name, image, _, truth, scale, *_ = recording
    title = f"{name}, {note}" if note else name
    if truth is None:
        return draw_regions(image, found.regions, title=title, labels="found", pixels_per_micron=scale)
    return draw_matches(image, truth, found.regions, pairs, title=title, pixels_per_micron=scale)


@signals_held()
def draw_matches(
    image: np.ndarray,
    truth: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    *,
    title: str,
    pixels_per_micron: float | None = None,
) -> Figure:
    """The mean image and, beside it, which labelled neurons were found and which found ones are labelled.

    Parameters
    ----------
    image : (H, W) array
    truth, found : sequence of (n, 2) int arrays
        Neurons as `[row, column]` pixels. Labelled ones have solid outlines, found ones dashed.
    pairs : sequence of (int, int)
        Index in `truth`, index in `found`: what `scoring.match_centers` returned.
    title : str
        Above the picture.
    pixels_per_micron : float, optional
        For the scale bar.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = make_panels(image.shape, 2, title, PICTURE_PIXELS, pixels_per_micron)
    for panel in axes:
        draw_image(panel, image)
    matched_true, matched_found = {t for t, _ in pairs}, {f for _, f in pairs}
    kinds = {
        "labelled, matched": ([truth[t] for t in sorted(matched_true)], MATCHED_TRUE),
        "found, matched": ([found[f] for f in sorted(matched_found)], MATCHED_FOUND),
        "labelled, missed": ([r for t, r in enumerate(truth) if t not in matched_true], MISSED_TRUE),
        "found, false": ([r for f, r in enumerate(found) if f not in matched_found], FALSE_FOUND),
    }
    lines = [
        draw_outlines(axes[1], regions, label=f"{kind}: {len(regions)}", **style)
        for kind, (regions, style) in kinds.items()
    ]
    axes[0].set_title("mean image")
    axes[1].set_title(f"{len(truth)} labelled neurons, {len(found)} found")
    figure.legend(
        handles=lines,
        loc="lower right",
        bbox_to_anchor=(0.99, 0.0),
        ncols=2,
        fontsize=8,
        facecolor="#404040",  # dark as the image, on which the colours have to be seen
        framealpha=1,
        labelcolor="white",
    )
    return figure


@signals_held()
def draw_training(folds: Sequence[dict[str, list]]) -> Figure:
    """The loss and the error on held-out windows while networks were trained, a line for each network.

    Parameters
    ----------
    folds : sequence of dict
        Each with the names that were "held_out" and the "history" that `training.train` returned.

    Returns
    -------
    matplotlib.figure.Figure
    """
    curves = {"loss": "loss on training windows", "held_out_error": "wrong pixels in held-out windows"}
    if not any("held_out_error" in entry for fold in folds for entry in fold["history"]):
        del curves["held_out_error"]  # recordings all or nothing of which is neuron have none
    figure = Figure(figsize=(4.5 * len(curves), 3.6), dpi=CHART_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (key, title) in zip(panels, curves.items(), strict=True):
        for number, fold in enumerate(folds):
            entries = [entry for entry in fold["history"] if key in entry]
            panel.plot(
                [entry["iteration"] for entry in entries],
                [entry[key] for entry in entries],
                color=LINES[number % len(LINES)],
                linewidth=1.2,
                marker="." if len(entries) == 1 else None,
                label=f"fold {number + 1}",
            )
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("iteration")
        panel.set_ylim(bottom=0)
        plain(panel)
        if key == "held_out_error":
            panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    if 1 < len(folds) <= len(LINES):  # of more nobody could tell the colours
        panels[-1].legend(frameon=False, fontsize=8)
    return figure


@signals_held()
def draw_scores(rows: Sequence[dict[str, float]], names: Sequence[str]) -> Figure:
    """The scores of each recording as dots on lines from 0 to 1, and their mean as a vertical line.

    Parameters
    ----------
    rows : sequence of dict
        What `scoring.evaluate` returned.
    names : sequence of str
        The recordings.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(dpi=CHART_DPI)
    measure = FigureCanvasAgg(figure).get_renderer().get_text_width_height_descent
    longest = max(measure(name, FontProperties(size=8), False)[0] for name in names)
    # Sizes in inches: a panel is equally wide beside short and long names, a row equally high.
    left, panel_width, gap = 0.25 + longest / CHART_DPI, 1.7, 0.25
    head, foot, body = 0.5, 0.4, 0.2 * len(rows)
    width, height = left + len(CHARTED) * (panel_width + gap), head + body + foot
    figure.set_size_inches(width, height)
    for number, (key, title) in enumerate(CHARTED.items()):
        x = left + number * (panel_width + gap)
        panel = figure.add_axes((x / width, foot / height, panel_width / width, body / height))
        draw_dots(panel, [row[key] for row in rows], title)
        panel.set_yticks(range(len(rows)), names if number == 0 else [""] * len(rows), parse_math=False)
    return figure


def draw_dots(panel: Axes, values: Sequence[float], title: str) -> None:
    """Draw values from 0 to 1 as dots, each on a line of its own, the first on top, and their mean."""
    lines = np.arange(len(values))
    mean = float(np.mean(values))
    panel.axvline(mean, color=LINES[1], linewidth=1)
    panel.hlines(lines, 0, 1, color="0.85", linewidth=0.8, zorder=0)
    panel.plot(values, lines, "o", color=LINES[0], markersize=4.5, clip_on=False)
    panel.set_title(f"{title}\nmean {mean:.2f}", fontsize=9)
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.set_ylim(len(values) - 0.5, -0.5)
    plain(panel)
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)


@signals_held()
def draw_curve(curve: Sequence[dict[str, float]], used: Collection[float]) -> Figure:
    """Recall against precision, and the scores, over the threshold of the probability.

    Parameters
    ----------
    curve : sequence of dict
        What `scoring.mean_curve` returned.
    used : collection of float
        The thresholds that were used; marked.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(8.4, 3.6), dpi=CHART_DPI, layout="constrained")
    trade, scores = figure.subplots(1, 2)
    values = {key: [row[key] for row in curve] for key in curve[0]}
    trade.plot(values["recall"], values["precision"], "o-", color=LINES[0], markersize=3.5, linewidth=1)
    labelled = (np.inf, np.inf)
    for row in curve[::4]:
        dot = row["recall"], row["precision"]
        if math.dist(dot, labelled) > LABELS_APART:
            trade.annotate(
                f"{row['probability']:g}", dot, xytext=(5, 4), textcoords="offset points", fontsize=8
            )
            labelled = dot
    trade.set_xlabel("recall")
    trade.set_ylabel("precision")
    trade.set_title("each dot a threshold", fontsize=9)
    for (key, name), color in zip(CHARTED.items(), LINES, strict=False):
        scores.plot(values["probability"], values[key], color=color, linewidth=1.2, label=name)
    for number, threshold in enumerate(used):
        label = None if number else "used here"
        scores.axvline(threshold, color="0.6", linewidth=1, linestyle=":", label=label)
    scores.set_xlabel("threshold: a pixel above it is neuron")
    scores.set_title("mean over the recordings", fontsize=9)
    scores.legend(fontsize=8, frameon=False)
    for panel in (trade, scores):
        panel.set_ylim(0, 1.02)
        plain(panel)
    trade.set_xlim(0, 1.02)
    scores.set_xlim(0, 1)
    return figure


def plain(panel: Axes) -> None:
    """No more frame than two axes."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


@signals_held()
def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all, see `figure_bytes`.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    write_together({Path(path): figure_bytes(figure)})


@signals_held()
def figure_bytes(figure: Figure) -> bytes:
    """A figure as the content of a PNG file. The same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi="figure", metadata={"Software": None})
    return stream.getvalue()


def make_panels(
    shape: tuple[int, int],
    count: int,
    title: str,
    pixels: tuple[int, int],
    pixels_per_micron: float | None,
) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels for images of one shape: beside each other, or below if they are wide.

    Every image pixel is drawn as a square of the same whole number of screen pixels, so that none is
    blurred, unless the image is larger than the largest panel.

    Parameters
    ----------
    shape : (int, int)
        (H, W) of the images.
    count : int
        Number of panels.
    title : str
        Above them.
    pixels : (int, int)
        Longer side of a panel on the screen: about, at most.
    pixels_per_micron : float, optional
        For the scale bar.

    Returns
    -------
    figure : matplotlib.figure.Figure
    axes : list of matplotlib.axes.Axes
        In x of -0.5 … W - 0.5 and y of H - 0.5 … -0.5: x is the column, y the row.
    """
    about, most = pixels
    zoom = min(max(1, round(about / max(shape))), most / max(shape))
    height, width = (max(1, round(side * zoom)) for side in shape)
    dpi = max(height, width) / PANEL_INCHES
    across, down = (1, count) if width > 2 * height else (count, 1)

    margin, head, top, foot = (round(inches * dpi) for inches in (0.15, 0.3, 0.35, 0.5))
    cell = max(width, round(NARROWEST_INCHES * dpi))
    total_width = margin + across * (cell + margin)
    total_height = top + down * (head + height) + (down - 1) * margin + foot
    figure = empty_figure(total_width, total_height, dpi, title)
    axes: list[Axes] = []
    for index in range(count):
        column, row = (0, index) if across == 1 else (index, 0)
        left = margin + column * (cell + margin) + (cell - width) // 2
        above = top + row * (head + height + margin) + head
        panel = add_panel(figure, (left, above, width, height), axes[0] if axes else None)
        panel.set_xlim(-0.5, shape[1] - 0.5)
        panel.set_ylim(shape[0] - 0.5, -0.5)
        axes.append(panel)
    if pixels_per_micron is not None:
        draw_scale_bar(axes[0] if across == count else axes[-1], shape, pixels_per_micron)
    return figure, axes


def empty_figure(width: int, height: int, dpi: float, title: str) -> Figure:
    """A figure of so many pixels, both even as videos need them, with a title above what is to come."""
    width, height = (side + side % 2 for side in (width, height))
    figure = Figure(figsize=((width + TOLERANCE) / dpi, (height + TOLERANCE) / dpi), dpi=dpi)
    FigureCanvasAgg(figure)
    figure.set_label(title)  # a window's title
    figure.suptitle(
        title,
        fontsize=min(12.0, 0.95 * (width / dpi) * 72 / (0.6 * max(len(title), 1))),  # a letter is 0.6 as wide
        y=1 - 0.08 * dpi / height,
        parse_math=False,  # a name may hold dollars
    )
    return figure


def add_panel(figure: Figure, box: tuple[int, int, int, int], beside: Axes | None) -> Axes:
    """Add axes for an image: `box` is left, top, width and height in the figure's pixels from its top left.

    In a window it zooms together with `beside`.
    """
    left, top, width, height = box
    total_width, total_height = figure.canvas.get_width_height()
    panel = figure.add_axes(
        (
            (left + TOLERANCE) / total_width,
            (total_height - top - height + TOLERANCE) / total_height,
            (width - 2 * TOLERANCE) / total_width,
            (height - 2 * TOLERANCE) / total_height,
        ),
        sharex=beside,
        sharey=beside,
    )
    panel.set_axis_off()
    panel.set_aspect("equal")
    panel.title.set_fontsize(10)
    panel.format_coord = lambda x, y: f"row {round(y)}, column {round(x)}"  # under the mouse
    return panel


def draw_image(panel: Axes, image: np.ndarray, limits: tuple[float, float] | None = None) -> AxesImage:
    """Draw an (H, W) image in grey, `limits` (by default its own `grey_limits`) as black and white."""
    low, high = grey_limits(image) if limits is None else limits
    shrunk = panel.get_window_extent().width < image.shape[1] - 0.5
    return panel.imshow(
        image, cmap="gray", vmin=low, vmax=high, interpolation="antialiased" if shrunk else "nearest"
    )


def grey_limits(values: np.ndarray) -> tuple[float, float]:
    """What to draw as black and as white: the `GREY_PERCENTILES` of the finite values.

    Where they coincide it is the smallest and the largest value; an image of one value is drawn black.
    Black is always below white.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, GREY_PERCENTILES)
    if low == high:
        low, high = values.min(), values.max()
    if low == high:
        high = low + max(1.0, abs(low))
    return float(low), float(high)


def draw_outlines(panel: Axes, regions: Sequence[np.ndarray], **style) -> LineCollection:
    """Draw the outlines of neurons over an image; `style` is LineCollection's."""
    rings = [ring[:, ::-1] for ring in outlines(regions)]  # x is the column
    lines = LineCollection(rings, **{"linewidths": [LINE_WIDTH], "capstyle": "butt", **style})
    panel.add_collection(lines, autolim=False)
    return lines


def draw_scale_bar(panel: Axes, shape: tuple[int, int], pixels_per_micron: float) -> None:
    """A bar of a round length in micrometres, below the lower left corner of a panel."""
    microns = round_length(0.25 * max(shape) / pixels_per_micron)
    bar = AnchoredSizeBar(
        panel.transData,
        microns * pixels_per_micron,
        f"{microns:g} µm",
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=panel.transAxes,
        pad=0,
        borderpad=0.5,
        sep=3,
        frameon=False,
        size_vertical=0.006 * max(shape),
        fontproperties={"size": 9},
        color="black",
        fill_bar=True,
    )
    panel.add_artist(bar)


def round_length(largest: float) -> float:
    """The largest of … 0.5, 1, 2, 5, 10, 20, 50, 100 … that is not above `largest`."""
    power = 10.0 ** math.floor(math.log10(largest))
    return max(m * power for m in (0.5, 1, 2, 5) if m * power <= largest)


def neurons_in_words(count: int, labels: str) -> str:
    """E.g. "330 labelled neurons"."""
    return f"{count} {labels} neuron{'' if count == 1 else 's'}"


# Windows

FILE_ONLY = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


def require_display(instead: str = "use the file that is written, without a window") -> None:
    """Make sure that a window can be opened.

    Parameters
    ----------
    instead : str
        What the user can do where it cannot.

    Raises
    ------
    UserError
        There is no display, or no toolkit that opens windows.
    """
    linux = sys.platform.startswith("linux")
    if linux and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError(f"there is no display to open a window on; {instead}")
    try:
        import matplotlib.pyplot  # noqa: F401  chooses the toolkit
    except ImportError as error:
        raise UserError(f"no window can be opened ({error}); {instead}") from error
    if matplotlib.get_backend().lower() in FILE_ONLY:
        raise UserError(
            f"matplotlib finds no display or no toolkit that opens windows; pip install PySide6, or {instead}"
        )


def show_figure(figure: Figure) -> None:
    """Show a figure in a window; returns when it is closed.

    Raises
    ------
    UserError
        There is no display.
    """
    require_display()
    from matplotlib import pyplot

    figure.set_dpi(SCREEN_DPI)  # the file is finer than a screen
    figure._original_dpi = SCREEN_DPI  # Tk goes back to this; without it the window is only too large
    open_window(figure)
    pyplot.show()


def open_window(figure: Figure) -> None:
    """Give a figure that was made for files a window of pyplot's."""
    from matplotlib import pyplot

    width, height = figure.get_size_inches()
    pyplot.figure(figsize=(width, height), dpi=figure.dpi, FigureClass=lambda *_, **__: figure)
    figure.canvas.manager.set_window_title(figure.get_label())
