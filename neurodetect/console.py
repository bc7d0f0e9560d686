"""What the scripts share: arguments, what is said to the user, one-line errors.

Nothing heavy is imported here, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from neurodetect import __version__
from neurodetect.files import UserError, reason

# A training step makes and frees gigabytes; with huge pages that takes half the time. PyTorch reads
# this when it is imported, after the arguments are parsed.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

LARGEST_STRIDE = 20  #: pixels; windows further apart would leave pixels without a prediction
PACKAGES = ("numpy", "scipy", "scikit-image", "scikit-learn", "torch", "matplotlib", "tifffile")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose help keeps the author's line breaks."""

    def __init__(self, description: str, example: str) -> None:
        super().__init__(
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

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


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """--iterations and --batch-size."""
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


def add_detection_options(parser: argparse.ArgumentParser) -> None:
    """--stride, --regions, --seed, --device and --precision."""
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
        help="how labelled pixels become neurons: watershed tells touching neurons apart, connected "
        "gives plain connected components (default: watershed)",
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


def settings(args: argparse.Namespace, **resolved: Any) -> dict[str, Any]:
    """What a result was made with: options, what they were resolved to, versions of the packages."""
    versions = {"neurodetect": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from another kind of installation than pip's
            versions[package] = "unknown"
    return {**vars(args), **resolved, "versions": versions}


def say(text: str) -> None:
    """Tell the user something on standard output, at once."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Tell the user on standard error what the result may suffer from."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and exit: 0, 2 after one line on what to mend, 130 after Ctrl-C.

    A bug keeps its traceback.
    """
    program = os.path.basename(sys.argv[0])
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
    except KeyboardInterrupt:
        stop(program, "stopped", 130)
    sys.exit(0)


def stop(program: str, message: str, code: int) -> NoReturn:
    """Exit with one line on standard error, however many lines the message had."""
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
