"""The movie of an HDF5 or NWB file on disk, its frames read in blocks when they are needed.

Files come from strangers: whatever is wrong with one is a `UserError` that names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurodetect.files import UserError
from neurodetect.formats.frames import LARGEST_FRAME, describe_frame, require_finite

if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".h5", ".hdf5", ".nwb")
BLOCK_BYTES = 2**25  #: of a dataset read at once, where its chunks allow
# Image series of NWB's core schema, as they are preferred where a file has several.
SERIES_TYPES = ("TwoPhotonSeries", "OnePhotonSeries", "ImageSeries")


class Hdf5Frames:
    """The frames of an HDF5 file's movie, or of an NWB file's image series.

    A plain HDF5 file has one three-dimensional dataset of numbers, (T, H, W), whatever its name. Of an
    NWB file it is the data of an image series in /acquisition. NWB's schema says that such data are
    (time, x, y), which its standard writers follow; a frame here is (rows, columns), so (y, x).

    What lies in other files (external links, external or virtual storage) is not read.

    Attributes
    ----------
    shape, dtype
        As of `TiffFrames`.
    rate_hz : float or None
        Frames a second, where an NWB file says.

    Raises
    ------
    UserError
        h5py is not installed, the file is unreadable, or it has no such dataset, or several.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._block: tuple[int, np.ndarray] | None = None  # the last that `frame` read
        with open_hdf5(path) as file:
            is_nwb = "nwb_version" in file.attrs
            self._name = find_series(file, path) if is_nwb else find_movie(file, path)
            dataset = file[self._name]
            require_frames(dataset, path)
            count, *sides = dataset.shape
            self.rate_hz = starting_rate(dataset.parent) if is_nwb else None
            chunk = dataset.chunks[0] if dataset.chunks else 1
            self.dtype: np.dtype = dataset.dtype.newbyteorder("=")
        self.shape: tuple[int, int] = tuple(sides[::-1] if is_nwb else sides)
        self._transpose = is_nwb
        self._count = count
        # Whole chunks, so that none is decompressed twice, unless they are too large.
        fitting = max(1, BLOCK_BYTES // (self.dtype.itemsize * sides[0] * sides[1]))
        self._frames_a_block = fitting // chunk * chunk or fitting

    pixels_per_micron = None
    notes: list[str] = []

    def between(self, start, stop):
        return (self.frame(i) for i in range(start, stop))

    def __len__(self) -> int:
        """Number of frames."""
        return self._count

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, self._count, self._frames_a_block):
            for index, frame in enumerate(self._read(start), start=start):
                yield require_finite(frame, self._path, index)

    def frame(self, index: int) -> np.ndarray:
        """One frame by its number: (H, W). Raises IndexError, and UserError as iterating does."""
        if not 0 <= index < self._count:
            raise IndexError(f"frame {index} of {self._count}")
        start = index - index % self._frames_a_block
        if self._block is None or self._block[0] != start:
            self._block = start, self._read(start)
        return require_finite(self._block[1][index - start], self._path, index)

    def _read(self, start: int) -> np.ndarray:
        """A block of frames: (n, H, W)."""
        with open_hdf5(self._path) as file:
            block = file[self._name][start : start + self._frames_a_block]
        if self._transpose:
            block = block.transpose(0, 2, 1)
        return block.astype(self.dtype, copy=False)


def is_hdf5(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file; whatever is wrong with it, then or while it is read, is a UserError."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading HDF5 and NWB files takes h5py; pip install h5py") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (UserError, MemoryError):
        raise
    except Exception as error:  # h5py, too, meets damage in many ways: OSError, RuntimeError, KeyError, ...
        text = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as HDF5 ({text}); copy or export it again") from error


def datasets_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every dataset in an HDF5 file by its name. Links, which may lead out of the file, are not followed."""
    import h5py

    found = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    file.visititems(visit)
    return found


def find_movie(file: h5py.File, path: Path) -> str:
    """Name of the one three-dimensional dataset of numbers."""
    names = [n for n, d in datasets_of(file).items() if d.ndim == 3 and d.dtype.kind in "iuf"]
    return the_one(names, path, "three-dimensional dataset of numbers (frames x rows x columns)")


def find_series(file: h5py.File, path: Path) -> str:
    """Name of the data of the image series in an NWB file's /acquisition."""
    kinds = {
        name: text_attribute(dataset.parent, "neurodata_type")
        for name, dataset in datasets_of(file).items()
        if name.startswith("acquisition/") and name.endswith("/data")
    }
    names: list[str] = []
    for kind in SERIES_TYPES:  # a camera that films the mouse is an ImageSeries too
        names = names or [name for name in kinds if kinds[name] == kind]
    return the_one(names, path, "image series in /acquisition (TwoPhotonSeries or ImageSeries)")


def the_one(names: list[str], path: Path, what: str) -> str:
    if not names:
        raise UserError(f"{path}: has no {what} of its own; export the frames as TIFF")
    if len(names) > 1:
        raise UserError(
            f"{path}: has more than one {what}: {', '.join(names)}; put the one to read into its own file"
        )
    return names[0]


def require_frames(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse a dataset that cannot be frames, or whose values are not in the file."""
    name = dataset.name
    if dataset.ndim != 3 or dataset.dtype.kind not in "iuf":
        raise UserError(
            f"{path}: {name} is {describe_frame(dataset.shape, dataset.dtype)}; "
            "a recording is frames x rows x columns of numbers: export one plane"
        )
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{path}: {name} has its values in other files, which are not followed; join them")
    if not dataset.size or not dataset.id.get_storage_size():
        raise UserError(f"{path}: {name} has no frames in it; are they in another file?")
    rows, columns = dataset.shape[1:]
    if rows * columns > LARGEST_FRAME:
        raise UserError(f"{path}: {name} claims {rows * columns} pixels a frame; the file is damaged")


def starting_rate(series: h5py.Group) -> float | None:
    """Frames a second of an NWB series; None where it does not say."""
    if "starting_time" not in datasets_of(series):
        return None
    rate = series["starting_time"].attrs.get("rate")
    return float(rate) if np.isscalar(rate) and not isinstance(rate, (str, bytes)) else None


def text_attribute(group: h5py.Group, name: str) -> str:
    """A text attribute, whether it was stored as text or as bytes; empty where there is none."""
    value = group.attrs.get(name, "")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
