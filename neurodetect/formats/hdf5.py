"""The movie of an HDF5 or NWB file on disk, its frames read in blocks when they are needed.

Files come from strangers: whatever is wrong with one is a `UserError` that names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurodetect.files import UserError, reason
from neurodetect.formats.frames import LARGEST_FRAME, choose, describe_frame, require_finite
from neurodetect.formats.nwb import (
    SERIES_TYPES,
    grid_scale,
    series_axes,
    starting_rate,
    text_attribute,
)

if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".h5", ".hdf5", ".nwb")
SIGNATURE = b"\x89HDF\r\n\x1a\n"  #: at the beginning of the file or after 512, 1024, 2048, ... bytes
MATLAB_BEGINS = b"MATLAB 7.3"
BLOCK_BYTES = 2**25  #: of a dataset read at once, where its chunks allow
# Where a chunk is long in time, every block of frames takes decompressing all of them: a few large ones do.
LONG_BLOCKS = 8
MOST_PLANES = 16  #: or channels, where an axis does not say what it is
NARROW = 1.6  #: sides of a frame as unequal as that look as if one were time
MOST_NAMED = 8  #: datasets in one line
# What programs call an axis, by the letter that --axes has for it.
AXIS_NAMES = {
    "T": ("t", "time", "frame", "frames"),
    "Z": ("z", "plane", "planes", "depth"),
    "Y": ("y", "row", "rows", "height"),
    "X": ("x", "column", "columns", "width"),
    "C": ("c", "channel", "channels"),
}
Tile = tuple[tuple[slice, slice], Iterator[np.ndarray]]  # (rows, columns), and blocks (n, h, w)
EXCHANGED = str.maketrans("XY", "YX")
NO_AXIS = "-"  #: an axis of length one


class Hdf5Frames:
    """The frames of an HDF5 file's movie, or of an NWB file's image series.

    A plain HDF5 file has one dataset of numbers with three axes, (T, H, W), whatever its name; axes of
    length one do not count. Of an NWB file it is the data of an image series, see `nwb.series_axes` for
    their order. Labels of the axes in the file (HDF5's dimension labels) say it better.

    What lies in other files (external links, external or virtual storage) is not read.

    Parameters
    ----------
    path : Path
    dataset : str, optional
        Name of the movie where there are several: whole, or its last parts. Of an NWB series the group's
        name will do.
    channel, plane : int, optional
        Which to read, from 1, where there are several.
    transpose : bool
        Exchange rows and columns.
    axes : str, optional
        A letter for each axis of the dataset, T, Y, X and perhaps Z and C, where the file does not say or
        is wrong, e.g. "YXT".

    Attributes
    ----------
    name : str
        Of the dataset.
    shape, dtype
        As of `TiffFrames`.
    rate_hz : float or None
        Frames a second, where an NWB file says.
    pixels_per_micron : float or None
        Where an NWB file or the attribute `element_size_um` says, and rows are as far apart as columns.
    turned : bool
        Whether the user has rows and columns otherwise than NWB's schema; see `read_plane_segmentation`.
    notes : list of str
        What of the file is left out, and what was assumed, a line each.

    Raises
    ------
    UserError
        h5py is not installed, the file is unreadable, or it has no such dataset, or several, or one whose
        axes cannot be told.
    """

    def __init__(
        self,
        path: Path,
        *,
        dataset: str | None = None,
        channel: int | None = None,
        plane: int | None = None,
        transpose: bool = False,
        axes: str | None = None,
    ) -> None:
        self._path = path
        self._block: tuple[int, np.ndarray] | None = None  # the last that `frame` read
        with open_hdf5(path) as file:
            self.name, self.notes = find_movie(file, path, dataset)
            movie = file[self.name]
            require_values(movie, path)
            letters, assumed = find_axes(movie, path, axes, channel is not None, plane is not None)
            as_said = axes is not None and letters.index("Y") < letters.index("X")
            self.turned = transpose != as_said
            if transpose:
                letters = letters.translate(EXCHANGED)
            if not (transpose or axes):
                self.notes += assumed
            self._axes = letters
            sizes = dict(zip(letters, movie.shape, strict=True))
            self._chosen = {NO_AXIS: 0}
            for kind, letter, number in (("channel", "C", channel), ("plane", "Z", plane)):
                count = sizes.get(letter, 1)
                self._chosen[letter] = choose(number, [""] * count, kind, path)
                if count > 1:
                    self.notes.append(f"{kind} {number} of {count} is read, the others are left out")
            self._count: int = sizes["T"]
            self.shape: tuple[int, int] = sizes["Y"], sizes["X"]
            if math.prod(self.shape) > LARGEST_FRAME:
                raise UserError(
                    f"{path}: {self.name} claims {math.prod(self.shape)} pixels a frame; the file is damaged"
                )
            self.dtype: np.dtype = movie.dtype.newbyteorder("=")
            self.rate_hz = starting_rate(movie.parent)
            self.pixels_per_micron = grid_scale(file, movie)
            # What has no chunks is stored row by row: as if in chunks that are whole along all but one axis.
            chunks = dict(zip(letters, movie.chunks or (1, *movie.shape[1:]), strict=True))
            compressed = movie.compression is not None or movie.shuffle
        self._chunk = {letter: min(chunks[letter], sizes[letter]) for letter in "TYX"}
        frame = self.dtype.itemsize * math.prod(self.shape)
        long = self._chunk["T"] * frame > BLOCK_BYTES
        self._in_tiles = long and (self._chunk["Y"], self._chunk["X"]) != self.shape
        # Whole chunks, so that none is decompressed twice, unless they are too large.
        fitting = max(1, (LONG_BLOCKS if long else 1) * BLOCK_BYTES // frame)
        least = self._chunk["T"] if compressed and not self._in_tiles else fitting
        self._frames_a_block = fitting // self._chunk["T"] * self._chunk["T"] or least

    def __len__(self) -> int:
        """Number of frames."""
        return self._count

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.between(0, self._count)

    def between(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Frames `start` to `stop` - 1, in order."""
        for first, end in self._blocks(start, stop, self._frames_a_block):
            for index, frame in enumerate(self._read(first, end), start=first):
                yield require_finite(frame, self._path, index)

    def tiles(self, start: int, stop: int) -> Iterator[Tile] | None:
        """Frames `start` to `stop` - 1 in tiles of the image, where that is cheaper than frame by frame.

        So it is where chunks are long in time and small in space: each is then decompressed once.

        Returns
        -------
        iterator, or None where whole frames are as cheap
            Of (rows, columns) and the blocks of that tile, (n, h, w) each, which follow each other in
            time. Together the tiles are the image. One block is in memory at a time.
        """
        return self._tiles(start, stop) if self._in_tiles else None

    def frame(self, index: int) -> np.ndarray:
        """One frame by its number: (H, W). Raises IndexError, and UserError as iterating does."""
        if not 0 <= index < self._count:
            raise IndexError(f"frame {index} of {self._count}")
        start = index - index % self._frames_a_block
        if self._block is None or self._block[0] != start:
            self._block = start, self._read(start, start + self._frames_a_block)
        return require_finite(self._block[1][index - start], self._path, index)

    def _tiles(self, start: int, stop: int) -> Iterator[Tile]:
        height, width = self.shape
        tall, wide, long = (self._chunk[letter] for letter in "YXT")
        fitting = max(1, BLOCK_BYTES // (self.dtype.itemsize * tall * wide * long))  # chunks in a block
        across = min(fitting, -(-width // wide))
        tall, wide = tall * max(1, fitting // across), wide * across
        for top in range(0, height, tall):
            for left in range(0, width, wide):
                place = slice(top, min(top + tall, height)), slice(left, min(left + wide, width))
                yield place, self._tile(start, stop, place)

    def _tile(self, start: int, stop: int, place: tuple[slice, slice]) -> Iterator[np.ndarray]:
        """The blocks of one tile."""
        for first, end in self._blocks(start, stop, self._chunk["T"]):
            block = self._read(first, end, *place)
            if block.dtype.kind == "f":
                infinite = np.isinf(block).any(axis=(1, 2))
                index = int(infinite.argmax())
                require_finite(block[index], self._path, first + index)
            yield block

    def _blocks(self, start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
        """First frame and end of each block, which begin at multiples of `size` as chunks do."""
        stop = min(stop, self._count)
        while start < stop:
            end = min(start - start % size + size, stop)
            yield start, end
            start = end

    def _read(
        self, start: int, stop: int, rows: slice = slice(None), columns: slice = slice(None)
    ) -> np.ndarray:
        """A block of frames, or of a part of each: (n, h, w)."""
        where = {"T": slice(start, stop), "Y": rows, "X": columns, **self._chosen}
        with open_hdf5(self._path) as file:
            block = file[self.name][tuple(where[letter] for letter in self._axes)]
        order = [letter for letter in self._axes if letter in "TYX"]
        block = block.transpose([order.index(letter) for letter in "TYX"])
        return block.astype(self.dtype, copy=False)


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5 by its content, whatever its name; a UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            position, end = 0, file.seek(0, 2)
            while position < end:
                file.seek(position)
                if file.read(len(SIGNATURE)) == SIGNATURE:
                    return True
                position = max(512, 2 * position)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the file") from error
    return False


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
        raise UserError(f"{path}: cannot be read as HDF5 ({error}); copy or export it again") from error


# Which dataset


def datasets_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every dataset in an HDF5 file by its name. Links, which may lead out of the file, are not followed."""
    import h5py

    found = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("#"):  # MATLAB's own are below #refs#
            found[name] = item

    file.visititems(visit)
    return found


def find_movie(file: h5py.File, path: Path, name: str | None) -> tuple[str, list[str]]:
    """Name of the dataset that is the movie, and a note of the others."""
    found = datasets_of(file)
    is_nwb = "nwb_version" in file.attrs
    movies = series_of(found) if is_nwb else {n: d for n, d in found.items() if may_be_movie(d)}
    if name is not None:
        name = name.strip("/")
        endings = (f"/{name}", f"/{name}/data")
        named = [n for n in (name, f"{name}/data") if n in found][:1]
        named = named or [n for n in found if n.endswith(endings)]
        if not named:
            raise UserError(f"{path}: has no dataset {name}; it holds {listed(movies or found)}")
    else:
        what = "image series" if is_nwb else "movie (a dataset of frames x rows x columns)"
        if not movies:
            raise UserError(f"{path}: has no {what} of its own{why_none(found)}; it holds {listed(found)}")
        named = list(movies)
        if is_nwb:  # a camera that films the mouse is an ImageSeries too
            kinds = {n: text_attribute(dataset.parent, "neurodata_type") for n, dataset in movies.items()}
            best = min(kinds.values(), key=SERIES_TYPES.index)
            named = [n for n in movies if kinds[n] == best]
    if len(named) > 1:
        several = listed({n: found[n] for n in named})
        raise UserError(f"{path}: has more than one movie: choose with --dataset NAME, of {several}")
    others = {n: dataset for n, dataset in movies.items() if n != named[0]}
    if others and found[named[0]].size == 0:
        raise UserError(
            f"{path}: {named[0]} has no frames in it: choose with --dataset NAME, of {listed(others)}"
        )
    return named[0], [f"{named[0]} is read, left out: {listed(others)}"] if others else []


def series_of(found: dict[str, h5py.Dataset]) -> dict[str, h5py.Dataset]:
    """The data of the image series in an NWB file, without what was shown to the animal."""
    return {
        name: dataset
        for name, dataset in found.items()
        if name.startswith(("acquisition/", "processing/"))
        and name.endswith("/data")
        and text_attribute(dataset.parent, "neurodata_type") in SERIES_TYPES
    }


def may_be_movie(dataset: h5py.Dataset) -> bool:
    """Whether a dataset has numbers and three axes or more; axes of length one are none beside those."""
    if dataset.shape is None or dataset.dtype.kind not in "iuf":
        return False
    return dataset.ndim == 3 or sum(length != 1 for length in dataset.shape) >= 3


def why_none(found: dict[str, h5py.Dataset]) -> str:
    """Why a file has no movie, where it looks as if it should."""
    if "estimates/A/data" in found:
        return ": these are the results of an analysis, give the movie that it read"
    if any(d.shape and len(d.shape) == 2 and min(d.shape) > 1 for d in found.values()):
        return (
            " (of a dataset with two axes, frames x pixels, the rows and columns cannot be told: "
            "save it with three)"
        )
    return ""


def listed(datasets: dict[str, h5py.Dataset]) -> str:
    """Datasets and their shapes, the largest first and not too many."""
    arrays = {name: d for name, d in datasets.items() if d.shape}
    largest = sorted(arrays, key=lambda name: -arrays[name].size)
    texts = [f"{n} ({describe_frame(arrays[n].shape, arrays[n].dtype)})" for n in largest]
    more = [f"{len(texts) - MOST_NAMED} more"] if len(texts) > MOST_NAMED else []
    return ", ".join([*texts[:MOST_NAMED], *more]) or "no arrays"


def require_values(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse a dataset that cannot be frames, or whose values are not in the file."""
    name = dataset.name
    if not may_be_movie(dataset):
        raise UserError(
            f"{path}: {name} is {describe_frame(dataset.shape or (), dataset.dtype)}; "
            "a movie is frames x rows x columns of numbers: choose another with --dataset NAME"
        )
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{path}: {name} has its values in other files, which are not followed; join them")
    if not dataset.size or not dataset.id.get_storage_size():
        raise UserError(f"{path}: {name} has no frames in it; are they in another file?")


# Which axis is which


def find_axes(
    movie: h5py.Dataset, path: Path, axes: str | None, one_channel: bool, one_plane: bool
) -> tuple[str, list[str]]:
    """A letter for each axis of a dataset, of TZYXC or `NO_AXIS`, and what was assumed, in words.

    Parameters
    ----------
    movie : h5py.Dataset
    path : Path
        Its file.
    axes : str or None
        What the user says.
    one_channel, one_plane : bool
        Whether the user chose one.

    Raises
    ------
    UserError
        The axes cannot be told, or are not as the user says.
    """
    what = f"{path}: {movie.name} is {describe_frame(movie.shape, movie.dtype)}"
    single = [axis for axis in range(movie.ndim) if movie.shape[axis] == 1]
    dropped = set(single[::-1][: movie.ndim - 3])  # the first one last: it may be a movie of one frame
    kept = [axis for axis in range(movie.ndim) if axis not in dropped]
    if axes is not None:
        axes = axes.upper()
        if not are_axes(axes) or len(axes) not in (movie.ndim, len(kept)):
            raise UserError(
                f"{what}, which --axes {axes} does not fit: it takes a letter for each axis, T "
                "(time), Y (rows), X (columns) and where there are more Z (planes) and C (channels)"
            )
        return (axes if len(axes) == movie.ndim else spread(axes, kept, movie.ndim)), []
    labels = [movie.dims[axis].label.lower() for axis in range(movie.ndim)]
    said = "".join(letter for label in labels for letter, names in AXIS_NAMES.items() if label in names)
    if len(said) == movie.ndim:
        if not are_axes(said):
            raise UserError(
                f"{what} of axes {said}, so it is no movie; --axes names them where that is wrong"
            )
        return said, []
    shape = tuple(movie.shape[axis] for axis in kept)
    if text_attribute(movie.parent, "neurodata_type") in SERIES_TYPES and len(kept) < 5:
        letters, notes = series_axes(movie.parent, shape)
        return spread(letters, kept, movie.ndim), notes
    fourth: dict[int, str] = {}
    if len(shape) > 3:
        small = [place for place, length in enumerate(shape) if length <= MOST_PLANES]
        if len(shape) > 4 or len(small) != 1 or small[0] not in (1, 3):
            raise UserError(
                f"{what}, and does not say which axis is which: name them with --axes, e.g. --axes TZYX "
                "(T time, Z planes, C channels, Y rows, X columns)"
            )
        if one_channel == one_plane:
            raise UserError(
                f"{what}, so it has {shape[small[0]]} planes or channels, which are not averaged with each "
                f"other: choose one with --plane N or --channel N, of 1 to {shape[small[0]]}"
            )
        fourth[small[0]] = "C" if one_channel else "Z"
    letters, notes = find_time(movie, kept, what, fourth)
    return spread(letters, kept, movie.ndim), notes


def are_axes(letters: str) -> bool:
    """Whether letters name the axes of a movie: each once, and T, Y and X among them."""
    return set("TYX") <= set(letters) <= set(AXIS_NAMES) and len(set(letters)) == len(letters)


def spread(letters: str, kept: list[int], count: int) -> str:
    """The letters of some of a dataset's axes, with `NO_AXIS` for the others."""
    by_axis = dict(zip(kept, letters, strict=True))
    return "".join(by_axis.get(axis, NO_AXIS) for axis in range(count))


def find_time(
    movie: h5py.Dataset, kept: list[int], what: str, fourth: dict[int, str]
) -> tuple[str, list[str]]:
    """The letters of axes that nobody named, which are "TYX" or MATLAB's "TXY"; and what was assumed.

    `fourth` has the letter of a fourth one by its place among them. Raises UserError where time may well
    be the last.
    """
    three = [axis for place, axis in enumerate(kept) if place not in fourth]
    shape, chunks, limits = (
        tuple(lengths[axis] for axis in three) if lengths else None
        for lengths in (movie.shape, movie.chunks, movie.maxshape)
    )
    by_matlab = "MATLAB_class" in movie.attrs and begins_as_matlab(movie.file)
    first, last = ("TXY", "XYT") if by_matlab else ("TYX", "YXT")
    for place, letter in fourth.items():
        first, last = (f"{three[:place]}{letter}{three[place:]}" for three in (first, last))
    time, sure = time_axis(shape, chunks, limits)
    as_first = f"{shape[0]} frames of {shape[1]} x {shape[2]}"
    if time != 0:
        raise UserError(
            f"{what}, by its looks {'columns x rows' if by_matlab else 'rows x columns'} x time: "
            f"--axes {last} reads it so, --axes {first} as {as_first}"
        )
    notes = []
    if not sure:
        notes.append(f"{movie.name} is read as {as_first}; where time is its last axis: --axes {last}")
    if by_matlab:
        notes.append(
            "rows and columns are as in MATLAB, which stores axes in reverse; --transpose turns them"
        )
    elif shape[1] > shape[2]:
        notes.append(f"frames are read as {shape[1]} rows x {shape[2]} columns; --transpose turns them")
    return first, notes


def time_axis(
    shape: tuple[int, ...], chunks: tuple[int, ...] | None, limits: tuple[int | None, ...]
) -> tuple[int, bool]:
    """Which of three axes is time, 0 or 2, by its looks, and whether there is no doubt.

    A movie grows in time, its chunks are whole frames or long in time, and frames are more like squares
    than what else could be taken for them.
    """
    unlimited = [limit is None for limit in limits]
    if unlimited[0] != unlimited[2]:
        return (0 if unlimited[0] else 2), True
    first, last = aspect(shape[1], shape[2]), aspect(shape[0], shape[1])
    if chunks:
        whole = [chunk >= length for chunk, length in zip(chunks, shape, strict=True)]
        # (1, W, T) of (H, W, T) has the looks of whole frames, if it were not for their form.
        if whole in ([False, True, True], [True, False, False]) and first <= 2:
            return 0, True
        if whole == [True, True, False]:
            return 2, True
        square = min(chunks[:2]) > 1 and aspect(chunks[0], chunks[1]) <= 2
        if whole == [False, False, True] and square and last <= 2:
            return 2, True
    if shape[1] == shape[2]:
        return 0, True
    if shape[0] == shape[1] or last < first >= NARROW:
        return 2, False
    return 0, last > 2


def aspect(one: int, other: int) -> float:
    """How much longer the longer of two sides is."""
    return max(one, other) / min(one, other)


def begins_as_matlab(file: h5py.File) -> bool:
    """Whether a file has MATLAB's words before its HDF5."""
    with open(file.filename, "rb") as content:
        return content.read(len(MATLAB_BEGINS)) == MATLAB_BEGINS
