"""Files in and out: errors a user can mend, names in natural order, outputs that are never half written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np

LARGEST_JSON = 2**26  #: bytes, which take Python a gigabyte or two; a field of 600 neurons has one megabyte
LARGEST_SUBMISSION = 2**30  #: bytes; more than a thousand recordings
LARGEST_SIDE = 2**14  #: pixels of an image, where no recording says how large it is
LEAST_SCALE, LARGEST_SCALE = 0.001, 1000.0  #: pixels per micrometre; no microscope has less or more
THINGS_LISTED = 5  #: that one line names; a file may have thousands
ARRAY_MAGIC = b"\x93NUMPY\x01\x00"  #: how a `.npy` file begins: format 1.0, which any plain array has


class UserError(ValueError):
    """Something the user can mend: one line that names the file and says what to do.

    What it quotes of a file may have line breaks in it, which become spaces.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def natural_key(path: str | Path) -> list[tuple[int, int | str]]:
    """Sort key that puts `image2` before `image10`.

    Parameters
    ----------
    path : str or Path
        Only its last part counts.

    Returns
    -------
    list of tuple
        Runs of digits as numbers, the rest as lower-case text; at last the name itself, so that two
        different names never compare equal.

    Examples
    --------
    >>> sorted(["image10.tif", "image2.tif"], key=natural_key)
    ['image2.tif', 'image10.tif']
    """
    name = Path(path).name
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in parts] + [(1, name)]


def reason(error: OSError) -> str:
    """What the operating system said, in its own words, without the path."""
    return error.strerror or str(error)


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Write a file beside its name and rename it when it is complete.

    Parameters
    ----------
    path : str or Path
        The file to be. Its folder is made if it is missing.

    Yields
    ------
    Path
        A temporary path in the same folder with the same suffix, to be written in the `with` block.
        When the block fails the temporary file is removed and the old file stays as it was.

    Raises
    ------
    UserError
        The file cannot be written: no permission, a full disk, a file where the folder should be.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        yield temporary
        with open(temporary, "r+b") as written:  # Windows syncs no file that is open for reading alone
            os.fsync(written.fileno())  # the rename must not reach the disk before the content
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({reason(error)}); make room, or choose another place or name for it"
        ) from error
    finally:
        # After the rename there is nothing left to remove; on the way out of an error there may be.
        if os.path.lexists(temporary):
            temporary.unlink()


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left half written of a file, on systems that tell whether one is alive."""
    if os.name != "posix":
        return
    start, end = f".{path.stem}.", f".partial{path.suffix}"
    for name in os.listdir(path.parent):
        number = name[len(start) : -len(end)]
        if name.startswith(start) and name.endswith(end) and number.isdecimal() and not alive(int(number)):
            path.with_name(name).unlink(missing_ok=True)


def alive(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; no number of a process
        return True
    return True


def require_exists(path: str | Path) -> None:
    """Refuse a path at which there is nothing.

    Raises
    ------
    UserError
        There is no file or folder.
    """
    if not os.path.exists(path):
        raise UserError(f"{path}: there is no such file or folder; check the path")


def require_writable(folder: str | Path, needed: int = 0) -> None:
    """Make sure, before hours of work, that files can be written into a folder (made if missing).

    Parameters
    ----------
    folder : str or Path
    needed : int
        Bytes that have to be free.

    Raises
    ------
    UserError
        They cannot, or there is less room.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({reason(error)}); choose another folder") from error
    if free < needed:
        raise UserError(
            f"{folder}: {in_bytes(needed)} are needed there and {in_bytes(free)} are free; "
            "make room or choose another disk"
        )


def lock_file(path: Path) -> BinaryIO:
    """Make a file this process's alone until what is returned is closed. Its folder is made if it is missing.

    Whatever ends the process frees it. Windows, and disks that know no locks, let everyone have it.

    Raises
    ------
    UserError
        Another process has it; or it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)}); choose another --output") from error
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UserError(
                f"{path.parent}: another run is writing there; wait for its end, or choose another --output"
            ) from error
        except OSError:  # a disk without locks
            return file
    return file


def in_bytes(size: int) -> str:
    """A number of bytes for the user, e.g. "1.9 GB" or "12 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def write_together(contents: dict[Path, bytes]) -> None:
    """Write files that belong together: all beside their names, then all renamed, the first one first.

    Raises
    ------
    UserError
        One cannot be written; then all old files stay as they were, unless it is a renaming that fails.
    """
    with ExitStack() as renames:  # what is entered last is renamed first
        for path, content in reversed(contents.items()):
            renames.enter_context(write_whole(path)).write_bytes(content)


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write a JSON file whole, see `json_bytes`."""
    write_together({Path(path): json_bytes(value, indent)})


def json_bytes(value: Any, indent: int | None = 1) -> bytes:
    """The content of a JSON file, in one line if `indent` is None.

    Raises
    ------
    ValueError
        There is NaN or infinity in it: JSON has neither.
    """
    return json.dumps(value, allow_nan=False, indent=indent).encode("ascii") + b"\n"


def read_json(path: str | Path, largest: int = LARGEST_JSON) -> Any:
    """Read a JSON file of up to `largest` bytes, UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises
    ------
    UserError
        The file is missing, unreadable, not JSON or larger than any that is meant to be read, or one of
        its objects has a key twice.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise UserError(f"{path}: is larger than {in_bytes(largest)}; is it the right file?")
        return json.loads(content, object_pairs_hook=unique_keys)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the path") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); export it again") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; ValueError where of two values under one key the first would get lost."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has a key twice")
    return value


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Write a `.npy` file whole."""
    write_together({Path(path): array_bytes(array)})


def array_bytes(array: np.ndarray) -> bytes:
    """The content of a `.npy` file."""
    import numpy as np  # here, since `--help` needs this module but no arrays

    content = io.BytesIO()  # into a file numpy writes on its own, and what it says of a full disk is vague
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def read_array(path: str | Path, advice: str = "run preprocessing.py again") -> np.ndarray:
    """Read a `.npy` file of numbers; one that would run code (a pickle) is refused.

    Parameters
    ----------
    path : str or Path
    advice : str
        What the user is told to do if it cannot be read.

    Raises
    ------
    UserError
        The file is missing, truncated, or no plain array of numbers.
    """
    import numpy as np

    unusable = f"{path}: is cut short, damaged or no plain array of numbers; {advice}"
    try:
        with open(path, "rb") as file:
            if file.read(len(ARRAY_MAGIC)) != ARRAY_MAGIC:
                raise UserError(unusable)
        # Mapped before it is read: a header that promises more than there is in the file is refused at once.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); {advice}") from error
    except Exception as error:
        # numpy meets damage in many ways: ValueError, TypeError, OverflowError, RecursionError, ...
        raise UserError(unusable) from error
    if mapped.dtype.kind not in "biufc":
        raise UserError(unusable)
    return np.array(mapped)


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises
    ------
    UserError
        The file is unreadable.
    """
    hasher = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                hasher.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the path") from error
    return hasher.hexdigest()


def visible_files(folder: Path, without: tuple[str, ...] = ()) -> list[Path]:
    """The files of a folder in natural order, without hidden ones: macOS leaves some beside its copies.

    And without those that end in one of some suffixes, in lower case: to sort thousands takes a while.
    """
    try:
        names = [n for n in os.listdir(folder) if n[0] != "." and not n.lower().endswith(without)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({reason(error)}); check its permissions") from error
    return [folder / name for name in sorted(names, key=natural_key)]


def listed(things: Iterable[object]) -> str:
    """The things with commas between them, no more than a line can take: "1, 2, 3, 4, 5 ..."."""
    names = [str(thing) for thing in things]
    return ", ".join(names[:THINGS_LISTED]) + (" ..." if len(names) > THINGS_LISTED else "")


def one_line(text: str) -> str:
    """The text with a space for line breaks and what indents the lines.

    Examples
    --------
    >>> one_line("my  file.h5: is damaged\\n    at its end\\n")
    'my  file.h5: is damaged at its end'
    """
    return " ".join(filter(None, map(str.strip, text.splitlines())))


def positive_number(value: Any) -> float | None:
    """The value as a float if it is a positive, finite number, None otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max:
        return float(value)
    return None


def possible_scale(value: Any) -> float | None:
    """The value as pixels per micrometre if it can be that, None otherwise."""
    scale = positive_number(value)
    return scale if scale is not None and LEAST_SCALE <= scale <= LARGEST_SCALE else None
