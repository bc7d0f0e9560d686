"""A recording on disk: its frames one by one, its labelled neurons, what is known of it."""

from __future__ import annotations

import logging
import math
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from neurodetect.files import UserError, natural_key, read_json, reason
from neurodetect.regions import read_regions

TIFF_SUFFIXES = (".tif", ".tiff")
LARGEST_FRAME = 2**28  #: pixels; no microscope makes more, but a damaged header may promise more

# What tifffile has to say of a broken file reaches the user as our one line, not beside it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class Recording:
    """A two-photon recording: frames on disk, each read when it is needed.

    Made by `open_recording`. Its length is the number of frames; iterating gives them in order.

    Attributes
    ----------
    name : str
        The folder's name, or the stack's without its suffix.
    path : Path
        The folder or the stack.
    shape : (int, int)
        (H, W) of every frame, pixels.
    dtype : numpy.dtype
        Of every frame: an integer or float type.
    regions : list of (n, 2) int arrays, or None
        The labelled neurons as `[row, column]` pixels; None when the recording has no labels.
    info : dict
        What `info.json` says; empty without one.
    """

    def __init__(self, path: Path, files: list[Path], labels: Path | None, info: dict[str, Any]) -> None:
        self.path = path
        self.name = path.name if path.is_dir() else path.stem
        self.info = info
        self._files = files
        self._ends: list[int] | None = None
        with open_tiff(files[0]) as tiff:
            refuse_channels(tiff, files[0])
            first = read_page(tiff, files[0], 0)
        self.shape: tuple[int, int] = first.shape
        self.dtype: np.dtype = first.dtype
        self.regions = read_regions(labels, self.shape) if labels is not None else None

    @property
    def pixels_per_micron(self) -> float | None:
        """Pixels in a micrometre; None when `info.json` does not say."""
        return positive_number(self.info.get("pixels-per-micron"))

    @property
    def rate_hz(self) -> float | None:
        """Frames a second; None when `info.json` does not say."""
        return positive_number(self.info.get("rate-hz"))

    def __len__(self) -> int:
        """Number of frames. The first call looks into every file."""
        return self._file_ends()[-1]

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames()

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, one in memory at a time.

        Yields
        ------
        (H, W) array
            Of the recording's dtype.

        Raises
        ------
        UserError
            A file is unreadable, truncated or no TIFF, or a frame has another shape or type than the
            first, or is not finite.
        """
        for path in self._files:
            with open_tiff(path) as tiff:
                for page in range(count_pages(tiff)):
                    yield self._checked(read_page(tiff, path, page), path, page)

    def frame(self, index: int) -> np.ndarray:
        """One frame by its number, from 0: (H, W). Raises as `frames` does."""
        ends = self._file_ends()
        if not 0 <= index < ends[-1]:
            raise IndexError(f"frame {index} of {ends[-1]}")
        number = bisect_right(ends, index)
        page = index - (ends[number - 1] if number else 0)
        path = self._files[number]
        with open_tiff(path) as tiff:
            return self._checked(read_page(tiff, path, page), path, page)

    def _file_ends(self) -> list[int]:
        """Number of frames up to the end of each file."""
        if self._ends is None:
            counts = []
            for path in self._files:
                with open_tiff(path) as tiff:
                    counts.append(count_pages(tiff))
            self._ends = list(accumulate(counts))
        return self._ends

    def _checked(self, frame: np.ndarray, path: Path, page: int) -> np.ndarray:
        if frame.shape != self.shape or frame.dtype != self.dtype:
            raise UserError(
                f"{path}: frame {page} is {describe(frame.shape, frame.dtype)}, but the recording began "
                f"with {describe(self.shape, self.dtype)}; a recording has frames of one kind"
            )
        if frame.dtype.kind == "f" and not np.isfinite(frame).all():
            raise UserError(f"{path}: frame {page} has NaN or infinite pixels; mend or remove the frame")
        return frame


def open_recording(path: str | Path) -> Recording:
    """Open a recording: look for its frames and read its labels, but no more than its first frame.

    Parameters
    ----------
    path : str or Path
        A neurofinder folder (`images/*.tiff`, optional `regions/regions.json` and `info.json`), a folder
        of TIFF files, or one TIFF stack.

    Returns
    -------
    Recording

    Raises
    ------
    UserError
        There is no such thing, it holds no frames, or its first frame, labels or info are unreadable.
    """
    path = Path(os.path.abspath(path))  # so that `.` has a name
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; check the path")
    if not path.is_dir():
        return Recording(path, [path], labels=None, info={})
    images = path / "images" if (path / "images").is_dir() else path
    try:
        # A leading dot marks what macOS leaves beside the files it copies.
        names = [n for n in os.listdir(images) if n.lower().endswith(TIFF_SUFFIXES) and n[0] != "."]
    except OSError as error:
        raise UserError(f"{images}: cannot be read ({reason(error)}); check its permissions") from error
    if not names:
        raise UserError(f"{path}: holds no frames; images/*.tiff or a TIFF stack is expected")
    files = [images / name for name in sorted(names, key=natural_key)]
    labels = path / "regions" / "regions.json"
    info_file = path / "info.json"
    info = read_json(info_file) if info_file.exists() else {}
    if not isinstance(info, dict):
        raise UserError(f"{info_file}: is not a JSON object; mend or remove it")
    return Recording(path, files, labels if labels.exists() else None, info)


def positive_number(value: Any) -> float | None:
    """The value as a float if it is a positive, finite number, None otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    return None


def describe(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """A frame's kind in words, e.g. "512 x 512 uint16"."""
    return f"{' x '.join(map(str, shape))} {dtype.name}"


# TIFF files from strangers


@contextmanager
def open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file; whatever is wrong with it, then or while it is read, is a UserError."""
    try:
        with tifffile.TiffFile(path) as tiff:
            yield tiff
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the file") from error
    except Exception as error:
        # tifffile meets damage in many ways: TiffFileError, struct.error, ValueError, KeyError, ...
        raise UserError(f"{path}: cannot be read as TIFF ({error}); copy or export it again") from error


def refuse_channels(tiff: tifffile.TiffFile, path: Path) -> None:
    """Refuse a movie of several channels: a mean over its pages would mix the colours.

    Where nothing but "channels" is many they are taken for frames: tifffile calls them so in an ImageJ
    file when it is not told what they are.
    """
    images = channels = 1
    if tiff.is_imagej:
        channels, images = (tiff.imagej_metadata.get(key, 1) for key in ("channels", "images"))
    elif tiff.is_ome:
        channels = dict(zip(tiff.series[0].axes, tiff.series[0].shape, strict=True)).get("C", 1)
        images = len(tiff.pages)
    if 1 < channels < images:
        raise UserError(f"{path}: has {channels} channels; export the one that shows the neurons")


def count_pages(tiff: tifffile.TiffFile) -> int:
    """Number of frames in a TIFF file."""
    pages = len(tiff.pages)
    # One header may describe the first of many frames that follow each other: ImageJ does this above
    # 4 GB, tifffile on request. Both say so in the description.
    if pages == 1 and tiff.is_imagej:
        return max(1, int(tiff.imagej_metadata.get("images", 1)))
    if pages == 1 and tiff.is_shaped:
        return max(1, tiff.series[0].size // max(tiff.pages[0].size, 1))
    return pages


def read_page(tiff: tifffile.TiffFile, path: Path, index: int) -> np.ndarray:
    """One frame of a TIFF file: (H, W), in the machine's byte order."""
    single = not tiff.pages.is_multipage  # one header for all frames, see `count_pages`
    page = tiff.pages[0 if single else index]
    if page.dtype is None or page.dtype.kind not in "iuf":
        raise UserError(f"{path}: frame {index} is neither integer nor float; export it as grey values")
    if len(page.shape) != 2 or not page.size:
        raise UserError(
            f"{path}: frame {index} is {describe(page.shape, page.dtype)}; "
            "a frame is a two-dimensional grey image, not RGB: export one channel"
        )
    if page.size > LARGEST_FRAME:
        raise UserError(f"{path}: frame {index} claims {page.size} pixels; the file is damaged")
    skip = index * page.nbytes if single else 0
    ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))
    if max(ends, default=0) + skip > tiff.filehandle.size:
        raise UserError(f"{path}: is cut short in frame {index}; copy or export it again")
    if skip:
        tiff.filehandle.seek(page.dataoffsets[0] + skip)
        frame = tiff.filehandle.read_array(page.dtype.newbyteorder(tiff.byteorder), page.size)
        frame = frame.reshape(page.shape)
    else:
        frame = page.asarray()
    return frame.astype(frame.dtype.newbyteorder("="), copy=False)
