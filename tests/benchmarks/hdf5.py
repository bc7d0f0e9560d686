"""Time of an HDF5 movie in chunks long in time, read by tiles, against one in chunks of whole frames.

python tests/benchmarks/hdf5.py [--frames 6000] [--rounds 3]

Both are gzipped and summed over time, in turn. The long chunks are read frame by frame once, to compare.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import h5py
import numpy as np

from neurodetect.formats.hdf5 import Hdf5Frames

SIDE = 256  #: of a frame, px
TILE = 16  #: of a long chunk, px


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=6000, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of one movie and the other in turn")
    parser.add_argument("--folder", help="where the movies are simulated (default: the system's)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        long = simulate(Path(folder) / "long.h5", args.frames, (args.frames, TILE, TILE))
        whole = simulate(Path(folder) / "whole.h5", args.frames, (1, SIDE, SIDE))
        times: tuple[list[float], list[float]] = [], []
        for _ in range(args.rounds):
            sums = []
            for into, add, path in zip(times, (by_tiles, by_frames), (long, whole), strict=True):
                start = time.perf_counter()
                sums.append(add(path))
                into.append(time.perf_counter() - start)
            assert np.array_equal(*sums)
        start = time.perf_counter()
        by_frames(long)
        slow = time.perf_counter() - start
    tiles, frames = map(statistics.median, times)
    print(f"{args.frames} frames of {SIDE} x {SIDE} uint16, gzip")
    print(f"long chunks by tiles {tiles:.2f} s, whole frames {frames:.2f} s, ratio {tiles / frames:.2f}")
    print(f"long chunks frame by frame {slow:.2f} s")


def simulate(path: Path, count: int, chunks: tuple[int, int, int]) -> Path:
    rng = np.random.default_rng(0)
    movie = np.resize(rng.integers(100, 400, (500, SIDE, SIDE), dtype=np.uint16), (count, SIDE, SIDE))
    with h5py.File(path, "w") as file:
        file.create_dataset("mov", data=movie, chunks=chunks, compression="gzip", compression_opts=1)
    return path


def by_tiles(path: Path) -> np.ndarray:
    movie = Hdf5Frames(path)
    total = np.zeros(movie.shape, np.uint64)
    for place, blocks in movie.tiles(0, len(movie)):
        for block in blocks:
            total[place] += block.sum(axis=0, dtype=np.uint64)
    return total


def by_frames(path: Path) -> np.ndarray:
    movie = Hdf5Frames(path)
    total = np.zeros(movie.shape, np.uint64)
    for frame in movie:
        total += frame
    return total


if __name__ == "__main__":
    main()
