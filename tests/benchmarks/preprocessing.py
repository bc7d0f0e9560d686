"""Time of the mean image against the plain way: every file into one array, then its mean over time.

python tests/benchmarks/preprocessing.py [--frames 1000] [--rounds 5]

The recordings are simulated in a temporary folder, so they are read from the file cache. Peak memory is that
of a process of its own which does nothing else, above what it had after the imports.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import tifffile
from memory import megabytes_peak

from neurodetect.averaging import project
from neurodetect.recording import open_recording

MANY = 8000  #: files of the recording that is opened
LATE = 100  #: frames at the end of a stack that are read one by one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--side", type=int, default=512, help="of the square frame, px (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of one plain and one fast run in turn")
    parser.add_argument("--folder", help="where the recordings are simulated (default: the system's)")
    parser.add_argument("--memory-of", metavar="RECORDING", help=argparse.SUPPRESS)  # the process of its own
    args = parser.parse_args()
    if args.memory_of:
        before = megabytes_peak()
        project(open_recording(args.memory_of))
        print(megabytes_peak() - before)
        return

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        recordings = simulate(Path(folder), args.frames, args.side)
        memory = {name: memory_of(path) for name, path in recordings.items()}
        print(f"{args.frames} frames of {args.side} x {args.side} uint16, {os.cpu_count()} cores")
        print(f"{'':20}{'frames/s':>10}{'plain':>10}{'ratio':>8}{'peak MB':>10}")
        for name, path in recordings.items():
            plain, fast = compare(path, args.rounds)
            print(
                f"{name:20}{args.frames / fast:10.0f}{args.frames / plain:10.0f}{plain / fast:8.2f}"
                f"{memory[name]:10.0f}"
            )
        late = seconds_a_frame(recordings["stack"])
        print(f"one frame of the last {LATE} in the stack: {1000 * late:.2f} ms")
        tifffile_files(Path(folder) / "many", noise(MANY, 32))
        start = time.perf_counter()
        recording = open_recording(Path(folder) / "many")
        opened = time.perf_counter()
        count = len(recording)
        counted = time.perf_counter()
        print(f"{count} files: opened in {opened - start:.2f} s, counted in {counted - opened:.2f} s")


def noise(count: int, side: int):
    """Frames of photon noise, 16 different ones in turn."""
    rng = np.random.default_rng(0)
    frames = rng.poisson(200, (16, side, side)).astype(np.uint16)
    return (frames[index % len(frames)] for index in range(count))


def tifffile_files(folder: Path, frames, **options) -> Path:
    folder.mkdir()
    for index, frame in enumerate(frames):
        tifffile.imwrite(folder / f"image{index:05d}.tiff", frame, **options)
    return folder


def tifffile_stack(path: Path, frames, **options) -> Path:
    """A stack as microscopes write it, a directory with each frame."""
    with tifffile.TiffWriter(path) as writer:
        for frame in frames:
            writer.write(frame, contiguous=False, metadata=None, **options)
    return path


def simulate(folder: Path, count: int, side: int) -> dict[str, Path]:
    """Recordings of these kinds: name to path."""
    zlib = {"compression": "zlib", "compressionargs": {"level": 1}}
    return {
        "single-page files": tifffile_files(folder / "files", noise(count, side)),
        "zlib files": tifffile_files(folder / "zlib", noise(count, side), **zlib),
        "stack": tifffile_stack(folder / "stack.tif", noise(count, side)),
        "zlib stack": tifffile_stack(folder / "zlib.tif", noise(count, side), **zlib),
    }


def plain_mean(path: Path) -> np.ndarray:
    """The mean image as one would first write it."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    movie = [tifffile.imread(file) for file in files]
    return (np.stack(movie) if path.is_dir() else movie[0]).mean(axis=0)


def compare(path: Path, rounds: int) -> tuple[float, float]:
    """Median seconds of the plain and of the fast way, measured in turn; they agree to the last bit."""
    times: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        images = []
        for run, into in zip((plain_mean, lambda p: project(open_recording(p)).image), times, strict=True):
            start = time.perf_counter()
            images.append(run(path))
            into.append(time.perf_counter() - start)
        assert np.array_equal(*images)
    return statistics.median(times[0]), statistics.median(times[1])


def seconds_a_frame(path: Path) -> float:
    recording = open_recording(path)
    numbers = range(len(recording))[-LATE:]
    start = time.perf_counter()
    for number in numbers:
        recording.frame(number)
    return (time.perf_counter() - start) / len(numbers)


def memory_of(path: Path) -> float:
    command = [sys.executable, __file__, "--memory-of", str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
