"""What the scripts share: arguments, what is said to the user, one-line errors.

Nothing heavy is imported here, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from neurodetect import __version__, progress
from neurodetect.files import UserError, reason

if TYPE_CHECKING:
    from neurodetect.checkpoint import UnfinishedRun

# A training step makes and frees gigabytes; with huge pages that takes half the time. PyTorch reads
# this when it is imported, after the arguments are parsed.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# The same sums in the same order on a GPU too; read when CUDA's libraries are loaded.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

LARGEST_STRIDE = 20  #: pixels; windows further apart would leave pixels without a prediction
RUN_CONTROL = ("resume", "keep_checkpoint", "checkpoint_every", "quiet", "verbose")  #: change no result
PACKAGES = ("numpy", "scipy", "scikit-image", "scikit-learn", "torch", "matplotlib", "tifffile")


RECORDING_HELP = (
    "a neurofinder folder (images/*.tiff, info.json), a folder of TIFF frames, or one TIFF, HDF5 or NWB "
    "file; its labels, if any, are regions.json, ImageJ ROIs (.zip, .roi) or a label image (.tif, .png): in "
    "the folder's regions/, or beside movie.tif as movie.regions.json, movie.regions.zip, ..."
)

_started = time.monotonic()
_level = 1  #: 0 quiet, 1 what a user wants to know, 2 verbose


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose help keeps the author's line breaks.

    It has --quiet and --verbose, and sets what `say` and progress bars do.
    """

    def __init__(self, description: str, example: str) -> None:
        super().__init__(
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        amount = self.add_mutually_exclusive_group()
        amount.add_argument("-q", "--quiet", action="store_true", help="say nothing but results and warnings")
        amount.add_argument(
            "--verbose", action="store_true", help="also say the settings, and the seconds since the start"
        )

    def parse_args(self, *arguments: Any) -> argparse.Namespace:
        global _level
        args = super().parse_args(*arguments)
        _level = 0 if args.quiet else 2 if args.verbose else 1
        progress.hidden = args.quiet
        return args

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def number_in(kind: type, lowest: float, highest: float = float("inf")) -> Callable[[str], Any]:
    """An argument type: a number of this kind from `lowest` to `highest`, both included."""
    limits = f"at least {lowest}" if highest == float("inf") else f"from {lowest} to {highest}"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not lowest <= value <= highest:
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


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """--iterations, --batch-size, --recipe and --background."""
    parser.add_argument(
        "--iterations",
        type=number_in(int, 1),
        default=10_000,
        metavar="N",
        help="training steps; more is better and slower, 3000 are enough for a first look (default: 10000)",
    )
    parser.add_argument(
        "--batch-size",
        type=number_in(int, 2),
        default=100,
        metavar="N",
        help="40 x 40 windows per training step, half of them centred on a neuron (default: 100)",
    )
    parser.add_argument(
        "--recipe",
        choices=("now", "2016"),
        default="now",
        help="2016 trains as the challenge's entry was: windows flipped only, one learning rate to the end; "
        "now turns them in all eight ways, keeps touching neurons apart in the masks and "
        "lets the learning rate go down to zero, which finds more neurons "
        "(default: now)",
    )
    parser.add_argument(
        "--background",
        choices=("keep", "subtract"),
        default="keep",
        help="subtract takes the local brightness off each image before the network sees it: for images "
        "with bright and dark areas, and for recordings from another microscope than the labelled ones; "
        "with --model it is as those weights were trained (default: keep)",
    )


def add_detection_options(parser: argparse.ArgumentParser) -> None:
    """--stride, --regions, --threshold, --smallest-area, --seed, --device and --precision."""
    parser.add_argument(
        "--stride",
        type=number_in(int, 1, LARGEST_STRIDE),
        default=1,
        metavar="PX",
        help="pixels between two windows of the probability map; 1 is the method, 4 takes a sixteenth "
        "of the time and finds nearly the same (default: 1)",
    )
    parser.add_argument(
        "--regions",
        choices=("watershed", "connected"),
        default="watershed",
        help="how labelled pixels become neurons: watershed tells touching neurons apart, adds a rim of "
        "one pixel where the probability is nearly high enough, and drops what is much less probable "
        "than the others; connected gives plain connected components (default: watershed)",
    )
    parser.add_argument(
        "--threshold",
        type=number_in(float, 0, 1),
        default=0.5,
        metavar="P",
        help="pixels whose probability of being neuron is above this are neuron: higher finds fewer and "
        "surer ones; the cross-validation draws what each threshold gives (default: 0.5)",
    )
    parser.add_argument(
        "--smallest-area",
        type=number_in(float, 1),
        metavar="PX",
        help="regions of fewer pixels are dropped (default: two fifths of the labelled neurons' median area, "
        "in µm² where the scale of all recordings is known)",
    )
    parser.add_argument(
        "--seed",
        type=number_in(int, 0, 2**31),
        default=0,
        metavar="N",
        help="of every random number; the same seed on the same machine gives the same files (default: 0)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the network computes; auto takes a CUDA GPU where there is one (default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the network's arithmetic; auto takes bfloat16 where the processor is faster with it "
        "(default: auto)",
    )


def add_resume_options(parser: argparse.ArgumentParser) -> None:
    """--resume, --keep-checkpoint and --checkpoint-every."""
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from where the same command was stopped, by Ctrl-C or a crash; the result is that of a "
        "run in one go",
    )
    parser.add_argument(
        "--keep-checkpoint",
        action="store_true",
        help="keep the folder with the state of the training (1 GB) when all is done",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=number_in(float, 0),
        default=10.0,
        metavar="MINUTES",
        help="how often that state is written; at most so much is lost (default: 10)",
    )


def settings(args: argparse.Namespace, **resolved: Any) -> dict[str, Any]:
    """What a result was made with: options, what they were resolved to, versions of the packages."""
    options = {key: value for key, value in vars(args).items() if key not in RUN_CONTROL}
    versions = {"neurodetect": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from another kind of installation than pip's
            versions[package] = "unknown"
    options |= resolved
    say("\n".join(f"{key}: {value}" for key, value in {**options, **versions}.items()), level=2)
    return {**options, "versions": versions}


def identity(settings: dict[str, Any], **digests: dict[str, str]) -> dict[str, Any]:
    """What a run has to have in common with the one that it resumes: options that count, PyTorch, the data.

    Parameters
    ----------
    settings : dict
        Of `settings`.
    **digests : dict of str to str
        SHA-256 of the files of a kind, by name.
    """
    keys = (
        *("iterations", "batch_size", "recipe", "background", "folds", "stride"),
        *("regions", "threshold", "smallest_area", "seed", "device", "precision"),
    )
    files = {f"{kind} file {name}": value for kind, of in digests.items() for name, value in of.items()}
    return {
        **{key: settings[key] for key in keys if key in settings},
        "PyTorch": settings["versions"]["torch"],
        **files,
    }


def unfinished_run(args: argparse.Namespace, identity: dict[str, Any]) -> UnfinishedRun:
    """The unfinished run beside `--output`, to be begun or gone on with as the resume options say."""
    from neurodetect.checkpoint import UnfinishedRun

    run = UnfinishedRun(
        Path(args.output).with_suffix(".unfinished"),
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
    if level <= _level:
        moment = f"[{time.monotonic() - _started:.1f} s] " if _level == 2 else ""
        print(moment + printable(text), flush=True)


def warn(text: str) -> None:
    """Tell the user on standard error what the result may suffer from."""
    print(f"warning: {printable(one_line(text))}", file=sys.stderr, flush=True)


def count(number: int, thing: str) -> str:
    """E.g. "1 neuron", "2 neurons"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def one_line(text: str) -> str:
    """The text with a space for every run of spaces and line breaks."""
    return " ".join(text.split())


def printable(text: str) -> str:
    """The text with control characters spelt out: names come from strangers, and terminals obey."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and exit: 0; 2 after one line on what to mend; 130, 143 after Ctrl-C, SIGTERM.

    A bug keeps its traceback.
    """
    program = os.path.basename(sys.argv[0])
    signal.signal(signal.SIGTERM, terminate)
    warnings.showwarning = lambda message, *_: warn(str(message))  # one line, without a place in our code
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        stop(program, str(error), 2)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; there is no one left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        stop(program, f"{named}{reason(error)}; check the path, its permissions and the disk", 2)
    except MemoryError:
        stop(program, "out of memory; close other programs, or use a larger --stride or smaller batch", 2)
    except KeyboardInterrupt as interrupt:
        number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
        stop(program, "; ".join(["stopped", *map(str, interrupt.args)]), 128 + number)
    sys.exit(0)


def terminate(*_: object) -> NoReturn:
    """What SIGTERM does."""
    raise Terminated


def stop(program: str, message: str, code: int) -> NoReturn:
    """Exit with one line on standard error, however many lines the message had."""
    print(f"{program}: {printable(one_line(message))}", file=sys.stderr)
    sys.exit(code)
