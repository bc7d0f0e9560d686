"""Unfinished work on disk: what a run that was stopped needs to go on as if it had not been."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from neurodetect import processes
from neurodetect.files import UserError, lock_file, read_array, read_json, write_array, write_json
from neurodetect.processes import ALONE, Team
from neurodetect.weights import WEIGHTS_BYTES, load_safely, save_whole

RUN_FILE = "run.json"
LOCK_FILE = ".lock"  #: held by the run that is writing into the folder
RUN_FORMAT = "neurodetect unfinished run 9"  #: since 9 dense layers are tied in training
# A name is a stranger's, and may be as long as the name of a file can be: files have 16 digits of its hash.
OWN_FILE = re.compile(r"\.?(run|training|[0-9a-f]{16})(\.[0-9]+\.partial)?\.(json|pt|npy)")
CHECKPOINT_FORMAT = "neurodetect checkpoint 1"
#: By recipe: the weights that are trained and Adam's two means of them, float32
CHECKPOINT_BYTES = {recipe: 3 * size for recipe, size in WEIGHTS_BYTES.items()}


class UnfinishedRun:
    """A folder beside the output that holds what a run has done so far; it goes when the run is done.

    Used in a `with` block around the work. Stopped there, by Ctrl-C or by an error, the folder stays, and
    the same run with `resume` goes on from it. Of several processes the first begins and removes it, and all
    write into it: whatever is kept is one file, which one process writes.

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
        Another run has the folder, see `files.lock_file`; it holds unfinished work and `resume` was not asked
        for, or it was, and that work was begun with other settings or data; it holds what no such run has
        written; or the first of several processes began the run in a folder that this one does not see.
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
        self._file = self.folder / RUN_FILE
        if processes.FIRST:
            self._lock = lock_file(self.folder / LOCK_FILE)
            try:
                self._begin(identity, resume)
            except BaseException:
                self._unlock()
                raise
            processes.wait()
        else:
            processes.wait()
            self._state = self._read()
            self.resumed = self._holds_work()
            if self._state["identity"] != identity:
                raise UserError(f"{self.folder}: all processes have to see this folder; choose a shared disk")

    def _begin(self, identity: dict[str, Any], resume: bool) -> None:
        self._state = self._read()
        if self._state["identity"] is None:
            self._clear()
        self.resumed = self._holds_work()
        if not self.resumed:
            self._state = {"format": RUN_FORMAT, "identity": identity}
            write_json(self._file, self._state)
            return
        if not resume:
            raise UserError(
                f"{self.folder}: holds a run that was stopped; add --resume to go on with it, "
                "or remove that folder to start anew"
            )
        changes = differences(self._state["identity"], identity)
        if changes:
            raise UserError(
                f"{self.folder}: cannot be resumed, since {'; '.join(changes)}; "
                "run it as it was begun, or remove that folder to start anew"
            )

    def __enter__(self) -> UnfinishedRun:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        holds_work = self._holds_work()
        # After a failure others may still be writing here; an empty run that is left is in no one's way.
        alone = processes.FIRST and (kind is None or processes.SIZE == 1)
        over = alone and (not holds_work or (kind is None and not self.keep))
        if over:
            self._clear()
        if processes.FIRST:
            self._unlock()
        folder = self.folder
        if over and folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
        if not over and isinstance(error, KeyboardInterrupt) and (holds_work or processes.SIZE > 1):
            error.args = (
                *error.args,
                f"add --resume to the same command to go on; until then keep {self.folder}",
            )

    def _unlock(self) -> None:
        self._lock.close()  # first, since Windows removes no file that is open
        (self.folder / LOCK_FILE).unlink(missing_ok=True)

    def _own_files(self) -> list[Path]:
        """The files in the folder that such a run writes, in whole or in part."""
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        return [path for path in files if OWN_FILE.fullmatch(path.name) and path.is_file()]

    def _holds_work(self) -> bool:
        return any(path != self._file and path.name[0] != "." for path in self._own_files())

    def _read(self) -> dict[str, Any]:
        """What is known of the run in the folder; nobody's files are taken for it, or replaced by it."""
        state: dict[str, Any] = {"format": RUN_FORMAT, "identity": None}
        if not self.folder.is_dir():
            return state
        own = self._own_files()
        foreign = [path.name for path in self.folder.iterdir() if path not in own and path.name[0] != "."]
        if foreign:
            raise UserError(
                f"{self.folder}: holds files that are not of an unfinished run ({min(foreign)}); "
                "move them away, or choose another --output"
            )
        if not self._file.exists():
            if self._holds_work():
                raise UserError(f"{self.folder}: has no {RUN_FILE}; move it away, or choose another --output")
            return state
        there = read_json(self._file)
        if not isinstance(there, dict) or there.keys() != state.keys() or there["format"] != RUN_FORMAT:
            raise UserError(
                f"{self._file}: is damaged, or not of this version of the program; remove {self.folder} to "
                "start anew, or choose another --output"
            )
        return there

    def _clear(self) -> None:
        """Remove what the run wrote."""
        if self._holds_work():
            # Stopped in the middle of this, what is left must not pass for work to go on with.
            write_json(self._file, {**self._state, "identity": None})
        for path in sorted(self._own_files(), key=self._file.__eq__):  # that file last
            path.unlink()

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / (hashlib.sha256(os.fsencode(name)).hexdigest()[:16] + suffix)

    def noted(self, name: str) -> Any:
        """What `note` kept under this name, None if nothing."""
        path = self._path(name, ".json")
        return read_json(path) if path.exists() else None

    def note(self, name: str, value: Any) -> None:
        """Keep a value that JSON can hold, of a training that is done: its checkpoint goes."""
        write_json(self._path(name, ".json"), value)
        if not self.keep:
            self.checkpoint(name).path.unlink(missing_ok=True)

    def once(self, name: str, compute: Callable[[], np.ndarray], team: Team = ALONE) -> np.ndarray:
        """The array of this name: what `compute` gives, or gave before the run was stopped.

        In all processes of a team, of which the leader writes it.
        """
        path = self._path(name, ".npy")
        if team.word(path.exists()):
            return read_array(path, advice=f"remove {self.folder} to start anew")
        array = compute()
        if team.leads:
            write_array(path, array)
        return array

    def checkpoint(self, name: str) -> Checkpoint:
        """The checkpoint of the training of this name."""
        return Checkpoint(self._path(name, ".pt"), name, self.seconds)


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
        """What `save` wrote, tensors on the CPU; None if there is nothing of this training.

        Raises
        ------
        UserError
            The file is no checkpoint.
        """
        if not self.path.exists():
            return None
        advice = f"remove {self.path.parent} to start anew"
        content = load_safely(self.path, "a checkpoint", advice)
        if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
            raise UserError(f"{self.path}: is not a checkpoint of this program; {advice}")
        return content["state"] if content["name"] == self.name else None


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
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
