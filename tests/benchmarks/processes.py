"""Time of 1, 2, ... processes on this machine, their efficiency, and what arithmetic says of 8 and 64 GPUs.

all of it, some minutes:  python tests/benchmarks/processes.py --processes 1 2 4
the arithmetic alone:  python tests/benchmarks/processes.py --processes

Every process has the same number of threads, those of the machine over the largest number of processes, and
the network in float32. Efficiency is the time of one process over n times that of n; the training is also
compared with one process that has all the threads. Started and connected processes are timed, twice in turn,
and the quicker time counts. The second table is arithmetic and no measurement, but for the seconds that a
recording takes on the processor, which are measured here in one process.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from neurodetect import console  # noqa: F401, I001  sets up PyTorch's memory as for the commands, so it comes first

import numpy as np
import torch

from neurodetect import processes, training
from neurodetect.detection import Found, assess
from neurodetect.files import write_together
from neurodetect.network import NeuronNet, TiedNet, empty_network
from neurodetect.patches import PatchSampler
from neurodetect.prepared import Prepared
from neurodetect.regions import find_regions, mean_probability, regions_to_mask, write_submission
from neurodetect.sliding_window import probability_map
from neurodetect.synthetic import simulate_regions
from neurodetect.view.figures import draw_found, figure_bytes
from neurodetect.view.report import section, write_report

WORK = (
    "recordings dealt",
    "windows of one image shared",
    "folds dealt",
    "batches of one training shared",
    "the same, `--recipe 2016`",
)
GPUS, RECORDINGS = (1, 8, 64), 1000
# A GPU's part in the arithmetic, as measured on one H200: a map at stride 1, and 2,500 iterations. Of an
# iteration's 3.0 ms Adam and the weights' change to bfloat16 and back have WEIGHTS, which is not shared.
START, MAP, TRAINING, STEP, WEIGHTS = 10.0, 0.21, 8.0, 1.9e-3, 1.1e-3  #: s
EXCHANGED = 324e6  #: bytes of gradients, with --recipe 2016; tied dense layers have 2 MB
# Bytes/s that one GPU sends in a machine of eight, and to others by 100 Gbit/s.
NVLINK, NETWORK = 400e9, 12.5e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], metavar="N")
    parser.add_argument("--side", type=int, default=96, help="of the square images, px")
    parser.add_argument("--stride", type=int, default=2, help="px between windows of the probability map")
    parser.add_argument("--iterations", type=int, default=10, help="of each training")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--measure", metavar="WORK", help=argparse.SUPPRESS)  # in processes of torchrun's
    args = parser.parse_args()
    if args.measure:
        measure(args)
        return
    counts = sorted({1, *args.processes}) if args.processes else []
    if counts:
        measured(args, counts)
    arithmetic()


def measured(args: argparse.Namespace, counts: list[int]) -> None:
    threads = max(1, (os.cpu_count() or 1) // max(counts))
    print(f"{os.cpu_count()} cores, {threads} threads a process, PyTorch {torch.__version__}\n")
    print("| work | processes | seconds | efficiency |\n|---|---|---|---|")
    for work in WORK:
        together = work in WORK[3:]
        runs = [(count, threads) for count in counts] + [(1, threads * max(counts))] * together
        times: dict[tuple[int, int], list[float]] = {run: [] for run in runs}
        for _ in range(2):
            for run in times:
                times[run].append(launch(work, *run))
        alone = min(times[runs[0]])
        for (count, each), seconds in times.items():
            how = f"{count}" if each == threads else f"{count} with {each} threads"
            share = alone / min(seconds) / (count * each / threads)
            print(f"| {work} | {how} | {min(seconds):.2f} | {share:.0%} |", flush=True)
    print()


def launch(work: str, count: int, threads: int) -> float:
    """Seconds that so many processes take for some work."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    result = subprocess.run(
        [*torchrun, __file__, "--measure", work, *sys.argv[1:]],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(result.stdout)


def measure(args: argparse.Namespace) -> None:
    """In each process: the seconds of its work, which the first one prints."""
    processes.start(torch.device("cpu"))
    most = max(args.processes)
    network = random_network(NeuronNet)
    tied = random_network(TiedNet)
    image = np.random.default_rng(0).standard_normal((args.side, args.side), np.float32)
    teams = {work: processes.split(most if "dealt" in work else 1) for work in WORK}
    team = teams[args.measure]

    def mapped(_: int = 0) -> np.ndarray:
        return probability_map(network, image, args.stride, precision="float32", team=team)

    def trained(network: NeuronNet, iterations: int = args.iterations) -> list[dict[str, float]]:
        sampler, recipe = PatchSampler([image], [image > 1]), "standard" if network is tied else "2016"
        return training.train(network, sampler, iterations, args.batch_size, recipe=recipe, team=team)

    warm_up, work = {
        WORK[0]: (mapped, lambda: list(processes.share(range(most), mapped, team))),
        WORK[1]: (mapped, mapped),
        WORK[2]: (
            lambda: trained(tied, 1),
            lambda: list(processes.share(range(most), lambda _: trained(tied), team)),
        ),
        WORK[3]: (lambda: trained(tied, 1), lambda: trained(tied)),
        WORK[4]: (lambda: trained(network, 1), lambda: trained(network)),
    }[args.measure]
    warm_up()
    processes.wait()
    start = time.perf_counter()
    work()
    processes.wait()
    if processes.FIRST:
        print(time.perf_counter() - start)
    processes.finish()


def random_network(kind: type[NeuronNet]) -> NeuronNet:
    """A network of plain random weights: orthogonal ones take more time than what is measured."""
    network = empty_network(kind).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.01, generator=generator)
    return network.eval()


def arithmetic() -> None:
    found, written = seconds_of_a_recording()
    print(f"A recording of 512 x 512 px, measured here: {found:.2f} s to find, score and draw its neurons by")
    print(f"whoever has its map, {written:.3f} s to receive and write them by the first process.\n")
    print(
        f"Arithmetic, not measured: {RECORDINGS} recordings, a map in {MAP} s, a network in {TRAINING} s.\n"
    )
    print(
        "| GPUs | map and find | efficiency | the first alone | 5 folds | a step of 2016, NVLink / network |"
    )
    print("|---|---|---|---|---|---|")
    first = START + RECORDINGS * written
    alone = first + RECORDINGS * (MAP + found)
    for gpus in GPUS:
        total = first + -(-RECORDINGS // gpus) * (MAP + found)
        rounds = START + -(-5 // gpus) * TRAINING
        around = 2 * (gpus - 1) / gpus * EXCHANGED
        steps = [1000 * (STEP / gpus + WEIGHTS + around / speed) for speed in (NVLINK, NETWORK)]
        by_nvlink = f"{steps[0]:.1f} ms" if gpus <= 8 else "-"
        share = alone / total / gpus
        print(
            f"| {gpus} | {total:.0f} s | {share:.0%} | {RECORDINGS * written:.0f} s | {rounds:.0f} s "
            f"| {by_nvlink} / {steps[1]:.1f} ms |"
        )


def seconds_of_a_recording() -> tuple[float, float]:
    """To find, score and draw its neurons; and to receive and write that, as the commands do."""
    rng, shape = np.random.default_rng(0), (512, 512)
    regions = simulate_regions(shape, 300, rng)
    mask = regions_to_mask(regions, shape)
    image = (mask + rng.normal(0, 0.3, shape)).astype(np.float32)
    recording = Prepared("simulated", image, mask, regions, 1.0)
    probability = (0.9 * mask + 0.05).astype(np.float32)

    def examine():
        neurons = find_regions(probability)
        found = Found(neurons, probability, mean_probability(probability, neurons))
        row, pairs = assess(recording, found)
        picture = figure_bytes(draw_found(recording, found, pairs))
        return found, row, picture, section(recording, found, row, pairs)

    def write(content: bytes, names: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                found, _, picture, part = pickle.loads(content)
                write_together({Path(folder, f"{name}.png"): picture})
            write_submission(Path(folder, "s.json"), {name: found.regions for name in names})
            write_report(Path(folder, "report.html"), title="", settings={}, sections=[part] * len(names))

    content, names = pickle.dumps(examine()), [str(number) for number in range(10)]
    return quickest(examine), quickest(lambda: write(content, names)) / len(names)


def quickest(run: Callable[[], object]) -> float:
    """The least seconds of three: what else the machine does only adds to them."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
