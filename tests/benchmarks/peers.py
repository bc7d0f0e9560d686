"""This program beside its peers: the same recordings, folds, cores and scorer.

python tests/benchmarks/peers.py TRAIN_FOLDER [--programs neurodetect,unet,stardist,cellpose]

TRAIN_FOLDER is what preprocessing.py wrote. Every program is trained from scratch on the same recordings of
each fold, in a process of its own, and finds the neurons of the others; neurodetect.scoring judges them all.
StarDist and Cellpose are installed from PyPI, each into an environment of its own in --environments, the
first time they are asked for; no trained weights are downloaded. The U-Net is a plain one (32 to 256 maps,
flips and rotations, mean over eight orientations) and has this program's step from map to neurons, with
the threshold learned as the commands do it.

Suite2p (`--programs suite2p --movies FOLDER`) is not trained, and looks at movies, not at mean images: it
finds the neurons of all recordings whose frames are in FOLDER, under their names.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PACKAGES = {
    "stardist": ["tensorflow-cpu", "stardist"],
    "cellpose": ["cellpose>=3,<4"],  # later ones cannot be trained from scratch
    "suite2p": ["suite2p>=1.1"],
}
UNKNOWN_RATE = 10.0  #: frames a second, where the files do not say: suite2p's default
SIDE = 256  #: pixels of the peers' training windows; the U-Net's are half as large


# What each program does: images and label images in, label images out. Run in its own environment.


def prepared(images, labels, names):
    """Images as recordings of this program."""
    from neurodetect.prepared import Prepared
    from neurodetect.regions import labels_to_regions, regions_to_mask

    regions = [labels_to_regions(label) for label in labels]
    return [
        Prepared(name, image, regions_to_mask(of, image.shape), of, None)
        for name, image, of in zip(names, images, regions, strict=True)
    ]


def by_this_step(predict, train, tests, settings, names):
    """First nothing, when the threshold is learned; then what this program finds in the maps that a network
    predicts."""
    from neurodetect.detection import find_in_map, neuron_area
    from neurodetect.groups import learn_thresholds, settle
    from neurodetect.prepared import Prepared
    from neurodetect.regions import regions_to_labels

    thresholds, typical = learn_thresholds(predict, train, settings), neuron_area(train)
    yield
    for name, image in zip(names, tests, strict=True):
        recording, own = Prepared(name, image, None, None, None), settle(settings, name, thresholds)
        regions = find_in_map(recording, predict(recording, own), own, typical)
        yield regions_to_labels(regions, image.shape)


def neurodetect(images, labels, tests, args):
    """This program, by its own functions, with the defaults of its commands."""
    from neurodetect import console  # noqa: F401  sets up PyTorch's memory as for the commands
    from neurodetect.detection import DetectionSettings, TrainingSettings, predict_map, train_network
    from neurodetect.device import choose_device, choose_precision
    from neurodetect.groups import fine_tune, kin

    device = choose_device("cpu")
    precision = choose_precision("auto", device)
    train = prepared(images, labels, args.names)
    training = TrainingSettings(args.iterations, 100, "standard", "normalize", args.seed, "cpu", precision)
    settings = DetectionSettings(args.stride, "watershed", None, None, "normalize", "cpu", precision)
    network, _ = train_network(train, training)
    fine_tune(network, train, kin(args.test_names, train), training)
    yield from by_this_step(partial(predict_map, network), train, tests, settings, args.test_names)


def unet(images, labels, tests, args):
    """A plain U-Net on the same standardized images and separated masks."""
    import torch
    from torch import nn

    from neurodetect.detection import DetectionSettings
    from neurodetect.projection import standardize
    from neurodetect.regions import labels_to_regions, regions_to_separate_mask

    class Block(nn.Sequential):
        def __init__(self, before, after):
            layers = []
            for maps in (before, after):
                layers += [nn.Conv2d(maps, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            super().__init__(*layers)

    class UNet(nn.Module):
        def __init__(self, maps=(32, 64, 128, 256)):
            super().__init__()
            self.down = nn.ModuleList(Block(a, b) for a, b in zip((1, *maps), maps, strict=False))
            pairs = list(zip(maps[:0:-1], maps[-2::-1], strict=True))
            self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
            self.join = nn.ModuleList(Block(a, b) for a, b in pairs)
            self.last = nn.Conv2d(maps[0], 1, 1)

        def forward(self, x):
            skipped = []
            for i, block in enumerate(self.down):
                x = block(x if i == 0 else nn.functional.max_pool2d(x, 2))
                skipped.append(x)
            for up, join, skip in zip(self.up, self.join, skipped[-2::-1], strict=True):
                x = join(torch.cat([up(x), skip], 1))
            return self.last(x)[:, 0]

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    side, batch = SIDE // 2, 16
    inputs = [standardize(image) for image in images]
    masks = [
        regions_to_separate_mask(labels_to_regions(label), label.shape).astype(np.float32) for label in labels
    ]
    network = UNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, args.unet_iterations)
    for _ in range(args.unet_iterations):
        windows = []
        for _ in range(batch):
            i = rng.integers(len(inputs))
            r, c = (rng.integers(n - side + 1) for n in inputs[i].shape)
            pair = np.stack([a[r : r + side, c : c + side] for a in (inputs[i], masks[i])])
            pair = np.rot90(pair, rng.integers(4), axes=(1, 2))
            windows.append(pair[:, ::-1] if rng.random() < 0.5 else pair)
        x, y = torch.from_numpy(np.stack(windows).copy()).unbind(1)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x[:, None].contiguous(memory_format=torch.channels_last))
        nn.functional.binary_cross_entropy_with_logits(logits.float(), y).backward()
        optimizer.step()
        schedule.step()
    network.eval()

    def predict(recording, _):
        height, width = recording.image.shape
        padded = np.pad(standardize(recording.image), [(0, -height % 8), (0, -width % 8)], mode="reflect")
        probability = np.zeros_like(padded)
        for turn in range(4):
            for flip in (1, -1):
                turned = np.rot90(padded, turn)[:, ::flip]
                with torch.inference_mode():
                    p = torch.sigmoid(network(torch.from_numpy(turned.copy())[None, None]))[0].numpy()
                probability += np.rot90(p[:, ::flip], -turn) / 8
        return probability[:height, :width]

    settings = DetectionSettings(args.stride, "watershed", None, None, "keep", "cpu", "float32")
    train = prepared(images, labels, args.names)
    yield from by_this_step(predict, train, tests, settings, args.test_names)


def stardist(images, labels, tests, args):
    """StarDist (Schmidt et al. 2018), its defaults but for the size of window and number of epochs."""
    from csbdeep.utils import normalize
    from stardist.models import Config2D, StarDist2D

    np.random.seed(args.seed)
    images = [normalize(image, 1, 99.8) for image in images]
    rng = np.random.default_rng(args.seed)
    order = rng.permutation(len(images))
    checks = order[: max(1, len(images) // 8)]  # it wants some to watch, and to set its thresholds by
    rest = [i for i in order if i not in checks]

    def turned(x, y):
        turn, flip = rng.integers(4), rng.choice([1, -1])
        return np.rot90(x, turn)[::flip], np.rot90(y, turn)[::flip]

    with tempfile.TemporaryDirectory() as folder:
        config = Config2D(
            n_channel_in=1, train_patch_size=(SIDE, SIDE), train_steps_per_epoch=50, train_tensorboard=False
        )
        model = StarDist2D(config, name="stardist", basedir=folder)
        validation = [images[i] for i in checks], [labels[i] for i in checks]
        model.train(
            [images[i] for i in rest],
            [labels[i] for i in rest],
            validation_data=validation,
            augmenter=turned,
            epochs=args.stardist_epochs,
        )
        model.optimize_thresholds(*validation)
        yield
        for image in tests:
            yield model.predict_instances(normalize(image, 1, 99.8))[0]


def cellpose(images, labels, tests, args):
    """Cellpose 3 (Stringer et al. 2021) from random weights, its defaults but for the number of epochs."""
    from cellpose import models, train

    np.random.seed(args.seed)
    model = models.CellposeModel(gpu=False, pretrained_model=None)
    with tempfile.TemporaryDirectory() as folder:
        train.train_seg(
            model.net,
            train_data=list(images),
            train_labels=list(labels),
            channels=[0, 0],
            n_epochs=args.cellpose_epochs,
            learning_rate=0.1,
            SGD=True,
            weight_decay=1e-4,
            save_path=folder,
            min_train_masks=1,
        )
    yield
    for image in tests:
        yield model.eval(image, channels=[0, 0], diameter=float(model.net.diam_labels.item()))[0]


def suite2p(_images, _labels, movies, args):
    """Suite2p (Pachitariu et al.), its defaults but for the frame rate; what its classifier calls a cell."""
    import tifffile
    from suite2p import run_s2p

    yield
    for movie, rate in zip(movies, args.rates, strict=True):
        labels = np.zeros(movie.shape[1:], np.int32)
        with tempfile.TemporaryDirectory() as folder:
            tifffile.imwrite(Path(folder, "movie.tif"), movie, photometric="minisblack")
            run_s2p({"data_path": [folder], "save_path0": folder}, {"fs": rate})
            plane = Path(folder, "suite2p", "plane0")
            cells = np.load(plane / "stat.npy", allow_pickle=True)  # by suite2p, a moment ago
            chosen = np.load(plane / "iscell.npy")[:, 0] > 0
        for number, cell in enumerate(cells[chosen], start=1):
            labels[cell["ypix"], cell["xpix"]] = number
        yield labels


# The comparison


def worker(program: str, task: Path, result: Path, args: argparse.Namespace) -> None:
    """Train and find in this process; label images and seconds go to a file."""
    with np.load(task) as arrays:
        parts = {
            kind: [arrays[f"{kind}{i}"] for i in range(int(arrays[f"{kind}_count"]))]
            for kind in ("images", "labels", "tests")
        }
        args.names, args.test_names = arrays["names"].tolist(), arrays["test_names"].tolist()
        args.rates = arrays["rates"].tolist()
    started = time.perf_counter()
    found = globals()[program](parts["images"], parts["labels"], parts["tests"], args)
    next(found)
    trained = time.perf_counter()
    masks = {f"found{i}": np.asarray(labels, np.int32) for i, labels in enumerate(found)}
    done = time.perf_counter()
    np.savez_compressed(result, train=trained - started, predict=done - trained, **masks)


def environment(program: str, folder: Path) -> str:
    """The interpreter that has the program; installs it the first time."""
    if program not in PACKAGES:
        return sys.executable
    python = folder / program / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / program], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[program]], check=True)
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("train_folder", type=Path)
    parser.add_argument("--programs", default="neurodetect,unet,stardist,cellpose", help="(%(default)s)")
    parser.add_argument("--movies", type=Path, help="folder of the recordings' frames, for suite2p")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--first-fold", action="store_true", help="only the first of them")
    parser.add_argument("--groups", choices=["prefix"], help="as of conv2d_crossvalidation.py")
    parser.add_argument("--iterations", type=int, default=800, help="of neurodetect")
    parser.add_argument("--stride", type=int, default=8, help="of neurodetect")
    parser.add_argument("--unet-iterations", type=int, default=1100)
    parser.add_argument("--stardist-epochs", type=int, default=40, help="of 50 steps of 4 windows")
    parser.add_argument("--cellpose-epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--environments", type=Path, default=Path("peers"))
    parser.add_argument("--output", type=Path, help="a JSON file of all figures")
    parser.add_argument("--worker", nargs=3, metavar=("PROGRAM", "TASK", "RESULT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        program, task, result = args.worker
        worker(program, Path(task), Path(result), args)
        return

    from neurodetect.detection import split_folds
    from neurodetect.prepared import read_groups, read_labelled
    from neurodetect.recording import find_recording, name_of, open_recording
    from neurodetect.regions import labels_to_regions, regions_to_labels
    from neurodetect.scoring import compare_regions, match_threshold

    recordings = read_labelled(args.train_folder)
    names = [recording.name for recording in recordings]
    groups = list(map(read_groups(args.groups, names).get, names)) if args.groups else None
    folds = split_folds(len(recordings), args.folds, args.seed, groups)[: 1 if args.first_fold else None]
    print("program      train s  find s/image  combined  F1 IoU.5  recordings")
    results = {}
    there = {name_of(path) for path in args.movies.iterdir()} if args.movies else ()
    with_movie = [i for i, name in enumerate(names) if name in there]
    if "suite2p" in args.programs and not with_movie:
        sys.exit("suite2p looks at movies; add --movies FOLDER, in which they have the recordings' names")
    for program in args.programs.split(","):
        python = environment(program, args.environments)
        rows, seconds = {}, []
        for held_out in [with_movie] if program == "suite2p" else folds:
            tests = [recordings[i] for i in held_out]
            others = [r for i, r in enumerate(recordings) if i not in held_out]
            movies = [
                open_recording(find_recording(args.movies, r.name)) for r in tests if program == "suite2p"
            ]
            arrays = {
                "images": [r.image for r in others],
                "labels": [regions_to_labels(r.regions, r.image.shape) for r in others],
                "tests": [np.stack([*movie]) for movie in movies] or [r.image for r in tests],
            }
            with tempfile.TemporaryDirectory() as folder:
                task, result = Path(folder, "task.npz"), Path(folder, "result.npz")
                np.savez(
                    task,
                    names=[r.name for r in others],
                    test_names=[r.name for r in tests],
                    rates=[movie.rate_hz or UNKNOWN_RATE for movie in movies],
                    **{f"{kind}_count": len(each) for kind, each in arrays.items()},
                    **{f"{kind}{i}": array for kind, each in arrays.items() for i, array in enumerate(each)},
                )
                command = [python, __file__, *sys.argv[1:], "--worker", program, task, result]
                log = Path(folder, "log.txt")
                with log.open("w") as output:
                    done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
                if done.returncode:
                    sys.exit(f"{program} failed:\n{log.read_text()[-2000:]}")
                with np.load(result) as found:
                    seconds.append((float(found["train"]), float(found["predict"]) / len(tests)))
                    for i, r in enumerate(tests):
                        regions = labels_to_regions(found[f"found{i}"])
                        within = match_threshold(r.pixels_per_micron)
                        rows[r.name] = compare_regions(r.regions, regions, within)
        mean = [statistics.mean(row[key] for row in rows.values()) for key in ("combined", "f1_iou50")]
        train, find = (statistics.mean(times) for times in zip(*seconds, strict=True))
        print(
            f"{program:<12} {train:7.0f}  {find:12.1f}  {mean[0]:8.3f}  {mean[1]:8.3f}  {len(rows)}",
            flush=True,
        )
        results[program] = {"train": train, "find": find, "recordings": rows}
    if args.output:
        args.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
