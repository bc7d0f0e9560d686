"""Arrays of Python objects in `.npy` files, which numpy stores as a pickle: read without running its code.

A pickle is a program that may call whatever it names. Here it may name four things of numpy's own, and what
it gets under those names are the classes below, which keep what they are given; all else is refused.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from neurodetect.files import ARRAY_MAGIC, UserError, reason

LARGEST_PICKLE = 2**30  #: bytes; what Suite2p and Cellpose store of a field of view is a tenth of that
PLAIN_TYPES = re.compile(r"[biufcSU][0-9]{1,9}")  #: of numbers and text, as a pickle names them


class Stored:
    """An array of numpy in a pickle: `value` is an array of numbers or text, or a list of objects."""

    def __init__(self, *_: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        if dtype.numpy is None:
            self.value = list(content)
        else:
            numbers = np.frombuffer(content, dtype.numpy)
            self.value = numbers.reshape(shape, order="F" if by_columns else "C")


class StoredType:
    """A type of numpy in a pickle; `numpy` is None for Python objects."""

    def __init__(self, code: str, *_: Any) -> None:
        if code != "O8" and not PLAIN_TYPES.fullmatch(code):
            raise pickle.UnpicklingError(f"values of type {code}")
        self.numpy = None if code == "O8" else np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if self.numpy is not None:
            self.numpy = self.numpy.newbyteorder(state[1])


class StoredNumber(Stored):
    """A single number of numpy in a pickle."""

    def __init__(self, dtype: StoredType, content: Any) -> None:
        self.value = content if dtype.numpy is None else np.frombuffer(content, dtype.numpy)[0]


NAMES = {
    "ndarray": Stored,  # named as the type of what `_reconstruct` makes
    "_reconstruct": Stored,
    "dtype": StoredType,
    "scalar": StoredNumber,
}
MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")


# Not pickle.Unpickler, which is written in C and takes gigabytes for a damaged byte.
class ArrayUnpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """An unpickler that knows the names above, and no other."""

    def find_class(self, module: str, name: str) -> type:
        if module not in MODULES or name not in NAMES:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return NAMES[name]


def read_objects(path: Path) -> list[Any] | None:
    """What a `.npy` file of Python objects holds; arrays in it are `Stored`. None for any other file.

    Raises
    ------
    UserError
        The file is unreadable, damaged, or cannot be read without running code.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(ARRAY_MAGIC)) != ARRAY_MAGIC:
                return None
            _, _, dtype = np.lib.format.read_array_header_1_0(file)
            if not dtype.hasobject:
                return None
            content = file.read(LARGEST_PICKLE)
        return list(ArrayUnpickler(io.BytesIO(content)).load().value)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the path") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: cannot be read without running code that it brings along ({error}); {conversion(path)}"
        ) from error
    except Exception as error:  # EOFError, ValueError, KeyError, TypeError, MemoryError, ...: any damage
        raise UserError(f"{path}: is cut short or damaged ({error}); save it again") from error


def conversion(path: Path) -> str:
    """What to do with a file that would run code: of a `_seg.npy` or `stat.npy` the line that converts it."""
    load = f"numpy.load({str(path)!r}, allow_pickle=True)"
    if path.stem.endswith("_seg"):
        masks = str(path.with_name(f"{path.stem}_masks.npy"))
        line = f"import numpy; numpy.save({masks!r}, {load}.item()['masks'])"
    elif path.stem.endswith("stat"):
        rois, cells = f"roi in {load}", path.with_name("iscell.npy")
        if cells.exists():  # Suite2p says there which of the ROIs are cells
            rois = f"roi, (cell, _) in zip({load}, numpy.load({str(cells)!r})) if cell"
        entries = f"[{{'coordinates': numpy.transpose([roi['ypix'], roi['xpix']]).tolist()}} for {rois}]"
        regions = str(path.with_name("regions.json"))
        line = f"import json, numpy; json.dump({entries}, open({regions!r}, 'w'))"
    else:
        return "save its neurons as a label image"
    return f"if you trust whom it is from, run in Python: {line}"
