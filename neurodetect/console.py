"""What the scripts share: arguments, what is said to the user, one-line errors.

Nothing heavy is imported here, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import platform
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from neurodetect import __version__, processes, progress
from neurodetect.files import LARGEST_SCALE, LARGEST_SIDE, LEAST_SCALE, UserError, one_line, reason

if TYPE_CHECKING:
    from neurodetect.detection import DetectionSettings, TrainingSettings
    from neurodetect.resume import UnfinishedRun

# A training step makes and frees gigabytes; with huge pages that takes half the time. PyTorch reads
# this when it is imported, after the arguments are parsed.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# The same sums in the same order on a GPU too; read when CUDA's libraries are loaded.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# What PyTorch lacks for Apple's GPUs it computes on the CPU then, instead of ending.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

OUT_OF_MEMORY = "out of memory; close other programs, or use a machine that has more"
RECIPES = {"standard": "standard", "2016": "2016", "now": "standard"}  #: by all names they have had
LARGEST_STRIDE = 20  #: pixels; windows further apart would leave pixels without a prediction
PACKAGES = ("numpy", "scipy", "scikit-image", "scikit-learn", "torch", "matplotlib", "tifffile")


RECORDING_HELP = (
    "a neurofinder folder (images/*.tiff, info.json), a folder of TIFF frames, or one TIFF, HDF5 or NWB "
    "file; its labels, if any, are regions.json, ImageJ ROIs (.zip, .roi), a label image (.tif, .png) or "
    "what Suite2p or Cellpose saved (.npy): in the folder's regions/, or beside movie.tif as "
    "movie.regions.json, movie.regions.zip, ..., or in an NWB file"
)

_started = time.monotonic()
_level = 1  #: 0 quiet, 1 what a user wants to know, 2 verbose


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose help keeps the author's line breaks.

    It has --quiet and --verbose, and sets what `say` and progress bars do. Of several processes only the
    first one answers; a command whose work is not `shared` is refused to them.
    """

    def __init__(self, description: str, example: str, prog: str | None = None, shared: bool = False) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.shared = shared
        amount = self.add_mutually_exclusive_group()
        amount.add_argument("-q", "--quiet", action="store_true", help="say nothing but results and warnings")
        amount.add_argument(
            "--verbose", action="store_true", help="also say the settings, and the seconds since the start"
        )

    def parse_args(self, *arguments: Any) -> argparse.Namespace:  # type: ignore[override]
        global _level
        # Options may stand between folders, but not where -- says that no more come.
        args = (super().parse_args if "--" in sys.argv else super().parse_intermixed_args)(*arguments)
        if "" in sys.argv[1:]:
            self.error("an argument is empty; is a variable of the shell not set?")
        _level = 0 if args.quiet else 2 if args.verbose else 1
        progress.hidden = args.quiet or not processes.FIRST
        if processes.SIZE > 1 and not self.shared:
            self.error("works in one process; start it without torchrun")
        return args

    def error(self, message: str) -> NoReturn:
        stop(self.prog, f"{message}; see {self.prog} --help", 2)

    def _print_message(self, message: str, file: Any = None) -> None:
        if processes.FIRST:
            super()._print_message(message, file)


def number_in(kind: type, lowest: float, highest: float = float("inf")) -> Callable[[str], Any]:
    """An argument type: a number of this kind from `lowest` to `highest`, both included."""
    limits = f"at least {lowest}" if highest == float("inf") else f"from {lowest} to {highest}"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not lowest <= value <= highest or math.isinf(value):
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text} is not {name} {limits}")
        return value

    return parse


def choices_in(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """An argument type: some of the allowed words, with commas between them."""

    def parse(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}")
        return sorted(set(words), key=words.index)

    return parse


def file_to_write(*marks: bytes) -> Callable[[str], str]:
    """An argument type: the path of a file that is not there yet, or is empty, or that this command wrote.

    Nothing else is replaced, be it the recording itself. One of `marks` stands where such a file begins.
    """

    def parse(text: str) -> str:
        path = Path(text)
        if not path.name or text.endswith(("/", os.sep)) or (path.exists() and not path.is_file()):
            raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file")
        if path.exists():
            with open(path, "rb") as file:
                begin = file.read(200)
            if begin and not any(mark in begin for mark in marks):
                raise argparse.ArgumentTypeError(
                    f"{text}: is no file of this command, and would be replaced; name another file"
                )
        return text

    return parse


def same_file(path: str, other: str) -> bool:
    """Whether two paths lead to one file, be it there or not."""
    return os.path.realpath(path) == os.path.realpath(other)


model_file = file_to_write(b"/data.pkl")  #: which a file of `torch.save` begins with


def add_recording_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What of a recording is read: --channel, --plane, --dataset, --axes, --transpose, --crop, --frames."""
    group = parser.add_argument_group("reading the recording")
    group.add_argument(
        "--channel",
        type=number_in(int, 0),
        metavar="N",
        help="which channel to read of a recording that has several; without it they are refused, with their "
        "numbers (channels are never averaged with each other)",
    )
    group.add_argument(
        "--plane",
        type=number_in(int, 0),
        metavar="N",
        help="which plane (depth) to read of a recording that has several",
    )
    group.add_argument(
        "--dataset",
        metavar="NAME",
        help="which dataset of an HDF5 or NWB file is the movie, where it has several; without it they are "
        "listed",
    )
    group.add_argument(
        "--axes",
        metavar="LETTERS",
        help="a letter for each axis of an HDF5 dataset that does not say them: T time, Y rows, X columns, Z "
        "planes, C channels; for example YXT for rows x columns x time",
    )
    group.add_argument(
        "--transpose",
        action="store_true",
        help="exchange rows and columns of the frames, for files that have them the other way round",
    )
    group.add_argument(
        "--crop",
        type=rows_and_columns,
        metavar="ROW:ROW,COLUMN:COLUMN",
        help="only this part of the image, as a recording of its own, NAME.rows100-300.columns50-250 for "
        "100:300,50:250: rows from 100 to before 300, counted from 0 as neurons' coordinates are. Neurons "
        "are cut at its edges. So a corner can be learned from where all cells are marked, and no other",
    )
    group.add_argument(
        "--frames",
        type=frame_numbers,
        metavar="FIRST:LAST",
        help="only these frames, counted from 1, for example 1:200 (default: all)",
    )
    return group


def add_scale_option(group: argparse._ActionsContainer) -> None:
    """--pixels-per-micron."""
    group.add_argument(
        "--pixels-per-micron",
        type=number_in(float, LEAST_SCALE, LARGEST_SCALE),
        metavar="N",
        help="the scale, where no info.json says it (default: as the frames' files say, otherwise unknown)",
    )


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `open_recording` is told of the options of `add_recording_options`."""
    return {key: getattr(args, key) for key in ("channel", "plane", "dataset", "transpose", "axes", "crop")}


def chosen_of_recording(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_recording_options`, see `prepared.READING`."""
    return {**reading_options(args), "frames": args.frames}


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """--iterations, --batch-size, --recipe, --background and --start-from."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--iterations",
        type=number_in(int, 1),
        metavar="N",
        help="training steps; 800 are enough for a first look, and much more than the default gains nothing "
        "(default: 2500; with --recipe 2016 10000; with --start-from 100)",
    )
    group.add_argument(
        "--batch-size",
        type=number_in(int, 2),
        default=100,
        metavar="N",
        help="40 x 40 windows per training step, half of them centred on a neuron; processes share "
        "a step if each has 200 of them, since with fewer it does not pay (default: 100)",
    )
    group.add_argument(
        "--recipe",
        type=recipe,
        metavar="{standard,2016}",
        help="2016 is the method of the challenge's entry to the letter: windows flipped only, one learning "
        "rate to the end, and unless --regions says otherwise connected pixels as neurons; standard turns "
        "windows in all eight ways, keeps touching neurons apart in the masks, has higher learning rates "
        "that go down to zero and normalizes contrast: it finds more neurons, sooner (default: standard, "
        "with --model and --start-from that of the weights)",
    )
    group.add_argument(
        "--background",
        choices=("keep", "subtract", "normalize"),
        help="subtract takes the local brightness off each image before the network sees it; normalize "
        "makes local contrast alike too, so that one network learns from dim and bright recordings of "
        "several microscopes (default: normalize; with --recipe 2016 keep; with --model and --start-from "
        "that of the weights)",
    )
    group.add_argument(
        "--start-from",
        metavar="FILE",
        help="begin the training with the weights that conv2d_predict.py saved earlier, not with random "
        "ones, and train the small layers alone: in a quarter of a minute, and from few marked neurons, a "
        "network that knows other recordings learns yours. Recordings that they were trained on cannot be "
        "held out",
    )


def add_detection_options(parser: argparse.ArgumentParser) -> None:
    """--stride, --regions, --threshold and --smallest-area."""
    group = parser.add_argument_group("finding neurons")
    group.add_argument(
        "--stride",
        type=number_in(int, 1, LARGEST_STRIDE),
        default=1,
        metavar="PX",
        help="pixels between two windows of the probability map; 1 is the method, 4 takes a sixteenth "
        "of the time and finds nearly the same (default: 1)",
    )
    group.add_argument(
        "--regions",
        choices=("watershed", "connected"),
        help="how labelled pixels become neurons: watershed tells touching neurons apart, and gives each the "
        "pixels beside it that are nearly neuron; connected gives plain connected components (default: "
        "watershed; connected with --recipe 2016)",
    )
    group.add_argument(
        "--threshold",
        type=number_in(float, 0, 1),
        metavar="P",
        help="pixels whose probability of being neuron is above this are neuron: higher finds fewer neurons "
        "and with more confidence, lower than 0.45 adds faint ones between those found at 0.45; the "
        "cross-validation draws what each threshold gives, and names a better one (default: 0.45, or another "
        "one at which training recordings are found better whose names begin alike, as mouse3_monday and "
        "mouse3_friday, or all where no two names do; with --regions connected 0.5)",
    )
    group.add_argument(
        "--smallest-area",
        type=number_in(float, 1),
        metavar="PX",
        help="regions of fewer pixels are dropped (default: two fifths of the median area of the neurons "
        "found in the recording, or of the labelled ones where few are found)",
    )


def add_running_options(parser: argparse.ArgumentParser) -> None:
    """--seed, --device, --precision, --resume, --keep-checkpoint and --checkpoint-every."""
    group = parser.add_argument_group("running")
    group.add_argument(
        "--seed",
        type=number_in(int, 0, 2**31),
        default=0,
        metavar="N",
        help="of every random number; the same seed on the same machine and device gives the same files, but "
        "on xpu and mps PyTorch does not promise it (default: 0)",
    )
    add_device_option(group)
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the network's arithmetic; auto takes bfloat16 where CPU or CUDA GPU are faster with it "
        "(default: auto)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on from where the same command was stopped, by Ctrl-C or a crash; the result is that of a "
        "run in one go, to the bit on a CPU; with torchrun --max-restarts to be given from the start",
    )
    group.add_argument(
        "--keep-checkpoint",
        action="store_true",
        help="keep the folder with the state of the training (6 MB, or 1 GB with --recipe 2016; of each "
        "fold) when all is done",
    )
    group.add_argument(
        "--checkpoint-every",
        type=number_in(float, 0),
        default=10.0,
        metavar="MINUTES",
        help="how often that state is written; at most so much is lost (default: 10)",
    )


def add_device_option(parser: argparse._ActionsContainer) -> None:
    """--device; whether there is such a one PyTorch says, which takes a second to load."""
    parser.add_argument(
        "--device",
        type=device_name,
        default="auto",
        metavar="{auto,cpu,cuda,cuda:1,xpu,mps}",
        help="where the network computes: cuda is an NVIDIA or AMD GPU, cuda:1 the second of several, xpu an "
        "Intel GPU, mps an Apple one; auto takes cuda where there is one, else cpu (default: auto)",
    )


def device_name(text: str) -> str:
    """An argument type: a device as PyTorch names it."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:1, ..., xpu, mps")
    return text


def recipe(text: str) -> str:
    """An argument type: the name of a recipe; `now` is what the standard one was called first."""
    if text not in RECIPES:
        raise argparse.ArgumentTypeError(f"{text!r} is neither standard nor 2016")
    return RECIPES[text]


def animation_options(description: str) -> argparse.Namespace:
    """The command line of play_animation.py."""
    parser = Parser(description, "python play_animation.py neurofinder.00.00 --speed 4 --save movie.gif")
    parser.add_argument(
        "recording",
        metavar="RECORDING",
        help=RECORDING_HELP,
    )
    parser.add_argument(
        "--submission",
        metavar="FILE",
        help="outline the neurons that this submission.json of conv2d_predict.py has for the recording "
        "(default: the labelled ones)",
    )
    parser.add_argument(
        "--speed",
        type=number_in(float, 0.01, 1000),
        default=1.0,
        metavar="FACTOR",
        help="1 plays as fast as the recording was made, or 30 frames a second where it does not say; "
        "10 plays ten times as fast (default: 1)",
    )
    parser.add_argument(
        "--save",
        type=file_to_write(b"GIF8", b"ftyp"),
        metavar="FILE",
        help="write the movie into this .gif, or .mp4 where ffmpeg is installed, and open no window; a .gif "
        "has the first 100 frames unless --frames says which (default: a window)",
    )
    add_recording_options(parser)
    return parser.parse_args()


def frame_numbers(text: str) -> tuple[int, int]:
    """An argument type: FIRST:LAST, two whole numbers from 1."""
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"{text} is not FIRST:LAST, for example 1:200")
    return first, last


def rows_and_columns(text: str) -> list[list[int]]:
    """An argument type: ROW:ROW,COLUMN:COLUMN, whole numbers from 0, each end after its beginning."""
    match = re.fullmatch(r"([0-9]+):([0-9]+),([0-9]+):([0-9]+)", text)
    top, bottom, left, right = map(int, match.groups()) if match else (0, 0, 0, 0)
    if not (top < bottom and left < right):
        raise argparse.ArgumentTypeError(f"{text} is not ROW:ROW,COLUMN:COLUMN, for example 100:300,50:250")
    return [[top, bottom], [left, right]]


def preprocessing_options(description: str) -> argparse.Namespace:
    """The command line of preprocessing.py."""
    parser = Parser(description, "python preprocessing.py neurofinder.00.00 neurofinder.01.00 train")
    parser.add_argument("recordings", nargs="+", metavar="RECORDING", help=RECORDING_HELP)
    parser.add_argument("output_folder", metavar="OUTPUT_FOLDER", help="made if it is missing")
    parser.add_argument("--show", action="store_true", help="also open a window with each picture")
    add_recording_options(parser)
    group = parser.add_argument_group("what goes with the recording")
    group.add_argument(
        "--labels",
        metavar="FILE",
        help="the labelled neurons, wherever they are: regions.json, ImageJ ROIs (.zip, .roi or a folder of "
        "them), a label image (.tif, .png), Suite2p's stat.npy, Cellpose's _seg.npy, or a submission.json "
        "whose neurons someone corrected; for one RECORDING (default: those in or beside the recording)",
    )
    group.add_argument(
        "--move-labels",
        nargs=2,
        type=int,
        metavar=("ROWS", "COLUMNS"),
        help="move all labels by so many rows down and columns right, -1 -1 where their pixels were counted "
        "from 1; what leaves the image is cut off. This command says where labels lie beside their cells "
        "(default: 0 0; labels of a part that --crop cut out earlier have to be moved by its first row and "
        "column)",
    )
    add_scale_option(group)
    args = parser.parse_args()
    if args.labels is not None and len(args.recordings) > 1:
        parser.error("--labels is for one RECORDING; prepare the recordings one by one")
    return args


def crossvalidation_options(description: str) -> argparse.Namespace:
    """The command line of conv2d_crossvalidation.py."""
    parser = Parser(
        description,
        "python conv2d_crossvalidation.py train --folds 3 --iterations 3000\n"
        "  torchrun --standalone --nproc-per-node 5 conv2d_crossvalidation.py train",
        shared=True,
    )
    group = parser.add_argument_group("input and output")
    group.add_argument("train_folder", metavar="TRAIN_FOLDER", help="holds X_NAME.npy and y_NAME.npy files")
    group.add_argument(
        "--folds",
        type=number_in(int, 2),
        default=5,
        metavar="K",
        help="networks to train, at most one per recording, or per group of --groups (default: 5)",
    )
    group.add_argument(
        "--groups",
        metavar="GROUPS",
        help="recordings that belong together, of one animal, field or laboratory, are held out together: "
        "prefix takes the beginning of their names for the group, up to the first . _ - or space; anything "
        'else is a JSON file, {"NAME": "GROUP", ...} (default: every recording by itself)',
    )
    group.add_argument(
        "--output",
        type=file_to_write(b'"train_folder"'),
        default="crossvalidation.json",
        metavar="FILE",
        help="the scores and settings; beside it go crossvalidation.report.html, to be opened in a browser, "
        "and one picture per recording, all under the name of FILE (default: crossvalidation.json)",
    )
    add_training_options(parser)
    add_detection_options(parser)
    add_running_options(parser)
    return parser.parse_args()


def prediction_options(description: str) -> argparse.Namespace:
    """The command line of conv2d_predict.py."""
    from neurodetect.formats.exports import FORMATS, WITH_TRACES

    parser = Parser(
        description,
        "python conv2d_predict.py train test --save-model weights.pt\n"
        "  python conv2d_predict.py test --model weights.pt\n"
        "  python conv2d_predict.py monday/mouse1.tif monday/mouse2.tif --model weights.pt "
        "--output monday/found.json\n"
        "  torchrun --standalone --nproc-per-node 4 conv2d_predict.py test --model weights.pt",
        shared=True,
    )
    group = parser.add_argument_group("input and output")
    group.add_argument(
        "train_folder", nargs="?", metavar="TRAIN_FOLDER", help="holds X_NAME.npy and y_NAME.npy files"
    )
    group.add_argument(
        "tests",
        nargs="+",
        metavar="TEST_FOLDER",
        help="holds X_NAME.npy files; or a RECORDING, or several, which are prepared on the way, as "
        "preprocessing.py does, into the folder of --output",
    )
    group.add_argument(
        "--output",
        type=file_to_write(b'"dataset"'),
        default="submission.json",
        metavar="FILE",
        help="the neurons found; beside it go submission.report.html, to be opened in a browser, a picture "
        "of each recording, and a log of what the result was made from, all under the name of FILE "
        "(default: submission.json)",
    )
    group.add_argument(
        "--save-model",
        type=model_file,
        metavar="FILE",
        help="where the trained weights go (default: model.pt)",
    )
    group.add_argument(
        "--model",
        metavar="FILE",
        help="use these weights of an earlier run and do not train; no TRAIN_FOLDER is given",
    )
    group.add_argument(
        "--export",
        type=choices_in(FORMATS),
        default=[],
        metavar="FORMAT[,FORMAT]",
        help="beside the submission write the neurons for other programs too: imagej (a zip of ROIs for "
        "Fiji), labels (a label image for napari, Cellpose, QuPath), suite2p (a folder for its GUI), csv (a "
        "table); the last two with traces, of recordings that are prepared on the way, or whose frames "
        "--recordings finds",
    )
    group.add_argument(
        "--recordings",
        metavar="FOLDER",
        help="where the recordings of TEST_FOLDER lie under their names, or the one recording itself: the "
        "exports suite2p and csv then have the traces of the neurons, which a mean image has not. Frames are "
        "read as preprocessing.py read them, and refused if their mean is not the prepared image",
    )
    add_training_options(parser)
    add_detection_options(parser)
    add_running_options(parser)
    add_scale_option(add_recording_options(parser))
    args = parser.parse_args()
    if args.train_folder is None and args.model is None:
        parser.error("give TRAIN_FOLDER and TEST_FOLDER, or TEST_FOLDER and --model FILE")
    if args.model is not None and args.start_from is not None:
        parser.error("with --model nothing is trained; give the weights to --model or to --start-from")
    if args.model is not None and args.save_model:
        warn(f"with --model nothing is trained, so that {args.save_model} is not written")
    try:
        args.save_model = args.save_model or (model_file("model.pt") if args.model is None else None)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    if args.start_from and same_file(args.save_model, args.start_from):
        parser.error(f"{args.start_from} would be replaced; name another file with --save-model")
    if args.save_model and same_file(args.save_model, args.output):
        parser.error(f"{args.output} cannot be both --output and --save-model; name another file for one")
    if args.train_folder is not None and args.model is not None:
        args.train_folder, args.tests = None, [args.train_folder, *args.tests]
    if args.recordings is not None and not set(args.export) & set(WITH_TRACES):
        parser.error("--recordings is for the traces of --export suite2p or csv; add one of them")
    return args


def scoring_options(description: str) -> argparse.Namespace:
    """The command line of `python -m neurodetect.scoring`."""
    parser = Parser(
        description,
        "python -m neurodetect.scoring test submission.json\n"
        "  python -m neurodetect.scoring neurofinder.00.00/regions/regions.json RoiSet.zip --threshold 5",
        prog="python -m neurodetect.scoring",
    )
    parser.add_argument("truth", metavar="TRUTH", help="labels of one recording, or a folder of them")
    parser.add_argument("estimate", metavar="ESTIMATE", help="submission.json, or neurons of one recording")
    parser.add_argument(
        "--threshold",
        type=number_in(float, 0),
        metavar="PX",
        help="centres less than this apart are the same neuron (default: 5 µm in whole pixels where the "
        "recording's scale is known, 5 px elsewhere)",
    )
    return parser.parse_args()


def labels_options(description: str) -> argparse.Namespace:
    """The command line of `python -m neurodetect.labels`."""
    parser = Parser(
        description,
        "python -m neurodetect.labels RoiSet.zip mouse1/regions/regions.json",
        prog="python -m neurodetect.labels",
    )
    parser.add_argument("labels", metavar="LABELS", help="the file to read")
    parser.add_argument(
        "regions",
        type=file_to_write(b'"coordinates"', b"[]"),
        metavar="regions.json",
        help="the file to write; its folder is made if it is missing",
    )
    parser.add_argument(
        "--shape",
        nargs=2,
        type=number_in(int, 1, LARGEST_SIDE),
        metavar=("H", "W"),
        help="rows and columns of the recording: what lies outside is then refused, or of a ROI cut off",
    )
    args = parser.parse_args()
    if same_file(args.labels, args.regions):
        parser.error(f"{args.labels} would be replaced; name another file to write")
    if not args.regions.lower().endswith(".json"):
        parser.error(f"{args.regions} does not end in .json: name the labels first, then the file to write")
    return args


def demo_options(description: str) -> argparse.Namespace:
    """The command line of `python -m neurodetect.demo`."""
    parser = Parser(description, "python -m neurodetect.demo demo", prog="python -m neurodetect.demo")
    parser.add_argument(
        "folder", nargs="?", default="demo", metavar="FOLDER", help="where everything goes (default: demo)"
    )
    add_device_option(parser)
    return parser.parse_args()


def read_settings(
    args: argparse.Namespace, trained_on: Mapping[str, Any] | None = None
) -> tuple[TrainingSettings, DetectionSettings]:
    """The options, what they leave open resolved, as the settings of a run: how to train, how to find.

    Several processes are connected, since the device is now known.

    Parameters
    ----------
    args : argparse.Namespace
        With an option for each field of the two dataclasses.
    trained_on : mapping, optional
        Settings of the weights that are used instead of training, or started from.

    Raises
    ------
    UserError
        The device is not there, or not for all processes.
    """
    from neurodetect.detection import DetectionSettings, TrainingSettings
    from neurodetect.device import choose_device, choose_precision
    from neurodetect.regions import THRESHOLD
    from neurodetect.training import ITERATIONS, TRAINED_ITERATIONS

    device = choose_device(args.device)
    processes.start(device)
    weights = vars(args).get("model") or args.start_from
    recipe = RECIPES[(trained_on or {}).get("recipe", "standard")]
    if args.recipe not in (None, recipe):
        if trained_on is not None and not args.start_from:
            warn(f"{weights} was trained with --recipe {recipe}, which counts")
        else:
            recipe = args.recipe
    # Weights that do not say were trained before there was a choice.
    background = (trained_on or {}).get("background", "keep")
    if trained_on is None:
        background = args.background or ("keep" if recipe == "2016" else "normalize")
    elif args.background not in (None, background):
        warn(f"{weights} was trained with --background {background}, which counts")
    regions = args.regions or ("connected" if recipe == "2016" else "watershed")
    threshold = None if regions == "watershed" else THRESHOLD  # None: learned from the training recordings
    options = vars(args) | {
        "iterations": args.iterations or (TRAINED_ITERATIONS if args.start_from else ITERATIONS[recipe]),
        "recipe": recipe,
        "background": background,
        "regions": regions,
        "threshold": threshold if args.threshold is None else args.threshold,
        "device": str(device),
        "precision": choose_precision(args.precision, device),
    }
    # A field without an option of its name is a KeyError, and never a setting that nobody compares.
    training, detection = (
        kind(**{field.name: options[field.name] for field in fields(kind)})
        for kind in (TrainingSettings, DetectionSettings)
    )
    return training, detection  # type: ignore[return-value]


def log_settings(*settings: Any, **others: Any) -> dict[str, Any]:
    """What a result was made with, for its log: dataclasses of settings, others, versions of the packages."""
    options = {key: value for one in settings for key, value in asdict(one).items()} | others
    versions = {"neurodetect": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from another kind of installation than pip's
            versions[package] = "unknown"
    say("\n".join(f"{key}: {value}" for key, value in {**options, **versions}.items()), level=2)
    return {**options, "versions": versions}


def beside(output: str | Path, ending: str) -> Path:
    """The file beside a result that begins with its name: `scores.json` and `.log.json` to `scores.log.json`.

    Of the name nothing but a suffix .json is taken off, so that `run.1` and `run.2` share no file.
    """
    output = Path(output)
    stem = output.stem if output.suffix.lower() == ".json" else output.name
    return output.with_name(stem + ending)


def unfinished_run(
    args: argparse.Namespace, settings: dict[str, Any], **digests: dict[str, str]
) -> UnfinishedRun:
    """The unfinished run beside `--output`, to be begun or gone on with as the resume options say.

    Parameters
    ----------
    args : argparse.Namespace
    settings : dict
        Of `log_settings`: a run is resumed with the same only, but for versions of packages other than
        PyTorch's.
    **digests : dict of str to str
        SHA-256 of the files of a kind, by name; they have to be the same too.
    """
    from neurodetect.resume import UnfinishedRun, differences

    files = {f"{kind} file {name}": value for kind, of in digests.items() for name, value in of.items()}
    torch_version = settings["versions"]["torch"]
    options = {key: value for key, value in settings.items() if key != "versions"}
    identity = {**options, "PyTorch": torch_version, **files}
    if changes := differences(processes.first_word(identity), identity):
        raise UserError(
            f"on {platform.node()} {'; '.join(changes)}: all processes have to see the same files, with "
            "the same PyTorch, on processors or GPUs alike"
        )
    run = UnfinishedRun(
        beside(args.output, ".unfinished"),
        identity,
        resume=args.resume,
        seconds=60 * args.checkpoint_every,
        keep=args.keep_checkpoint,
    )
    if args.resume:
        say(
            f"Going on with the run in {run.folder}"
            if run.resumed
            else "Nothing to resume, starting from the beginning"
        )
    return run


def say(text: str, level: int = 1) -> None:
    """Tell the user something, at once: at level 0 in any case, 1 unless --quiet, 2 if --verbose."""
    if level <= _level and processes.FIRST:
        moment = f"[{time.monotonic() - _started:.1f} s] " if _level == 2 else ""
        print(moment + printable(text), flush=True)


def warn(text: str) -> None:
    """Tell the user on standard error what the result may suffer from."""
    if processes.FIRST:
        print(f"warning: {printable(one_line(text))}", file=sys.stderr, flush=True)


def count(number: int, thing: str) -> str:
    """E.g. "1 neuron", "2 neurons"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """The text with control characters spelt out: names come from strangers, and terminals obey."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and exit: 0; 2 after one line on what to mend; 130, 143 after Ctrl-C, SIGTERM.

    A bug keeps its traceback. Of several processes the first that ends before its time speaks, and all
    exit with its code; 1 where one was lost without a word.
    """
    program = os.path.basename(sys.argv[0])
    make_printable()
    signal.signal(signal.SIGTERM, terminate)
    warnings.showwarning = lambda message, *_: warn(str(message))  # one line, without a place in our code
    warnings.filterwarnings("ignore", "Glyph .* missing")  # a recording's name in letters that the font lacks
    sys.unraisablehook = interrupt_again
    try:
        main()
        processes.finish()
        sys.stdout.flush()
    except UserError as error:
        stop(program, str(error), 2)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; there is no one left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(1)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        stop(program, f"{named}{reason(error)}; check the path, its permissions and the disk", 2)
    except MemoryError:
        stop(program, OUT_OF_MEMORY, 2)
    except RuntimeError as error:
        from neurodetect.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        stop(program, OUT_OF_MEMORY, 2)
    except KeyboardInterrupt as interrupt:
        code = 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)
        if isinstance(interrupt, processes.Lost):
            code = 1
        stop(program, "; ".join(["stopped", *map(str, interrupt.args)]), code)
    leave(0)


def make_printable() -> None:
    """Let nothing that is said fail for a terminal's encoding, which may lack µ, or for there being none."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # whoever started us closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def terminate(*_: object) -> NoReturn:
    """What SIGTERM does."""
    raise Terminated


def interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """What is done with an exception that Python cannot raise, while it tidies up: a signal comes again."""
    if os.name != "posix" or not isinstance(ignored.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(ignored)
        return
    number = signal.SIGTERM if isinstance(ignored.exc_value, Terminated) else signal.SIGINT
    main_thread = threading.main_thread().ident
    threading.Timer(0.1, signal.pthread_kill, (main_thread, number)).start()


def stop(program: str, message: str, code: int) -> NoReturn:
    """Exit with one line on standard error, however many lines the message had."""
    its_code = processes.last_word(code)
    if its_code is None:
        print(f"{program}: {printable(one_line(message))}", file=sys.stderr)
    leave(code if its_code is None else its_code)


def leave(code: int) -> NoReturn:
    """Exit with a code, all being done.

    Several processes do not take Python's own way out, on which a thread of PyTorch's that still wants the
    interpreter may abort the process; torchrun then calls a finished run a failed one.
    """
    if processes.SIZE > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
