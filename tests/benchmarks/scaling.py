"""How time and memory of each stage grow with the recording: a Markdown table.

all of it, some 15 minutes:  python tests/benchmarks/scaling.py
a quick look:  python tests/benchmarks/scaling.py --frames 100 300 1000 --sides 128 256 --images 1 3 10

Each number comes from a process of its own: its time once the input is there, and the most memory it had,
input included, above what it had after the imports. The exponent is that of the power of the size which fits
best (least squares of the logarithms): 1 is in proportion to the frames, images or side, 2 to the side's
square.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from neurodetect import console  # noqa: F401, I001  sets up PyTorch's memory as for the commands, so it comes first

import numpy as np
from memory import megabytes_now, megabytes_peak

SIDE = 128  #: px, where the number of frames or images grows
FRAMES = 100  #: where the side of the image grows
SPACING = 16  #: px between simulated neurons
SHORT = 2.0  #: seconds; what takes less is measured several times
SMALLEST = 1e-3  #: seconds or MB; less is not told from nothing, and has no logarithm


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    many = {"type": int, "nargs": "+", "metavar": "N"}
    parser.add_argument("--frames", **many, default=[100, 300, 1000, 3000, 10_000], help="of a recording")
    parser.add_argument(
        "--sides", **many, default=[128, 256, 512, 1024, 2048], help="of the square image, px"
    )
    parser.add_argument("--images", **many, default=[1, 3, 10, 30, 100], help="to train on")
    parser.add_argument("--stride", type=int, default=8, help="px between windows of the probability map")
    parser.add_argument("--folder", help="where recordings are simulated (default: the system's)")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(**args.measure)))
        return

    rows = [
        ("preprocessing", f"frames of {SIDE} x {SIDE}", "frames", args.frames, {"side": SIDE}),
        ("preprocessing", f"side, {FRAMES} frames", "side", args.sides, {"frames": FRAMES}),
        ("training iteration", f"images of {SIDE} x {SIDE}", "images", args.images, {"side": SIDE}),
        ("training iteration", "side, 1 image", "side", args.sides, {"images": 1}),
        ("probability map", f"side, stride {args.stride}", "side", args.sides, {"stride": args.stride}),
        ("finding regions", "side", "side", args.sides, {}),
        ("scoring", "side", "side", args.sides, {}),
    ]
    print(f"{os.cpu_count()} cores; a neuron every {SPACING} px\n")
    print("| stage | against | sizes | seconds | exponent | MB | exponent |\n|---|---|---|---|---|---|---|")
    for stage, against, variable, sizes, fixed in rows:
        measured = [alone(stage, args.folder, **fixed, **{variable: size}) for size in sizes]
        cells = [stage, against, ", ".join(map(str, sizes))]
        for values, digits in zip(zip(*measured, strict=True), (3, 0), strict=True):
            cells += [", ".join(f"{value:.{digits}f}" for value in values), exponent(sizes, values)]
        print(f"| {' | '.join(cells)} |", flush=True)


def exponent(sizes: list[int], values: tuple[float, ...]) -> str:
    if len(sizes) < 2:
        return ""
    return f"{np.polyfit(np.log(sizes), np.log(np.maximum(values, SMALLEST)), 1)[0]:.2f}"


def alone(stage: str, folder: str | None, **sizes: int) -> tuple[float, float]:
    """Seconds and MB of a stage, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if stage == "preprocessing":
            simulate(Path(place), **sizes)
        request = json.dumps({"stage": stage, "folder": place, **sizes})
        command = [sys.executable, __file__, "--measure", request]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return tuple(json.loads(output))


def simulate(folder: Path, frames: int, side: int) -> None:
    """A recording of one file a frame."""
    import tifffile

    noise = np.random.default_rng(0).integers(0, 4096, (8, side, side), np.uint16)
    for index in range(frames):
        tifffile.imwrite(folder / f"image{index:05d}.tiff", noise[index % len(noise)])


def measure(stage: str, folder: str, **sizes: int) -> tuple[float, float]:
    """Seconds and MB of a stage in this process."""
    steps = STAGES[stage](Path(folder), **sizes)
    next(steps)  # imports
    before = megabytes_now()
    run = next(steps)
    times = [seconds(run)]
    if times[0] < SHORT:  # a few more: the first pays for what is set up once
        times = [seconds(run) for _ in range(3)]
    return statistics.median(times), megabytes_peak() - before


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# The stages. Each imports, makes its input and gives what is to be timed.


def preprocessing(folder: Path, frames: int, side: int) -> Iterator:
    from neurodetect.projection import clip_bright, mean_projection
    from neurodetect.recording import open_recording

    yield
    yield lambda: clip_bright(mean_projection(open_recording(folder)))


def training(_: Path, images: int, side: int) -> Iterator:
    import torch

    from neurodetect.device import choose_precision
    from neurodetect.patches import PatchSampler
    from neurodetect.training import BETAS, LEARNING_RATE, train_step

    yield
    network = random_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)
    sampler = PatchSampler([noise_image(side)] * images, [discs(side)] * images)
    precision = choose_precision("auto", torch.device("cpu"))
    yield lambda: train_step(network, optimizer, *sampler.sample(100), precision)


def mapping(_: Path, side: int, stride: int) -> Iterator:
    from neurodetect.sliding_window import probability_map

    yield
    network, image = random_network().eval(), noise_image(side)
    yield lambda: probability_map(network, image, stride)


def finding(_: Path, side: int) -> Iterator:
    from neurodetect.regions import find_regions

    yield
    probability = discs(side).astype(np.float32)
    yield lambda: find_regions(probability)


def scoring(_: Path, side: int) -> Iterator:
    from neurodetect.regions import find_regions
    from neurodetect.scoring import evaluate

    yield
    mask = discs(side)
    truth, probability = find_regions(mask), np.roll(mask, 2, axis=0).astype(np.float32)
    found = find_regions(probability)
    yield lambda: evaluate(probability, found, mask, truth)


STAGES = {
    "preprocessing": preprocessing,
    "training iteration": training,
    "probability map": mapping,
    "finding regions": finding,
    "scoring": scoring,
}


def random_network():
    """A network of plain random weights: orthogonal ones take more time and memory than what is measured."""
    import torch

    from neurodetect.network import NeuronNet

    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        network = NeuronNet()
    network = network.to_empty(device="cpu").to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.01, generator=generator)
    return network


def noise_image(side: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((side, side), np.float32)


def discs(side: int) -> np.ndarray:
    """A mask of neurons of 12 px across, one every SPACING px: uint8 (side, side)."""
    row, column = np.indices((SPACING, SPACING)) - SPACING / 2 + 0.5
    disc = (np.hypot(row, column) < 6).astype(np.uint8)
    tiles = -(-side // SPACING)
    return np.tile(disc, (tiles, tiles))[:side, :side]


if __name__ == "__main__":
    main()
