"""Time of the traces of many neurons against that of reading the frames alone.

python tests/benchmarks/traces.py [--frames 2000] [--neurons 1000] [--rounds 3]

Recordings are simulated in a temporary folder and read from the file cache, or from the disk where the system
lets a file be dropped from the cache (Linux). A plain loop over neurons is measured on a few frames.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import tifffile

from neurodetect.formats.exports import write_traces
from neurodetect.recording import open_recording
from neurodetect.synthetic import simulate_regions
from neurodetect.traces import GroupedMean, extract, neuron_pixels, surround_pixels

PLAIN_FRAMES = 5  #: that the plain loop gets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000, help="(%(default)s)")
    parser.add_argument("--side", type=int, default=512, help="of the square frame, px (%(default)s)")
    parser.add_argument("--neurons", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of reading without and with traces in turn")
    parser.add_argument("--table-frames", type=int, default=10_000, help="rows of the CSV (%(default)s)")
    parser.add_argument("--folder", help="where the recordings are simulated (default: the system's)")
    args = parser.parse_args()

    shape = args.side, args.side
    regions = simulate_regions(shape, args.neurons, np.random.default_rng(0))
    area = sum(map(len, regions)) / args.side**2
    print(
        f"{len(regions)} neurons, {area:.0%} of {args.side} x {args.side} px; {args.frames} frames of uint16"
    )
    start = time.perf_counter()
    GroupedMean([*neuron_pixels(regions, shape), *surround_pixels(regions, shape)], shape)
    print(f"surrounds and matrices, once a recording: {time.perf_counter() - start:.2f} s")

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        recordings = simulate(Path(folder), args.frames, args.side)
        print(f"{'ms a frame':24}{'reading':>10}{'traces':>10}{'ratio':>8}")
        for cold in (False, True) if hasattr(os, "posix_fadvise") else (False,):
            for name, path in recordings.items():
                read, both = compare(
                    path, regions, args.rounds, drop_from_cache if cold else lambda path: None
                )
                kind = name + (", from disk" if cold else "")
                scale = 1000 / args.frames
                print(
                    f"{kind:24}{scale * read:10.2f}{scale * (both - read):10.2f}{(both - read) / read:8.2f}"
                )
        frames = [*open_recording(recordings["stack"]).frames(0, PLAIN_FRAMES)]
        plain, fast = compare_plain(frames, regions, args.rounds)
        print(
            f"a frame: plain loop {1000 * plain:.1f} ms, here {1000 * fast:.2f} ms, ratio {plain / fast:.0f}"
        )

        traces, _ = extract(frames, regions, shape)
        values = (
            np.random.default_rng(0).normal(500, 50, (len(regions), args.table_frames)).astype(np.float32)
        )
        start = time.perf_counter()
        write_traces(Path(folder) / "traces.csv", traces._replace(neurons=values, rate_hz=30.0))
        size = (Path(folder) / "traces.csv").stat().st_size / 1e6
        print(f"a table of {args.table_frames} rows: {time.perf_counter() - start:.1f} s, {size:.0f} MB")


def simulate(folder: Path, count: int, side: int) -> dict[str, Path]:
    """Recordings of photon noise, a file a frame and compressed stacks: name to path."""
    rng = np.random.default_rng(0)
    frames = rng.poisson(200, (16, side, side)).astype(np.uint16)
    paths = {
        "single-page files": folder / "files",
        "zlib stack": folder / "zlib.tif",
        "stack": folder / "stack.tif",
    }
    paths["single-page files"].mkdir()
    with tifffile.TiffWriter(paths["zlib stack"]) as zlib, tifffile.TiffWriter(paths["stack"]) as stack:
        for index in range(count):
            frame = frames[index % len(frames)]
            tifffile.imwrite(paths["single-page files"] / f"image{index:05d}.tiff", frame)
            zlib.write(
                frame, contiguous=False, metadata=None, compression="zlib", compressionargs={"level": 1}
            )
            stack.write(frame, contiguous=False, metadata=None)
    return paths


def compare(
    path: Path, regions: list[np.ndarray], rounds: int, before: Callable[[Path], None]
) -> tuple[float, float]:
    """Median seconds of reading the frames, and of that with traces, in turn."""
    times: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for with_traces, into in zip((False, True), times, strict=True):
            before(path)
            start = time.perf_counter()
            recording = open_recording(path)
            if with_traces:
                extract(recording, regions, recording.shape)
            else:
                for frame in recording:
                    frame.max()  # a mapped file is read when it is looked at
            into.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def drop_from_cache(path: Path) -> None:
    """Have the system read a recording's files from the disk next time."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare_plain(frames: list[np.ndarray], regions: list[np.ndarray], rounds: int) -> tuple[float, float]:
    """Median seconds a frame of a plain loop over neurons and surrounds, and of `GroupedMean`; they agree."""
    shape = frames[0].shape
    sets = [*neuron_pixels(regions, shape), *surround_pixels(regions, shape)]
    mean = GroupedMean(sets, shape)

    def plain(frame: np.ndarray) -> np.ndarray:
        return np.array([frame.ravel()[pixels].mean(dtype=np.float64) for pixels in sets], np.float32)

    times: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        results = []
        for run, into in zip((plain, mean), times, strict=True):
            start = time.perf_counter()
            results.append([run(frame) for frame in frames])
            into.append((time.perf_counter() - start) / len(frames))
        assert np.array_equal(*results)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
