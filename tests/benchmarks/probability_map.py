"""Time the shared-arithmetic probability map against brute force: python tests/benchmarks/probability_map.py

All are measured in turn in one process, so that a busy machine slows each of them alike, and the
median over the repeats counts. Brute force is timed on a strip of the image, as wide as the image
and a few rows high, since it costs the same for every window.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from neurodetect.network import NeuronNet, TiedNet  # noqa: E402
from neurodetect.sliding_window import brute_force_map, probability_map, window_runs  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256, help="side of the square image, px (%(default)s)")
    parser.add_argument("--stride", type=int, default=1, help="px between windows (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--brute-rows", type=int, default=4, help="height of the strip, px (%(default)s)")
    parser.add_argument("--block-side", type=int, help="see probability_map")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"]
    )
    parser.add_argument(
        "--recipe", choices=("standard", "2016"), default="standard", help="2016: with untied dense layers"
    )
    arguments = parser.parse_args()

    network = untrained_network(TiedNet if arguments.recipe == "standard" else NeuronNet)
    network = network.to(arguments.device)
    image = np.random.default_rng(0).normal(size=(arguments.side, arguments.side)).astype(np.float32)
    strip = image[: arguments.brute_rows]
    stride, block_side = arguments.stride, arguments.block_side

    runs = {}
    for precision in arguments.precision:
        runs["brute force", precision] = (
            strip,
            lambda x, p=precision: brute_force_map(network, x, stride, precision=p),
        )
    for precision in arguments.precision:
        runs["shared", precision] = (
            image,
            lambda x, p=precision: probability_map(network, x, stride, precision=p, block_side=block_side),
        )

    exact = brute_force_map(network, strip, stride)
    difference = {name: np.abs(run(strip) - exact).max() for name, (_, run) in runs.items()}  # warms up too
    times: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, (x, run) in runs.items():
            times[name].append(seconds(run, x) / windows(x, stride))

    print(
        f"{arguments.side} x {arguments.side} px, stride {stride}, {arguments.device}, "
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}; median of {arguments.repeats}.\n"
        f"Brute force (batches of 256) is timed on {strip.shape[0]} x {strip.shape[1]} px and scaled up; "
        f"the difference is that from float32 brute force there."
    )
    first = "x " + arguments.precision[0]
    print(f"{'':24}{'ms/window':>10}{'s/image':>9}{'x same precision':>18}{first:>11}{'difference':>12}")
    per_window = {name: statistics.median(t) for name, t in times.items()}
    for (method, precision), t in per_window.items():
        same = per_window["brute force", precision] / t
        full = per_window["brute force", arguments.precision[0]] / t
        print(
            f"{method + ' ' + precision:24}{t * 1e3:10.3f}{t * windows(image, stride):9.1f}"
            f"{same:18.2f}{full:11.2f}{difference[method, precision]:12.1e}"
        )


def untrained_network(kind: type[NeuronNet]) -> NeuronNet:
    """The network as training starts, but for its biases: at zero they would hide errors at borders."""
    generator = torch.Generator().manual_seed(0)
    network = kind(generator)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
    return network


def windows(image: np.ndarray, stride: int) -> int:
    rows, columns = (sum(len(run) for run in window_runs(length, stride)) for length in image.shape)
    return rows * columns


def seconds(run: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> float:
    start = time.perf_counter()
    run(image)  # returns a numpy array, so a CUDA device has finished
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
