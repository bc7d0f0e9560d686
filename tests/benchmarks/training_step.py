"""Time of a training iteration against the plain loop: float32, default Adam, windows cut in Python.

The iteration is the standard recipe's, whose dense layers are tied, or with `--recipe 2016` that of the whole
network, as the plain loop has it. And against what the processor could do at best: the iteration's
multiplications alone, at the rate of one large matrix product in the same precision, as if activations,
copies and Adam's step took no time.

python tests/benchmarks/training_step.py [--rounds 5] [--recipe standard] [--precision auto]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from neurodetect import console  # noqa: F401, I001  sets up PyTorch's memory as for the commands, so it comes first

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from neurodetect.network import WINDOW, NeuronNet, TiedNet
from neurodetect.patches import PatchSampler
from neurodetect.training import BETAS, LEARNING_RATE, Step, make_optimizer
from neurodetect.device import choose_device, choose_precision, freed_memory_kept

BATCH_SIZE = 100
SHAPE = (512, 512)
MATRIX = 4096  #: rows and columns of the product


def multiplications(kind) -> float:
    """Of an iteration, in GFLOP: forward, and twice that backward but for the gradient of the windows."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = kind()
        network(torch.zeros(BATCH_SIZE, 1, WINDOW, WINDOW)).sum().backward()
    return counter.get_total_flops() / 1e9


def plain_step(network, optimizer, image, mask, rng) -> None:
    """One iteration as one would first write it."""
    padded, padded_mask = np.pad(image, 20), np.pad(mask, 20)
    windows, targets = [], []
    for label in [0, 1] * (BATCH_SIZE // 2):
        rows, columns = np.nonzero(mask == label)
        chosen = rng.integers(len(rows))
        r, c = rows[chosen], columns[chosen]
        window, target = padded[r : r + 40, c : c + 40], padded_mask[r + 10 : r + 30, c + 10 : c + 30]
        for axis in (0, 1):
            if rng.random() < 0.5:
                window, target = np.flip(window, axis), np.flip(target, axis)
        windows.append(window)
        targets.append(target.ravel())
    device = next(network.parameters()).device
    x = torch.tensor(np.array(windows), dtype=torch.float32, device=device)[:, None]
    y = torch.tensor(np.array(targets), dtype=torch.float32, device=device)
    optimizer.zero_grad()
    torch.nn.functional.binary_cross_entropy(torch.sigmoid(network(x)), y).backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of one plain and one fast iteration in turn")
    parser.add_argument("--recipe", default="standard", choices=("standard", "2016"))
    parser.add_argument("--device", default="auto", help="as the commands have it")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    args = parser.parse_args()
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)

    rng = np.random.default_rng(0)
    image = rng.standard_normal(SHAPE).astype(np.float32)
    mask = (rng.random(SHAPE) < 0.2).astype(np.uint8)
    plain = NeuronNet(torch.Generator().manual_seed(0)).to(device)
    kind = TiedNet if args.recipe == "standard" else NeuronNet
    fast = kind(torch.Generator().manual_seed(0)).to(device, memory_format=torch.channels_last)
    plain_adam = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE, betas=BETAS)
    fast_step = Step(fast, make_optimizer(fast, device, args.recipe), precision)
    sampler = PatchSampler([image], [mask], device)

    dtype = getattr(torch, precision)
    left, right = (torch.randn(MATRIX, MATRIX, device=device).to(dtype) for _ in range(2))
    steps = {
        "matrix product": lambda: left @ right,
        "plain float32": lambda: plain_step(plain, plain_adam, image, mask, rng),
        f"neurodetect {precision}": lambda: fast_step(*sampler.sample(BATCH_SIZE)),
    }
    times = {name: [] for name in steps}
    warm_up = Step.WARM_UP + 1 if device.type == "cuda" else 1
    with freed_memory_kept():  # as in a training
        for _ in range(args.rounds + warm_up):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(t[warm_up:]) for name, t in times.items()}
    for name, seconds in medians.items():
        print(f"{name:22} {1000 * seconds:8.2f} ms")
    product, slow, quick = medians.values()
    rate, work = 2 * MATRIX**3 / 1e9 / product, multiplications(kind)
    print(
        f"{work:.0f} GFLOP an iteration, {work / quick:.0f} GFLOP/s; the product has {rate:.0f} GFLOP/s, "
        f"at which an iteration would take {1000 * work / rate:.2f} ms: {quick * rate / work:.2f} times less"
    )
    threads = torch.get_num_threads()
    print(f"ratio {slow / quick:.2f} on {device.type}, {threads} threads, PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
