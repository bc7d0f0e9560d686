"""Everything that draws: mean images with outlines of neurons, matches, and a recording as a movie.

Files are drawn without any window toolkit; only what opens a window imports pyplot.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.axes import Axes
from matplotlib.backend_bases import Event, KeyEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from PIL import Image
from scipy.spatial import cKDTree

from neurodetect.files import UserError, write_whole
from neurodetect.progress import progress_bar
from neurodetect.recording import Recording

PANEL_INCHES = 5.5  #: longer side of a panel; text is sized for a panel as large as this
NARROWEST_INCHES = 2.8  #: room for the text of a panel, however narrow its image
HAIR = 1e-5  #: pixels, more than rounding errors and less than anyone sees
PICTURE_PIXELS = (1000, 2500)  #: longer side of a picture's panel: about, at most
MOVIE_PIXELS = (600, 800)  #: the same for a movie, which has to fit a screen
GREY_PERCENTILES = (1.0, 99.7)  #: drawn black and white; what is beyond are a few hot or dead pixels
SAMPLE_FRAMES = 30  #: frames that say how bright the whole movie is
SAMPLE_PIXELS = 2**16  #: pixels of each of them that are looked at, about
SCREEN_DPI = 100
UNKNOWN_RATE = 30.0  #: frames a second of a recording that does not say
FASTEST = 50.0  #: pictures a second; GIFs go no faster, and nobody sees more
GIF_FRAMES = 100  #: in a GIF of a whole recording; they are large, about 0.4 MB a frame

# Colours of Okabe and Ito (2008), told apart with every kind of colour vision, on grey too.
OUTLINE = "#E69F00"
LINE_WIDTH = 0.8
SOLID, DASHED = "solid", (0, (2.2, 1.4))
MATCHED_TRUE = {"colors": "#56B4E9", "linestyles": [SOLID]}
MATCHED_FOUND = {"colors": "#F0E442", "linestyles": [DASHED]}
MISSED_TRUE = {"colors": "#CC79A7", "linestyles": [SOLID]}
FALSE_FOUND = {"colors": "#D55E00", "linestyles": [DASHED], "linewidths": [1.2]}  # the darkest of them

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # on white

# What ffmpeg has to say reaches the user as our one line, not beside it.
logging.getLogger("matplotlib.animation").addHandler(logging.NullHandler())


# Pictures


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
        axes[1].set_title(count_neurons(len(regions), labels))
    return figure


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
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    curves = {"loss": "loss on training windows", "held_out_error": "wrong pixels in held-out windows"}
    for panel, (key, title) in zip(figure.subplots(1, 2), curves.items(), strict=True):
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
    if len(folds) <= len(LINES):  # of more nobody could tell the colours
        panel.legend(frameon=False, fontsize=8)
    return figure


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
    measures = {key: key for key in ("recall", "precision", "combined")} | {"f1_iou50": "F1 at IoU 0.5"}
    figure = Figure(figsize=(10, 1.2 + 0.22 * max(len(rows), 4)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(measures), sharey=True)
    height = np.arange(len(rows))
    for panel, (key, title), color in zip(panels, measures.items(), LINES, strict=False):
        values = [row[key] for row in rows]
        panel.hlines(height, 0, values, color="0.85", linewidth=1)
        panel.plot(values, height, "o", color=color, markersize=4)
        panel.axvline(np.mean(values), color=color, linewidth=1, linestyle=DASHED)
        panel.set_title(f"{title}, mean {np.mean(values):.3f}", fontsize=10)
        panel.set_xlim(0, 1)
        plain(panel)
    panels[0].set_yticks(height, names, fontsize=8, parse_math=False)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)  # the first recording on top
    return figure


def plain(panel: Axes) -> None:
    """No more frame than two axes."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all. The same figure gives the same bytes.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    with write_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi="figure", metadata={"Software": None})


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
    total_width, total_height = (side + side % 2 for side in (total_width, total_height))  # for video

    # Whole pixels go through inches and fractions, and matplotlib cuts off what is left: a figure of a hair
    # less would lose its last pixel, an image of a hair more would be stretched over another one.
    figure = Figure(figsize=((total_width + HAIR) / dpi, (total_height + HAIR) / dpi), dpi=dpi)
    FigureCanvasAgg(figure)
    figure.set_label(title)  # a window's title
    inches = total_width / dpi
    figure.suptitle(
        title,
        fontsize=min(12.0, 0.95 * inches * 72 / (0.6 * max(len(title), 1))),  # a letter is 0.6 as wide
        y=1 - 0.08 * dpi / total_height,
        parse_math=False,  # a name may hold dollars
    )
    axes = []
    for index in range(count):
        column, row = (0, index) if across == 1 else (index, 0)
        left = margin + column * (cell + margin) + (cell - width) // 2
        above = top + row * (head + height + margin) + head
        bottom = total_height - above - height
        panel = figure.add_axes(
            (
                (left + HAIR) / total_width,
                (bottom + HAIR) / total_height,
                (width - 2 * HAIR) / total_width,
                (height - 2 * HAIR) / total_height,
            ),
            sharex=axes[0] if axes else None,  # in a window they zoom together
            sharey=axes[0] if axes else None,
        )
        panel.set_axis_off()
        panel.set_xlim(-0.5, shape[1] - 0.5)
        panel.set_ylim(shape[0] - 0.5, -0.5)
        panel.set_aspect("equal")
        panel.title.set_fontsize(10)
        panel.format_coord = lambda x, y: f"row {round(y)}, column {round(x)}"  # under the mouse
        axes.append(panel)
    if pixels_per_micron is not None:
        draw_scale_bar(axes[0] if across == count else axes[-1], shape, pixels_per_micron)
    return figure, axes


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


def outlines(regions: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outlines of neurons along the edges of their pixels.

    Parameters
    ----------
    regions : sequence of (n, 2) int arrays
        `[row, column]` pixels of each neuron. Pixel `[r, c]` is the square r - 0.5 … r + 0.5,
        c - 0.5 … c + 0.5.

    Returns
    -------
    list of (k, 2) float arrays
        Closed polygons, the last corner being the first, as `[row, column]`; neuron by neuron, with one
        polygon for each piece of a neuron and one for each of its holes (those that meet at a corner may
        share one). Where two neurons touch, each has its own.
    """
    rings = []
    for region in regions:
        region = np.asarray(region)
        if len(region):
            rings += trace(region - region.min(axis=0), region.min(axis=0) - 0.5)
    return rings


def trace(pixels: np.ndarray, origin: np.ndarray) -> Iterator[np.ndarray]:
    """Outlines of one neuron whose pixels begin at row 0 and column 0. See `outlines`."""
    mask = np.zeros(pixels.max(axis=0) + 3, bool)
    mask[pixels[:, 0] + 1, pixels[:, 1] + 1] = True
    # Pixel edges with the neuron on one side only, as steps from corner to corner clockwise round it:
    # neighbour on the outer side, first corner and last corner of the edge, from the pixel's upper left.
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, first, last in (
        ((-1, 0), (0, 0), (0, 1)),
        ((0, 1), (0, 1), (1, 1)),
        ((1, 0), (1, 1), (1, 0)),
        ((0, -1), (1, 0), (0, 0)),
    ):
        outside = ~np.roll(mask, (-neighbour[0], -neighbour[1]), axis=(0, 1))
        edges = np.argwhere(mask & outside) - 1
        for start, end in zip((edges + first).tolist(), (edges + last).tolist(), strict=True):
            steps.setdefault(tuple(start), []).append(tuple(end))
    while steps:
        corner = next(iter(steps))
        ring = [corner]
        while corner in steps:  # as many steps lead to a corner as from it: the way ends where it began
            ends = steps[corner]
            after = ends.pop()
            if not ends:
                del steps[corner]
            if len(ring) > 1 and (ring[-2][0] == after[0] or ring[-2][1] == after[1]):
                ring[-1] = after  # straight on
            else:
                ring.append(after)
            corner = after
        yield np.array(ring) + origin


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


def count_neurons(count: int, labels: str) -> str:
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


# The movie


class Movie:
    """A recording as a movie: in a window, or saved. Frames are read when they are drawn.

    Parameters
    ----------
    recording : Recording
        Its frames are drawn with one grey scale, taken from frames all over it.
    regions : sequence of (n, 2) int arrays, optional
        Neurons to outline in a second panel.
    labels : str
        What they are: labelled, found.
    frames : (int, int), optional
        First and last frame, counted from 1; by default all.
    speed : float
        1 is as fast as the recording was, or 30 frames a second where it does not say. Where that is
        more than `FASTEST` pictures a second, frames are left out.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
    shown : range
        Numbers of the frames that are drawn, from 0.
    fps : float
        Pictures a second.

    Raises
    ------
    UserError
        The recording has not so many frames, or one of them is unreadable.
    """

    def __init__(
        self,
        recording: Recording,
        regions: Sequence[np.ndarray] | None = None,
        *,
        labels: str = "labelled",
        frames: tuple[int, int] | None = None,
        speed: float = 1.0,
    ) -> None:
        first, last = frames or (1, len(recording))
        if not 1 <= first <= min(last, len(recording)):
            length = len(recording)
            raise UserError(f"{recording.path}: has frames 1 to {length}, none from {first} to {last}")
        self.recording = recording
        self.chosen = frames is not None
        rate = (recording.rate_hz or UNKNOWN_RATE) * speed
        step = math.ceil(rate / FASTEST)
        self.fps = rate / step
        self.shown = range(first - 1, min(last, len(recording)), step)
        self.position = 0
        self.paused = False
        self._clock = 0.0
        self._background = None
        self._error: BaseException | None = None

        count = 1 if regions is None else 2
        self.figure, axes = make_panels(
            recording.shape, count, recording.name, MOVIE_PIXELS, recording.pixels_per_micron
        )
        limits = movie_limits(recording)
        self._images = [draw_image(panel, np.zeros(recording.shape), limits) for panel in axes]
        self._counter = axes[0].set_title("", loc="left", fontsize=10)
        self._artists = [*self._images, self._counter]
        if regions is not None:
            self._artists.append(draw_outlines(axes[1], regions, colors=OUTLINE))
            axes[1].set_title(count_neurons(len(regions), labels))
        for artist in self._artists:
            artist.set_animated(True)  # not part of the background
        self.figure.canvas.mpl_connect("draw_event", self._on_draw)
        self.figure.canvas.mpl_connect("key_press_event", self._on_key)
        self.show(0)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.shown)

    def show(self, position: int) -> None:
        """Draw one of the pictures: the frame `shown[position]`."""
        index = self.shown[position]
        frame = self.recording.frame(index).astype(np.float32)  # what matplotlib draws fastest
        for image in self._images:
            image.set_data(frame)
        rate = self.recording.rate_hz
        seconds = f", {index / rate:.2f} s" if rate else ""
        self._counter.set_text(f"frame {index + 1} of {len(self.recording)}{seconds}")
        self.position = position
        if self._background is not None:
            self.figure.canvas.restore_region(self._background)
            self._draw_artists()
            self.figure.canvas.blit(self.figure.bbox)

    def _on_draw(self, event: Event | None) -> None:
        """Keep what stays the same: the figure was drawn anew, at first or in another size."""
        if not self.figure.canvas.is_saving():
            self._background = self.figure.canvas.copy_from_bbox(self.figure.bbox)
            self._draw_artists()

    def _draw_artists(self) -> None:
        for artist in self._artists:
            self.figure.draw_artist(artist)

    # In a window

    def play(self) -> None:
        """Play the movie in a window, over and over; returns when it is closed.

        Space pauses and goes on, the left and right arrows step.

        Raises
        ------
        UserError
            There is no display, or a frame is unreadable.
        """
        require_display("use --save FILE")
        from matplotlib import pyplot

        self._background = None
        open_window(self.figure)
        timer = self.figure.canvas.new_timer(interval=max(1, round(500 / self.fps)))
        timer.add_callback(self._on_timer)
        self.figure.canvas.mpl_connect("close_event", lambda _: timer.stop())
        timer.start()
        self._clock = time.perf_counter()
        # The arrows would also go through the zooms of the toolbar.
        with matplotlib.rc_context({"keymap.back": [], "keymap.forward": []}):
            # Not every window toolkit lets Ctrl-C through.
            before = signal.signal(signal.SIGINT, self._interrupt)
            try:
                pyplot.show()
            finally:
                signal.signal(signal.SIGINT, before)
        if self._error is not None:
            raise self._error

    def _on_timer(self) -> None:
        """Go on by as many pictures as are due: where drawing is slow, some are left out."""
        now = time.perf_counter()
        due = (now - self._clock) * self.fps
        if self._error is not None:
            self._close()
        elif self.paused:
            self._clock = now
        elif due >= 1:
            self._clock += int(due) / self.fps
            self._step(int(due))

    def _on_key(self, event: KeyEvent) -> None:
        if event.key == " ":
            self.paused = not self.paused
        elif event.key in ("left", "right"):
            self.paused = True
            self._step(1 if event.key == "right" else -1)

    def _step(self, count: int) -> None:
        try:
            self.show((self.position + count) % len(self))
        except Exception as error:  # a window toolkit would print it and go on
            self._error = error
            self._close()

    def _interrupt(self, *_: object) -> None:
        self._error = KeyboardInterrupt()

    def _close(self) -> None:
        from matplotlib import pyplot

        pyplot.close(self.figure)  # then `play` raises the error

    # In a file

    def save(self, path: str | Path) -> int:
        """Save the movie, whole or not at all.

        Parameters
        ----------
        path : str or Path
            `.gif`, or `.mp4` where there is ffmpeg. A GIF has the first `GIF_FRAMES` pictures unless
            the frames were chosen.

        Returns
        -------
        int
            Number of pictures in it.

        Raises
        ------
        UserError
            The file has another suffix, ffmpeg is missing or fails, a frame is unreadable, or the file
            cannot be written.
        """
        path = Path(path)
        check_movie_suffix(path)
        gif = path.suffix.lower() == ".gif"
        count = min(len(self), GIF_FRAMES) if gif and not self.chosen else len(self)
        with write_whole(path) as temporary:
            positions = progress_bar(range(count), description=path.name, unit="frame")
            if gif:
                save_gif(temporary, self._pictures(positions), count, self.fps)
            else:
                self._save_video(temporary, positions, path)
        return count

    def _pictures(self, positions: Iterable[int]) -> Iterator[np.ndarray]:
        """Pictures as (height, width, 3) uint8, one in memory at a time."""
        self.figure.canvas.draw()
        for position in positions:
            self.show(position)
            yield np.asarray(self.figure.canvas.buffer_rgba())[..., :3]

    def _save_video(self, temporary: Path, positions: Iterable[int], path: Path) -> None:
        writer = FFMpegWriter(fps=self.fps)
        try:
            with writer.saving(self.figure, str(temporary), dpi=self.figure.dpi):
                for position in positions:
                    self.show(position)
                    writer.grab_frame()
        except subprocess.CalledProcessError as error:
            said = (error.stderr or "").strip().splitlines()
            raise UserError(
                f"{path}: ffmpeg failed ({said[-1] if said else error}); save a .gif instead"
            ) from error


def check_movie_suffix(path: str | Path) -> None:
    """Make sure that a movie can be saved under this name.

    Raises
    ------
    UserError
        The suffix is neither `.gif` nor `.mp4`, or it is `.mp4` and ffmpeg is missing.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise UserError(f"{path}: a movie is saved as .gif or .mp4; choose one of them")
    if suffix == ".mp4" and not FFMpegWriter.isAvailable():
        raise UserError(f"{path}: there is no ffmpeg to write .mp4; install it, or save a .gif")


def movie_limits(recording: Recording) -> tuple[float, float]:
    """`grey_limits` of a whole recording, from frames evenly spread over it."""
    length = len(recording)
    chosen = np.unique(np.linspace(0, length - 1, min(length, SAMPLE_FRAMES)).round().astype(int))
    apart = max(1, math.isqrt(math.prod(recording.shape) // SAMPLE_PIXELS))
    return grey_limits(np.concatenate([recording.frame(int(i))[::apart, ::apart].ravel() for i in chosen]))


def save_gif(path: Path, pictures: Iterable[np.ndarray], count: int, fps: float) -> None:
    """Write pictures as a GIF that runs for ever.

    All have one palette: one chosen anew for every picture would flicker.

    Parameters
    ----------
    path : Path
    pictures : iterable of (height, width, 3) uint8 arrays
        In grey and mixtures of grey with the colour of outlines.
    count : int
        How many they are.
    fps : float
        Pictures a second.
    """
    palette = gif_palette()
    levels = np.linspace(0, 255, 64)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    nearest = cKDTree(palette).query(colors)[1].astype(np.uint8)

    def indexed(picture: np.ndarray) -> Image.Image:
        red, green, blue = np.moveaxis(picture >> 2, -1, 0)
        image = Image.fromarray(nearest[red, green, blue])
        image.putpalette(palette.tobytes())
        return image

    images = map(indexed, pictures)
    # GIF counts in 1/100 s. Rounding the moments, not the durations, keeps the speed on average.
    moments = np.round(np.arange(count + 1) * 100 / fps).astype(int)
    durations = (10 * np.diff(moments)).tolist()
    first = next(images)
    first.save(path, format="GIF", save_all=True, append_images=images, duration=durations, loop=0)


def gif_palette() -> np.ndarray:
    """Greys, and the colour of outlines laid over them more or less densely: (256, 3) uint8."""
    color = np.array([int(OUTLINE[i : i + 2], 16) for i in (1, 3, 5)])
    greys = np.linspace(0, 255, 64)[:, None].repeat(3, axis=1)
    density = np.linspace(0.125, 1, 8)[:, None, None]
    ground = np.linspace(0, 255, 24)[:, None]
    mixed = density * color + (1 - density) * ground
    return np.concatenate([greys, mixed.reshape(-1, 3)]).round().astype(np.uint8)
