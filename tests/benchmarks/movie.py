"""Pictures a second of the movie against drawing the figure anew, and how soon the first one is there.

python tests/benchmarks/movie.py [--rounds 30] [--side 512] [--files 8000] [--file-side 64]

Without a window: matplotlib's Agg canvas, which those of the window toolkits only copy to the screen.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import tifffile
from matplotlib.figure import Figure

from neurodetect.recording import open_recording
from neurodetect.regions import write_regions
from neurodetect.synthetic import simulate_regions, write_recording
from neurodetect.view.figures import draw_image, draw_outlines, make_panels
from neurodetect.view.movie import MOVIE_PIXELS, Movie

NEURONS = 300
FRAMES = 10

# What play_animation.py does until there is a picture.
FIRST_PICTURE = """
import sys
from neurodetect.view.movie import Movie
from neurodetect.recording import open_recording
recording = open_recording(sys.argv[1])
movie = Movie(recording, recording.regions)
import matplotlib.pyplot
movie.add_controls()
movie.figure.canvas.draw()
print(len(recording))
"""


def draw_anew(
    figure: Figure, frame: np.ndarray, regions: list[np.ndarray], limits: tuple[float, float]
) -> None:
    """A picture as one would first write it: every axes cleared, filled and drawn."""
    for panel in figure.axes:
        panel.clear()
        panel.set_axis_off()
        draw_image(panel, frame, limits)
    draw_outlines(figure.axes[1], regions)
    figure.canvas.draw()


def time_pictures(folder: Path, side: int, rounds: int) -> None:
    """Both ways of drawing in turn, on a simulated recording with outlines."""
    shape = (side, side)
    recording = open_recording(write_recording(folder, "drawn", shape=shape, count=NEURONS, n_frames=FRAMES))
    regions = recording.regions
    movie = Movie(recording, regions)
    movie.add_controls()
    movie.figure.canvas.draw()
    plain, _ = make_panels(shape, 2, "drawn anew", MOVIE_PIXELS, recording.pixels_per_micron)
    limits = (0.0, float(recording.frame(0).max()))
    ways = {
        "axes drawn anew": lambda i: draw_anew(plain, recording.frame(i), regions, limits),
        "neurodetect": lambda i: movie.show(i),
    }
    times = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, draw in ways.items():
            start = time.perf_counter()
            draw(number % FRAMES)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(t[1:]) for name, t in times.items()}  # the first warms up
    for name, seconds in medians.items():
        print(f"{name:16} {1000 * seconds:7.1f} ms a picture, {1 / seconds:6.1f} a second")
    slow, quick = medians.values()
    print(f"ratio {slow / quick:.2f}, two panels of {side} x {side}, {len(regions)} outlines")


def time_start(folder: Path, files: int, side: int, rounds: int = 5) -> None:
    """A process of its own, from its start to the first picture."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    first = images / "image00000.tiff"
    tifffile.imwrite(first, rng.integers(0, 4000, (side, side)).astype(np.uint16))
    content = first.read_bytes()
    for number in range(1, files):
        (images / f"image{number:05}.tiff").write_bytes(content)
    (folder / "regions").mkdir()
    write_regions(folder / "regions" / "regions.json", simulate_regions((side, side), NEURONS, rng))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", FIRST_PICTURE, folder], cwd=sys.path[0], check=True, capture_output=True
        )
        times.append(time.perf_counter() - start)
    print(f"first picture after {statistics.median(times):.2f} s, {files} files of {side} x {side}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="of one picture each way in turn")
    parser.add_argument("--side", type=int, default=512, help="of the frames that are drawn, pixels")
    parser.add_argument("--files", type=int, default=8000, help="of the recording that is started")
    parser.add_argument("--file-side", type=int, default=64, help="of its frames, pixels")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        time_pictures(Path(folder), args.side, args.rounds)
        time_start(Path(folder) / "started", args.files, args.file_side)


if __name__ == "__main__":
    main()
