"""Unfinished work on disk: what a run that was stopped needs to go on as if it had not been."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurodetect.files import UserError, read_array, read_json, reason, write_array, write_json, write_whole

CHECKPOINT_FORMAT = "neurodetect checkpoint 1"
CHECKPOINT_BYTES = 3 * 81_073_300 * 4  #: the weights and Adam's two means of them, float32


class UnfinishedRun:
    """A folder beside the output that holds what a run has done so far; it goes when the run is done.

    Used in a `with` block around the work. Stopped there, by Ctrl-C or by an error, the folder stays, and
    the same run with `resume` goes on from it.

    Parameters
    ----------
    folder : str or Path
        Made if it is missing.
    identity : dict
        Settings that the result depends on, and digests of the data. A run is resumed with the same only.
    resume : bool
        Go on from what the folder holds, if it holds anything.
    seconds : float
        Between two checkpoints of a training.
    keep : bool
        Leave the folder when the run is done.

    Attributes
    ----------
    resumed : bool
        There was something to go on from.

    Raises
    ------
    UserError
        The folder holds unfinished work and `resume` was not asked for; or it was, and that work was
        begun with other settings or data.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: dict[str, Any],
        *,
        resume: bool,
        seconds: float,
        keep: bool = False,
    ) -> None:
        self.folder, self.seconds, self.keep = Path(folder), seconds, keep
        self._file = self.folder / "run.json"
        self.resumed = self._holds_work()
        if not self.resumed:
            self._state = {"identity": identity, "notes": {}}
            write_json(self._file, self._state)
            return
        if not resume:
            raise UserError(
                f"{self.folder}: holds a run that was stopped; add --resume to go on with it, "
                "or remove that folder to start anew"
            )
        self._state = read_json(self._file)
        if not isinstance(self._state, dict) or self._state.keys() != {"identity", "notes"}:
            raise UserError(f"{self._file}: is damaged; remove {self.folder} to start anew")
        differences = compare(self._state["identity"], identity)
        if differences:
            raise UserError(
                f"{self.folder}: cannot be resumed, since {'; '.join(differences)}; "
                "run it as it was begun, or remove that folder to start anew"
            )

    def __enter__(self) -> UnfinishedRun:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if not self._holds_work() or (kind is None and not self.keep):
            shutil.rmtree(self.folder)
        elif isinstance(error, KeyboardInterrupt):
            error.args = (f"add --resume to the same command to go on; until then keep {self.folder}",)

    def _holds_work(self) -> bool:
        return self._file.exists() and any(
            path != self._file and ".partial" not in path.suffixes for path in self.folder.iterdir()
        )

    def noted(self, key: str) -> Any:
        """What `note` kept under this key, None if nothing."""
        return self._state["notes"].get(key)

    def note(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        self._state["notes"][key] = value
        write_json(self._file, self._state)

    def once(
        self, name: str, compute: Callable[..., np.ndarray], *arguments: Any, **options: Any
    ) -> np.ndarray:
        """The array of this name: what `compute` gives, or gave before the run was stopped."""
        # A name is a stranger's, and may be as long as the name of a file can be.
        path = self.folder / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.npy"
        if path.exists():
            return read_array(path, advice=f"remove {self.folder} to start anew")
        array = compute(*arguments, **options)
        write_array(path, array)
        return array

    def checkpoint(self, name: str) -> Checkpoint:
        """The checkpoint of the training of this name; a run keeps that of one training at a time."""
        return Checkpoint(self.folder / "training.pt", name, self.seconds)


class Checkpoint:
    """One file that holds the state of a training: written whole, read without running code.

    Parameters
    ----------
    path : Path
    name : str
        Of the training; a checkpoint of another one is none.
    seconds : float
        From one writing to the next.
    """

    def __init__(self, path: Path, name: str, seconds: float) -> None:
        self.path, self.name, self.seconds = path, name, seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write a state of tensors, numbers, strings and lists and dicts of them."""
        save_whole(self.path, {"format": CHECKPOINT_FORMAT, "name": self.name, "state": state})

    def load(self) -> dict[str, Any] | None:
        """What `save` wrote, tensors mapped from the file; None if there is nothing of this training.

        Raises
        ------
        UserError
            The file is no checkpoint.
        """
        if not self.path.exists():
            return None
        advice = f"remove {self.path.parent} to start anew"
        content = load_safely(self.path, "a checkpoint", advice, mapped=True)
        if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
            raise UserError(f"{self.path}: is not a checkpoint of this program; {advice}")
        return content["state"] if content["name"] == self.name else None


def compare(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In words, what differs between two flat dicts: one phrase for each key."""
    missing = object()
    phrases = []
    for key in {**before, **now}:
        old, new = before.get(key, missing), now.get(key, missing)
        if old is missing:
            phrases.append(f"{key} is new")
        elif new is missing:
            phrases.append(f"{key} is missing")
        elif old != new:
            digest = isinstance(old, str) and len(old) == len(hashlib.sha256().hexdigest())
            phrases.append(f"{key} has changed" if digest else f"{key} was {old} and is now {new}")
    return phrases


# PyTorch's files


def save_whole(path: str | Path, content: dict[str, Any]) -> None:
    """Write a file of PyTorch's, whole or not at all; the same content gives the same bytes."""
    # Given a path, PyTorch would put the temporary file's name into the file.
    with write_whole(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # What PyTorch says of a full disk is its own trouble with the file that it could not end.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_safely(path: str | Path, kind: str, advice: str, mapped: bool = False) -> Any:
    """Read a file of PyTorch's: tensors, on the CPU, and plain values; code in it is not run.

    Parameters
    ----------
    path : str or Path
    kind, advice : str
        What the file should be, and what the user is told to do if it is not.
    mapped : bool
        Leave tensors in the file until they are used.

    Raises
    ------
    UserError
        The file is missing, truncated, no file of PyTorch's, or would run code.
    """
    try:
        # Only PyTorch's zip format: its older ones begin to unpickle before anything can be checked.
        if not zipfile.is_zipfile(path):
            Path(path).open("rb").close()
            raise UserError(f"{path}: is not {kind}, or is cut short; {advice}")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); {advice}") from error
    except (UserError, MemoryError):
        raise
    except Exception as error:
        # PyTorch meets damage in many ways: RuntimeError, UnpicklingError, UnicodeDecodeError, KeyError, ...
        raise UserError(f"{path}: is damaged or is not {kind}; {advice}") from error


# Being stopped


@contextmanager
def signals_held() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C and SIGTERM back until the block ends, and let it ask whether one came.

    A second one is not held back, nor is one that is ignored, as Ctrl-C is behind `nohup`. Outside the main
    thread nothing is.

    Yields
    ------
    callable
        Without arguments: whether to stop.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def release() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None was none of Python's

    def hold(number: int, _: object) -> None:
        came.append(number)
        release()

    for number in before:
        signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        release()
    if came:
        signal.raise_signal(came[0])
