"""A recording as a movie: in a window with a slider and keys, or in a file."""

from __future__ import annotations

import math
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import Event, KeyEvent, MouseButton, MouseEvent
from PIL import GifImagePlugin, Image

from neurodetect.files import UserError, write_whole
from neurodetect.progress import progress_bar
from neurodetect.recording import Recording, chosen_frames
from neurodetect.signals import signals_held
from neurodetect.view.figures import (
    OUTLINE,
    draw_image,
    draw_outlines,
    grey_limits,
    make_panels,
    neurons_in_words,
    open_window,
    require_display,
)

MOVIE_PIXELS = (600, 800)  #: longer side of a panel, about and at most: it has to fit a screen
SAMPLE_FRAMES = 30  #: frames that say how bright the whole movie is
SAMPLE_PIXELS = 2**16  #: pixels of each of them that are looked at, about
UNKNOWN_RATE = 30.0  #: frames a second of a recording that does not say
FASTEST = 50.0  #: pictures a second in a file; GIFs go no faster, and nobody sees more
LONGEST_DURATION = 2**16 - 1  #: hundredths of a second that a GIF can show a picture
GIF_FRAMES = 100  #: in a GIF of a whole recording; they are large, about 0.4 MB a frame

SPEEDS = (0.01, 1000.0)  #: slowest and fastest, times the recording's own
BRIGHTER = 1.25  #: times, by one press of a key
BRIGHTNESSES = (-20, 20)  #: presses, down and up
TICK = 2  #: milliseconds from a picture, or a look at the clock, to the next look at the clock
CONTROLS_INCHES = 0.5  #: strip below the panels, in a window only
CONTROLS_MARGIN = 0.15  #: inches on the left and on the right
HELP = "space pause   ← → step   + − speed {speed:g}x   ↑ ↓ brightness {brightness:.2g}x"


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
        1 is as fast as the recording was, or 30 frames a second where it does not say.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
    shown : range
        Numbers of the frames that are played, from 0.
    position : int
        Which of them is drawn, from 0.
    speed : float
    brightness : int
        Times that all was made `BRIGHTER`.
    paused : bool

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
        self.recording = recording
        self.chosen = frames is not None
        self.shown = chosen_frames(recording, frames)
        self.position = 0
        self.speed = speed
        self.brightness = 0
        self.paused = False
        self._dragging = False
        self._clock = 0.0
        self._background = None
        self._handle = None  # of the slider, in a window
        self._error: BaseException | None = None
        self._lay_out(regions, labels)
        self.show(0)

    @signals_held()
    def _lay_out(self, regions: Sequence[np.ndarray] | None, labels: str) -> None:
        """Make the figure: panels with black images, outlines, and the line that counts the frames."""
        recording = self.recording
        self.figure, self._panels = make_panels(
            recording.shape,
            1 if regions is None else 2,
            recording.name,
            MOVIE_PIXELS,
            recording.pixels_per_micron,
        )
        self._limits = movie_limits(recording)
        black = np.zeros((*recording.shape, 4), np.uint8)
        self._images = [draw_image(panel, black) for panel in self._panels]
        for panel, image in zip(self._panels, self._images, strict=True):
            image.set_mouseover(False)  # it would show a colour
            panel.format_coord = self._under_mouse
        self._counter = self._panels[0].set_title("", loc="left", fontsize=10)
        self._over = [self._counter]  # what is drawn anew over the images
        if regions is not None:
            self._over.append(draw_outlines(self._panels[1], regions, colors=OUTLINE))
            self._panels[1].set_title(neurons_in_words(len(regions), labels))
        for artist in (*self._images, *self._over):
            artist.set_animated(True)  # not part of the background
        self.figure.canvas.mpl_connect("draw_event", self._on_draw)

    def __len__(self) -> int:
        """Number of frames that are played."""
        return len(self.shown)

    @property
    def rate(self) -> float:
        """Frames a second, at this speed."""
        return (self.recording.rate_hz or UNKNOWN_RATE) * self.speed

    def show(self, position: int) -> None:
        """Draw one of the frames: that with the number `shown[position]`."""
        self._frame = self.recording.frame(self.shown[position])
        self.position = position
        self._refresh()

    @signals_held()
    def _refresh(self) -> None:
        """Draw what changes: the axes and what else stays the same is restored, not drawn."""
        low, high = self._limits
        self._picture = grey_picture(self._frame, low, low + (high - low) / BRIGHTER**self.brightness)
        for image in self._images:
            image.set_data(self._picture)
        index, rate = self.shown[self.position], self.recording.rate_hz
        seconds = f", {index / rate:.2f} s" if rate else ""
        self._counter.set_text(f"frame {index + 1} of {len(self.recording)}{seconds}")
        if self._handle is not None:
            self._handle.set_xdata([self.position])
        if self._background is not None:
            self.figure.canvas.restore_region(self._background)
            self._draw_artists()
            self.figure.canvas.blit(self.figure.bbox)

    def _on_draw(self, event: Event) -> None:
        """Keep what stays the same: the figure was drawn anew, at first or in another size."""
        if not self.figure.canvas.is_saving():
            self._background = self.figure.canvas.copy_from_bbox(self.figure.bbox)
            self._draw_artists()

    def _draw_artists(self) -> None:
        # Where a pixel of the frame covers whole pixels of the screen they are copied, and so is the second
        # panel, which zooms with the first: what matplotlib would draw, in a tenth of the time.
        height, width = self.recording.shape
        panel, *others = self._panels
        screen = pixels_of(panel)
        zoom = screen.shape[0] // height
        unzoomed = (*panel.get_xlim(), *panel.get_ylim()) == (-0.5, width - 0.5, height - 0.5, -0.5)
        if unzoomed and screen.shape == (zoom * height, zoom * width, 4):
            screen[:] = self._picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
        else:
            self.figure.draw_artist(self._images[0])
        for other in others:
            copy = pixels_of(other)
            height, width, _ = np.minimum(copy.shape, screen.shape)  # in a window of another size they differ
            copy[:height, :width] = screen[:height, :width]
        for artist in self._over:
            self.figure.draw_artist(artist)

    def _under_mouse(self, x: float, y: float) -> str:
        row, column = round(y), round(x)
        height, width = self.recording.shape
        inside = 0 <= row < height and 0 <= column < width
        return f"row {row}, column {column}" + (f": {self._frame[row, column]:g}" if inside else "")

    # In a window

    def play(self) -> None:
        """Play the movie in a window, over and over; returns when it is closed.

        `add_controls` says what it answers to.

        Raises
        ------
        UserError
            There is no display, or a frame is unreadable.
        """
        require_display("use --save FILE")
        from matplotlib import pyplot

        self.add_controls()
        open_window(self.figure)
        timer = self.figure.canvas.new_timer(interval=TICK)
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

    def add_controls(self) -> None:
        """Make the figure taller by a slider that seeks, and a line that tells what the keys do.

        Space pauses and goes on, the left and right arrows step, + and - change the speed, the up and
        down arrows the brightness. A click on the slider goes there, and it can be dragged.
        """
        self._background = None
        width, height = self.figure.get_size_inches()
        strip = round(CONTROLS_INCHES * self.figure.dpi) / self.figure.dpi  # the panels stay on whole pixels
        taller = height + strip
        for panel in self._panels:
            box = panel.get_position(original=True)
            lifted = (box.y0 * height + strip) / taller
            panel.set_position((box.x0, lifted, box.width, box.height * height / taller))
        title = self.figure.texts[0]
        title.set_y(1 - (1 - title.get_position()[1]) * height / taller)
        self.figure.set_size_inches(width, taller)

        left, across = CONTROLS_MARGIN / width, 1 - 2 * CONTROLS_MARGIN / width
        self._slider = self.figure.add_axes((left, 0.25 / taller, across, 0.25 / taller))
        self._slider.set_axis_off()
        self._slider.set_navigate(False)  # the toolbar's zoom is for the panels
        end = max(len(self) - 1, 1)
        self._slider.set_xlim(-0.01 * end, 1.01 * end)
        self._slider.plot([0, end], [0, 0], color="0.75", linewidth=3, solid_capstyle="round")
        (self._handle,) = self._slider.plot([0], [0], "o", color="0.2", markersize=9, animated=True)
        letters = len(HELP.format(speed=0.125, brightness=0.25))
        size = min(8.0, across * width * 72 / (0.48 * letters))  # a letter is 0.48 as wide
        self._help = self.figure.text(left, 0.13 / taller, "", va="center", fontsize=size)
        self._over.append(self._handle)
        for event, answer in {
            "key_press_event": self._on_key,
            "button_press_event": self._on_press,
            "motion_notify_event": self._on_motion,
            "button_release_event": self._on_release,
        }.items():
            self.figure.canvas.mpl_connect(event, answer)
        self._adjusted()

    def _adjusted(self) -> None:
        """Draw the picture with another speed or brightness, which the line below it tells."""
        self._help.set_text(HELP.format(speed=self.speed, brightness=BRIGHTER**self.brightness))
        self._refresh()
        self.figure.canvas.draw_idle()

    def _nearest(self, x: float) -> int:
        """The position next to a place on the slider."""
        return min(max(round(x), 0), len(self) - 1)

    def _on_timer(self) -> None:
        """Go on by as many frames as are due: where drawing is slow, some are left out."""
        now = time.perf_counter()
        due = int((now - self._clock) * self.rate)
        if self._error is not None:
            self._close()
        elif self.paused or self._dragging:
            self._clock = now
        elif due:
            self._clock += due / self.rate
            self._go_to((self.position + due) % len(self))

    def _on_key(self, event: KeyEvent) -> None:
        if event.key == " ":
            self.paused = not self.paused
        elif event.key in ("left", "right"):
            self.paused = True
            self._go_to((self.position + (1 if event.key == "right" else -1)) % len(self))
        elif event.key in ("+", "=", "-"):  # many keyboards have + above =
            speed = self.speed / 2 if event.key == "-" else self.speed * 2
            if SPEEDS[0] <= speed <= SPEEDS[1]:
                self.speed = speed
                self._adjusted()
        elif event.key in ("up", "down"):
            brightness = self.brightness + (1 if event.key == "up" else -1)
            self.brightness = min(max(brightness, BRIGHTNESSES[0]), BRIGHTNESSES[1])
            self._adjusted()

    def _on_press(self, event: MouseEvent) -> None:
        if event.button == MouseButton.LEFT and event.inaxes is self._slider:
            self._dragging = True
            self._on_motion(event)

    def _on_motion(self, event: MouseEvent) -> None:
        if self._dragging:  # also beyond the slider's ends and beside it
            x, _ = self._slider.transData.inverted().transform((event.x, event.y))
            if self._nearest(x) != self.position:
                self._go_to(self._nearest(x))

    def _on_release(self, event: MouseEvent) -> None:
        self._dragging = False

    def _go_to(self, position: int) -> None:
        try:
            self.show(position)
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

        Where it has more than `FASTEST` frames a second, some are left out.

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
        step = math.ceil(self.rate / FASTEST)
        positions = range(0, len(self), step)
        if gif and not self.chosen:
            positions = positions[:GIF_FRAMES]
        with write_whole(path) as temporary:
            pictures = self._pictures(progress_bar(positions, description=path.name, unit="frame"))
            try:
                write = save_gif if gif else save_video
                write(temporary, pictures, self.figure.canvas.get_width_height(), self.rate / step)
            except subprocess.CalledProcessError as error:
                raise UserError(f"{path}: ffmpeg failed ({error.stderr}); save a .gif instead") from error
        return len(positions)

    def _pictures(self, positions: Iterable[int]) -> Iterator[np.ndarray]:
        """Pictures as (height, width, 3) uint8, one in memory at a time."""
        with signals_held():
            self.figure.canvas.draw()
        for position in positions:
            self.show(position)
            yield np.asarray(self.figure.canvas.buffer_rgba())[..., :3]


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
    if suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise UserError(f"{path}: there is no ffmpeg to write .mp4; install it, or save a .gif")


def movie_limits(recording: Recording) -> tuple[float, float]:
    """`grey_limits` of a whole recording, from frames evenly spread over it."""
    length = len(recording)
    chosen = np.unique(np.linspace(0, length - 1, min(length, SAMPLE_FRAMES)).round().astype(int))
    apart = max(1, math.isqrt(math.prod(recording.shape) // SAMPLE_PIXELS))
    return grey_limits(np.concatenate([recording.frame(int(i))[::apart, ::apart].ravel() for i in chosen]))


def grey_picture(frame: np.ndarray, low: float, high: float) -> np.ndarray:
    """A frame in 256 opaque greys, `low` black and `high` white: (H, W) to (H, W, 4) uint8.

    matplotlib draws this in half the time that it takes for numbers and a colour map.
    """
    levels = (frame.astype(np.float32) - low) * (256 / (high - low))
    picture = np.full((*frame.shape, 4), 255, np.uint8)
    picture[..., :3] = np.nan_to_num(np.clip(levels, 0, 255)).astype(np.uint8)[..., np.newaxis]
    return picture


def pixels_of(panel: Axes) -> np.ndarray:
    """The pixels on the screen that a panel covers, to be read and written: (height, width, 4) uint8."""
    screen = np.asarray(panel.figure.canvas.buffer_rgba())
    left, bottom, right, top = np.round(panel.bbox.extents).astype(int)
    return screen[screen.shape[0] - top : screen.shape[0] - bottom, left:right]


# Files


def save_video(path: Path, pictures: Iterable[np.ndarray], size: tuple[int, int], fps: float) -> None:
    """Write pictures as H.264 with ffmpeg, one in memory at a time.

    Parameters
    ----------
    path : Path
    pictures : iterable of (height, width, 3) uint8 arrays
    size : (int, int)
        Their width and height, both even.
    fps : float
        Pictures a second.

    Raises
    ------
    subprocess.CalledProcessError
        ffmpeg failed; `stderr` is the last line it said.
    """
    width, height = size
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i pipe:"
    command = [*f"ffmpeg -y -loglevel error {source} -vcodec h264 -pix_fmt yuv420p".split(), path]
    with tempfile.TemporaryFile() as said:
        try:
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said) as ffmpeg:
                for picture in pictures:
                    ffmpeg.stdin.write(picture.tobytes())
        except BrokenPipeError:
            pass  # ffmpeg has stopped, and says why
        if ffmpeg.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit code {ffmpeg.returncode}"
            raise subprocess.CalledProcessError(ffmpeg.returncode, "ffmpeg", stderr=reason)


def save_gif(path: Path, pictures: Iterable[np.ndarray], size: tuple[int, int], fps: float) -> None:
    """Write pictures as a GIF that runs for ever, one in memory at a time.

    All have one palette: one chosen anew for every picture would flicker. Pillow's own way to save
    several pictures keeps them all until the last, 0.9 GB for 3,000 of 644 x 400; here it compresses them
    one by one, and what stands before and after them is written as GIF89a (CompuServe 1990) and Netscape's
    loop extension define it.

    Parameters
    ----------
    path : Path
    pictures : iterable of (height, width, 3) uint8 arrays
        In grey and mixtures of grey with the colour of outlines.
    size : (int, int)
        Their width and height.
    fps : float
        Pictures a second.
    """
    from scipy.spatial import cKDTree  # takes a quarter of a second that a window need not wait

    palette = gif_palette()
    levels = np.linspace(0, 255, 64)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    nearest = cKDTree(palette).query(colors)[1].astype(np.uint8)
    now = 0  # hundredths of a second; GIF counts no finer
    with open(path, "wb") as file:
        file.write(b"GIF89a" + struct.pack("<HHBBB", *size, 0b1111_0111, 0, 0) + palette.tobytes())
        file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
        for number, picture in enumerate(pictures, start=1):
            red, green, blue = np.moveaxis(picture >> 2, -1, 0)
            image = Image.fromarray(nearest[red, green, blue])
            # Rounding the moments, not the durations, keeps the speed on average.
            end = round(number * 100 / fps)
            file.writelines(GifImagePlugin.getdata(image, duration=10 * min(end - now, LONGEST_DURATION)))
            now = end
        file.write(b";")


def gif_palette() -> np.ndarray:
    """Greys, and the colour of outlines laid over them more or less densely: (256, 3) uint8."""
    color = np.array([int(OUTLINE[i : i + 2], 16) for i in (1, 3, 5)])
    greys = np.linspace(0, 255, 64)[:, None].repeat(3, axis=1)
    density = np.linspace(0.125, 1, 8)[:, None, None]
    ground = np.linspace(0, 255, 24)[:, None]
    mixed = density * color + (1 - density) * ground
    return np.concatenate([greys, mixed.reshape(-1, 3)]).round().astype(np.uint8)
