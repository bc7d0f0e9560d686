"""Does bfloat16 cost accuracy? The held-out error after the same iterations in both precisions, over seeds.

python tests/benchmarks/precision.py [TRAIN_FOLDER] [--iterations 200] [--seeds 3]

Without TRAIN_FOLDER (what preprocessing.py wrote) recordings are simulated. Every second one is held out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from neurodetect import console  # noqa: F401, I001  sets up PyTorch's memory as for the commands, so it comes first

import numpy as np

from neurodetect.patches import PatchSampler
from neurodetect.progress import progress_bar
from neurodetect.prepared import Prepared, read_labelled
from neurodetect.projection import clip_bright, mean_projection, standardize
from neurodetect.regions import regions_to_mask
from neurodetect.synthetic import simulate_frames, simulate_regions
from neurodetect.device import choose_device
from neurodetect.detection import TrainingSettings, train_network
from neurodetect.training import window_error

SHAPE = (256, 256)
HELD_OUT_WINDOWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("train_folder", nargs="?", metavar="TRAIN_FOLDER")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto", help="as the commands have it")
    args = parser.parse_args()
    device = choose_device(args.device)
    if args.train_folder:
        recordings = read_labelled(args.train_folder)
    else:
        recordings = [simulated(seed) for seed in range(4)]
    held_out = recordings[1::2]
    sampler = PatchSampler(
        [standardize(r.image) for r in held_out], [r.mask for r in held_out], device, seed=99
    )
    windows, targets = sampler.sample(HELD_OUT_WINDOWS)

    errors: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    runs = [(seed, precision) for seed in range(args.seeds) for precision in errors]
    for seed, precision in progress_bar(runs, description="training", unit="network"):
        settings = TrainingSettings(
            args.iterations, args.batch_size, "standard", "keep", seed, str(device), precision
        )
        network, _ = train_network(recordings[::2], settings)
        batches = zip(windows.split(100), targets.split(100), strict=True)
        errors[precision].append(float(np.mean([window_error(network, *b, "float32") for b in batches])))

    print(f"share of wrong pixels in {HELD_OUT_WINDOWS} held-out windows after {args.iterations} iterations")
    for precision, values in errors.items():
        spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
        each = ", ".join(f"{value:.4f}" for value in values)
        print(f"{precision:9} mean {np.mean(values):.4f}, standard deviation {spread:.4f} ({each})")
    difference = np.subtract(errors["bfloat16"], errors["float32"])
    print(f"bfloat16 - float32, seed by seed: mean {difference.mean():+.4f}")


def simulated(seed: int) -> Prepared:
    rng = np.random.default_rng(seed)
    regions = simulate_regions(SHAPE, 130, rng)
    image = clip_bright(mean_projection(simulate_frames(regions, SHAPE, 30, rng)))
    return Prepared(f"simulated{seed}", image, regions_to_mask(regions, SHAPE), regions, None)


if __name__ == "__main__":
    main()
