"""What all formats of recordings have in common: how a frame is described, and which of several is meant.

`tiff.TiffFrames` and `hdf5.Hdf5Frames` have a shape, a dtype and a length, give frames in order or by
number, and say in `notes` what of the file they leave out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neurodetect.files import UserError

LARGEST_FRAME = 2**28  #: pixels; no microscope makes more, but a damaged header may promise more


def describe_frame(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """A frame's kind in words, e.g. "512 x 512 uint16"."""
    return f"{' x '.join(map(str, shape))} {dtype.name}"


def require_finite(frame: np.ndarray, path: Path, index: int) -> np.ndarray:
    """The frame itself, when it has no infinite pixels; NaN is a pixel that it lacks."""
    if frame.dtype.kind == "f" and np.isinf(frame).any():
        raise UserError(f"{path}: frame {index} has infinite pixels; mend or remove the frame")
    return frame


def choose(number: int | None, names: list[str], kind: str, path: Path) -> int:
    """Which of a recording's channels or planes is meant, from 0.

    Parameters
    ----------
    number : int or None
        What `--channel` or `--plane` says, from 1.
    names : list of str
        What there is, in order.
    kind : str
        "channel" or "plane": also the option's name.
    path : Path
        The recording.

    Raises
    ------
    UserError
        There are several and none was chosen, or not as many as the number says.
    """
    count = len(names)
    if number is None:
        if count == 1:
            return 0
        choices = ", ".join(
            f"{index} ({name})" if name else str(index) for index, name in enumerate(names, 1)
        )
        raise UserError(
            f"{path}: has {count} {kind}s, which are not averaged: choose one with --{kind} N, of {choices}"
        )
    if number > count:
        raise UserError(
            f"{path}: has {count} {kind}{'' if count == 1 else 's'}, so there is no --{kind} {number}"
        )
    return number - 1
