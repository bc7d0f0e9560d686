"""What all formats of recordings have in common: how a frame is described, and which of several is meant.

`tiff.TiffFrames` and `hdf5.Hdf5Frames` have a shape, a dtype and a length, give frames in order or by
number, and say in `notes` what of the file they leave out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neurodetect.files import UserError

TIFF_SUFFIXES = (".tif", ".tiff")
LARGEST_FRAME = 2**28  #: pixels; no microscope makes more, but a damaged header may promise more
# Micrometres in the units of length that files have, in lower case; ImageJ and tifffile escape the sign.
MICRONS = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e6),
    "cm": 1e4,
    **dict.fromkeys(("mm", "millimeter", "millimeters"), 1e3),
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "\\xb5m"), 1.0),
    **dict.fromkeys(("micron", "microns", "micrometer", "micrometers"), 1.0),
    "nm": 1e-3,
}
# And of times, in seconds.
SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
}


def describe_frame(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """A frame's kind in words, e.g. "512 x 512 uint16"."""
    return f"{' x '.join(map(str, shape))} {dtype.name}"


def require_finite(frame: np.ndarray, path: Path, index: int) -> np.ndarray:
    """The frame itself, when it has no infinite pixels. NaN may be: a pixel that the frame does not have."""
    if frame.dtype.kind == "f" and np.isinf(frame).any():
        raise UserError(f"{path}: frame {index} has infinite pixels; mend or remove the frame")
    return frame


def choose(
    number: int | None, names: list[str], kind: str, path: Path, numbers: list[int] | None = None
) -> int:
    """Which of a recording's channels or planes is meant, from 0.

    Parameters
    ----------
    number : int or None
        What `--channel` or `--plane` says.
    names : list of str
        What there is, in order.
    kind : str
        "channel" or "plane": also the option's name.
    path : Path
        The recording.
    numbers : list of int, optional
        The numbers that they have at the microscope; by default from 1.

    Raises
    ------
    UserError
        There are several and none was chosen, or none has the number.
    """
    numbers = numbers or list(range(1, len(names) + 1))
    if number in numbers:
        return numbers.index(number)
    if number is None and len(names) == 1:
        return 0
    each = zip(numbers, names, strict=True)
    choices = ", ".join(f"{n} ({name})" if name else str(n) for n, name in each)
    if number is None:
        raise UserError(
            f"{path}: has {len(names)} {kind}s, which are not averaged with each other: "
            f"choose one with --{kind} N, of {choices}"
        )
    raise UserError(f"{path}: has no {kind} {number}; there is {choices}")
