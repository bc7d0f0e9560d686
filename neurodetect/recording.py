"""A recording on disk: its frames one by one, its labelled neurons, what is known of it.

A recording is one of these:

- a neurofinder folder: frames in `images/*.tiff`, optional `info.json`;
- a folder of TIFF files;
- one TIFF file (BigTIFF, OME-TIFF, of ImageJ or ScanImage), HDF5 or NWB file, known by its content.

Its labels, if it has any, are one file (see `formats.labels`): for a folder it lies in `regions/` under any
name (JSON as `regions.json`); for a file `movie.tif` it lies beside it as `movie.regions.json`,
`movie.regions.zip` and so on. An NWB file may have them itself.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurodetect.files import (
    UserError,
    listed,
    one_line,
    positive_number,
    possible_scale,
    read_json,
    reason,
    require_exists,
    visible_files,
)
from neurodetect.formats.folders import frame_files, require_one_movie
from neurodetect.formats.frames import TIFF_SUFFIXES
from neurodetect.formats.hdf5 import HDF5_SUFFIXES, Hdf5Frames, Tile, is_hdf5
from neurodetect.formats.labels import Named, find_labels, read_named_labels
from neurodetect.formats.segmentation import read_plane_segmentation
from neurodetect.formats.tiff import HEADERS, TiffFrames
from neurodetect.regions import PART_INSIDE, cut_region, move_regions, part_name, part_origin

Crop = Sequence[Sequence[int]]  #: first row and end of the rows, first column and end of the columns

# Formats of movies that are none of ours, by their suffixes.
FOREIGN = {
    ("avi", "mp4", "mov", "mkv", "m4v", "wmv", "mj2"): "a video",
    ("sbx",): "a Scanbox file",
    ("raw", "bin", "dat"): "raw numbers without their shape",
    ("npy", "npz"): "a NumPy array",
    ("mat",): "a MATLAB file older than version 7.3",
    ("nd2",): "a Nikon file",
    ("czi",): "a Zeiss file",
    ("lif", "xlef"): "a Leica file",
    ("oir", "oib", "oif", "vsi"): "an Olympus file",
    ("isxd",): "an Inscopix file",
    ("tsm", "dcimg", "spe", "sif", "fits", "nii"): "another program's movie",
    ("zip", "gz", "bz2", "xz", "7z", "rar", "tar", "tgz"): "an archive",
}


#: What is read of an `info.json`: the number that it stands for, None where it cannot be.
USABLE = {"pixels-per-micron": possible_scale, "rate-hz": positive_number}


class Recording:
    """A two-photon recording: frames on disk, each read when it is needed.

    Made by `open_recording`. Its length is the number of frames; iterating gives them in order.

    Attributes
    ----------
    name : str
        The folder's name, or the file's without its suffix; of a part of the image see `part_name`.
    path : Path
        The folder or the file.
    shape : (int, int)
        (H, W) of every frame, pixels.
    dtype : numpy.dtype
        Of every frame: an integer or float type.
    regions : list of (n, 2) int arrays, or None
        The labelled neurons as `[row, column]` pixels; None when the recording has no labels.
    names : list of str, int or None
        Of each of them, see `read_named_labels`.
    info : dict
        What `info.json` says; empty without one.
    notes : list of str
        What of the files is left out, and what was assumed of them: a line each.
    """

    def __init__(
        self,
        path: Path,
        frames: TiffFrames | Hdf5Frames,
        neurons: Named | None,
        info: dict[str, Any],
        notes: Sequence[str],
        scale: float | None,
        crop: Crop | None,
    ) -> None:
        self.path = path
        self.name = name_of(path)
        self.info = info
        self.notes = [*map(one_line, notes)]  # datasets have names of any kind
        self._frames = frames
        self._scale = scale
        self.shape: tuple[int, int] = frames.shape
        self.dtype: np.dtype = frames.dtype
        self._part: tuple[slice, slice] | None = None
        if crop is not None:
            neurons = self._cut(crop, neurons)
        self.regions = None if neurons is None else [region for region, _ in neurons]
        self.names = [name for _, name in neurons or ()]

    def _cut(self, crop: Crop, neurons: Named | None) -> Named | None:
        """Become a part of the recording, see `open_recording`; returns what of the neurons lies in it."""
        rows, columns = (range(*sides) for sides in crop)
        height, width = self.shape
        if not (0 <= rows.start < rows.stop <= height and 0 <= columns.start < columns.stop <= width):
            raise UserError(
                f"{self.path}: has rows 0 to {height} and columns 0 to {width}; choose a part of them with "
                "--crop ROW:ROW,COLUMN:COLUMN, rows first"
            )
        self.name = part_name(self.name, rows, columns)
        self.shape = len(rows), len(columns)
        self._part = slice(*crop[0]), slice(*crop[1])
        self.notes.append(
            f"rows {rows.start} to {rows.stop - 1} and columns {columns.start} to {columns.stop - 1} alone; "
            f"[0, 0] of what is written is [{rows.start}, {columns.start}] of the recording"
        )
        if neurons is None:
            return None
        parts = [(cut_region(region, rows, columns), name) for region, name in neurons]
        inside = [len(part) > 0 for part, _ in parts]
        whole = [len(part) == len(region) for (part, _), (region, _) in zip(parts, neurons, strict=True)]
        self.notes.append(
            f"{sum(inside)} of {len(neurons)} labelled neurons lie there, {sum(inside) - sum(whole)} of them "
            "cut at its edges"
        )
        return [part for part in parts if len(part[0])]

    @property
    def pixels_per_micron(self) -> float | None:
        """Pixels in a micrometre as `info.json` says, or else who opened it, or else the frames' files.

        None when nobody does.
        """
        return pixels_per_micron_of(self.info) or self._scale or self._frames.pixels_per_micron

    @property
    def rate_hz(self) -> float | None:
        """Frames a second as `info.json` says, or else the frames' files; None when neither does."""
        return positive_number(self.info.get("rate-hz", self._frames.rate_hz))

    def __len__(self) -> int:
        """Number of frames. The first call looks into every file."""
        return len(self._frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames()

    def frames(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """Every frame in order; a few are in memory at a time, however long the recording.

        Parameters
        ----------
        first, last : int
            Only the frames from `first` to before `last`, counted from 0.

        Yields
        ------
        (H, W) array
            Of the recording's dtype.

        Raises
        ------
        UserError
            A file is unreadable, truncated or of another format, or a frame has another shape or type
            than the first, or is not finite.
        """
        frames = self._frames.between(first, len(self) if last is None else last)
        return frames if self._part is None else (frame[self._part] for frame in frames)

    def tiles(self, first: int = 0, last: int | None = None) -> list[Tile] | None:
        """The same frames in tiles of the image, where that is faster; see `Hdf5Frames.tiles`."""
        if isinstance(self._frames, TiffFrames) or self._part is not None:
            return None
        tiles = self._frames.tiles(first, len(self) if last is None else last)
        return None if tiles is None else list(tiles)

    def frame(self, index: int) -> np.ndarray:
        """One frame by its number, from 0: (H, W). Raises as `frames` does."""
        frame = self._frames.frame(index)
        return frame if self._part is None else frame[self._part]


def open_recording(
    path: str | Path,
    channel: int | None = None,
    plane: int | None = None,
    dataset: str | None = None,
    transpose: bool = False,
    axes: str | None = None,
    labels: str | Path | None = None,
    pixels_per_micron: float | None = None,
    labelled: bool = True,
    move_labels: tuple[int, int] | None = None,
    crop: Crop | None = None,
) -> Recording:
    """Open a recording: look for its frames and read its labels, but no more than its first frame.

    Parameters
    ----------
    path : str or Path
        Any of the kinds that this module names.
    channel, plane : int, optional
        Which to read of several, by their numbers.
    dataset : str, optional
        Name of the movie in an HDF5 or NWB file that has several.
    transpose : bool
        Exchange rows and columns of the frames.
    axes : str, optional
        A letter for each axis of an HDF5 dataset that does not say them, see `Hdf5Frames`.
    labels : str or Path, optional
        The file of labels, instead of that in or beside the recording.
    pixels_per_micron : float, optional
        The scale, where no `info.json` says it.
    labelled : bool
        Whether to look for labels; otherwise it does not matter what is wrong with them.
    move_labels : (int, int), optional
        Rows and columns to move them by, see `regions.move_regions`.
    crop : ((int, int), (int, int)), optional
        Only the rows from the first to before the second, counted from 0, and columns alike: a recording of
        its own. Its neurons are cut at the edges, and their pixels are counted from its own first ones.

    Returns
    -------
    Recording

    Raises
    ------
    UserError
        There is no such thing, it holds no frames, its first frame, labels or info are unreadable, it has
        labels twice, or it has several channels, planes, datasets or movies and none was chosen; or labels
        may be counted from the first pixel of the part or of the whole, and `move_labels` does not say.
    """
    path = Path(os.path.abspath(path))  # so that `.` has a name
    require_exists(path)
    if not path.is_dir():
        kind = movie_format(path)
        if kind == "TIFF":
            refuse_hdf5_options(path, dataset, axes)
            frames: TiffFrames | Hdf5Frames = TiffFrames([path], channel, plane, transpose)
        elif kind == "HDF5":
            frames = Hdf5Frames(
                path, dataset=dataset, channel=channel, plane=plane, transpose=transpose, axes=axes
            )
        else:
            raise UserError(
                f"{path}: is {kind}, which is not read; export the frames as a TIFF stack or as HDF5"
            )
        neurons, unread = (
            labelled_neurons(path, frames, labels, move_labels, crop) if labelled else (None, [])
        )
        return Recording(path, frames, neurons, {}, frames.notes + unread, pixels_per_micron, crop)
    images = path / "images" if (path / "images").is_dir() else path
    files = [file for file in visible_files(images) if is_frame_file(file)]
    if not files:
        kinds = {file.name: movie_format(file) for file in visible_files(images) if file.is_file()}
        hint = next((f"; {name} is {kind}" for name, kind in kinds.items() if kind in FOREIGN.values()), "")
        hint = next(
            (f"; give {name} itself" for name, kind in kinds.items() if kind in ("HDF5", "TIFF")), hint
        )
        raise UserError(f"{path}: holds no frames, of which images/*.tiff or a TIFF stack is expected{hint}")
    refuse_hdf5_options(path, dataset, axes)
    chosen = frame_files(files, channel, plane)
    frames = TiffFrames(chosen.files, chosen.channel, chosen.plane, transpose)
    notes = [*chosen.notes, *frames.notes]
    if images == path and len(chosen.files) > 1:
        notes += require_one_movie(chosen.files, frames.counts())
    neurons, unread = labelled_neurons(path, frames, labels, move_labels, crop) if labelled else (None, [])
    info = read_info(path / "info.json")
    if pixels_per_micron and pixels_per_micron_of(info) not in (None, pixels_per_micron):
        notes.append(f"info.json says {pixels_per_micron_of(info):g} pixels per micron, which counts")
    return Recording(path, frames, neurons, info, notes + unread, pixels_per_micron, crop)


def name_of(path: Path) -> str:
    """A recording's name: the folder's, or the file's without its suffix."""
    return path.name if path.is_dir() else path.stem


def find_recording(place: str | Path, name: str) -> Path:
    """The recording of a name: the place itself, a folder or file, or what lies in that folder.

    Raises
    ------
    UserError
        There is none, or more than one.
    """
    place = Path(os.path.abspath(place))
    require_exists(place)
    if name_of(place) == name and is_recording(place):
        return place
    paths = visible_files(place) if place.is_dir() else []
    found = [path for path in paths if name_of(path) == name and is_recording(path)]
    if not found:
        raise UserError(
            f"{place}: has no recording {name}, a folder of TIFF frames or a TIFF, HDF5 or NWB file of this "
            "name; name the folder in which it lies"
        )
    if len(found) > 1:
        raise UserError(
            f"{place}: {listed(found)} are both called {name}; name the one that was prepared, or move the "
            "other away"
        )
    return found[0]


def refuse_hdf5_options(path: Path, dataset: str | None, axes: str | None) -> None:
    """Refuse what can be chosen of HDF5 files only."""
    if dataset is not None or axes is not None:
        raise UserError(f"{path}: is TIFF, which has no datasets; leave --dataset and --axes out")


def labelled_neurons(
    path: Path,
    frames: TiffFrames | Hdf5Frames,
    labels: str | Path | None,
    move: tuple[int, int] | None,
    crop: Crop | None,
) -> tuple[Named | None, list[str]]:
    """The labelled neurons of a recording with their names, None without labels; lines on what is not read.

    They come from the given file, or else from what lies in or beside the recording, or from the NWB file.
    They are moved by so many rows and columns.
    """
    source, unread = (Path(labels), []) if labels is not None else find_labels(path)
    names = listed(file.name for file in unread)
    notes = [f"{names}: not read; --labels FILE says which file has the labels"] if unread else []
    neurons: Named | None = None
    if source is not None:
        neurons = read_named_labels(source, frames.shape, name_of(path))
    elif isinstance(frames, Hdf5Frames):
        segmented = read_plane_segmentation(path, frames.shape, frames.turned, frames.name)
        neurons = None if segmented is None else [(region, None) for region in segmented]
    if (
        labels is not None
        and move is None
        and neurons
        and (origin := other_origin(neurons, Path(labels), path, crop))
    ):
        raise UserError(
            f"{labels}: may be counted from the first pixel of the recording or of a part of it: say "
            f"--move-labels 0 0, or --move-labels {origin[0]} {origin[1]}"
        )
    if move is None or not any(move):
        return neurons, notes
    if neurons is None:
        return None, [*notes, "no labels that could be moved"]
    moved = move_regions([region for region, _ in neurons], move, frames.shape)
    cut = sum(len(after) < len(before) for after, (before, _) in zip(moved, neurons, strict=True))
    neurons = [(after, name) for after, (_, name) in zip(moved, neurons, strict=True) if len(after)]
    if not neurons:
        raise UserError(f"{path}: --move-labels {move[0]} {move[1]} moves all labels out of the image")
    ends = f"; cut or left out at the image's edges: {cut}" if cut else ""
    return neurons, [*notes, f"labels moved by {move[0]} rows (down) and {move[1]} columns (right){ends}"]


def other_origin(neurons: Named, labels: Path, path: Path, crop: Crop | None) -> tuple[int, int] | None:
    """First row and column of a part of the image from which neurons may be counted, not from those of all.

    That is a part of which the file of labels has its name, or that is cut out; None where there is none.
    """
    named = part_origin(f"{labels.parent.name}/{labels.name}", PART_INSIDE)
    if any(named) and named != part_origin(name_of(path)):
        return named
    if crop is None:
        return None
    (top, bottom), (left, right) = crop
    last = np.max([region.max(axis=0) for region, _ in neurons], axis=0)
    return (top, left) if (top or left) and (last < (bottom - top, right - left)).all() else None


def chosen_frames(recording: Recording, frames: tuple[int, int] | None) -> range:
    """Numbers, from 0, of the frames from a first to a last one, counted from 1; by default of all.

    Raises
    ------
    UserError
        The recording has none of them.
    """
    length = len(recording)
    first, last = frames or (1, length)
    if not 1 <= first <= min(last, length):
        raise UserError(f"{recording.path}: has frames 1 to {length}, none from {first} to {last}")
    return range(first - 1, min(last, length))


def movie_format(path: Path) -> str:
    """The kind of a file by its content, or else its suffix: "TIFF", "HDF5", or another's in words."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check its permissions") from error
    if start in HEADERS:
        return "TIFF"
    if is_hdf5(path):
        return "HDF5"
    suffix = path.suffix.lower()
    if suffix in TIFF_SUFFIXES or suffix in HDF5_SUFFIXES:  # damaged: its reader says how
        return "TIFF" if suffix in TIFF_SUFFIXES else "HDF5"
    return next(
        (name for suffixes, name in FOREIGN.items() if suffix[1:] in suffixes), "neither TIFF nor HDF5"
    )


def is_frame_file(file: Path) -> bool:
    """A TIFF file, but not the label image of one beside it."""
    return file.suffix.lower() in TIFF_SUFFIXES and not file.stem.endswith(".regions")


def is_recording(path: Path) -> bool:
    """Whether a path is a folder with frames, or a file that may be a movie."""
    if not path.is_dir():
        return path.is_file() and movie_format(path) in ("TIFF", "HDF5")
    return (path / "images").is_dir() or any(map(is_frame_file, visible_files(path)))


def read_info(info_file: Path) -> dict[str, Any]:
    """What an `info.json` says; empty where there is none. A scale or rate that cannot be is warned of.

    Raises
    ------
    UserError
        It is unreadable or no JSON object.
    """
    info = read_json(info_file) if info_file.exists() else {}
    if not isinstance(info, dict):
        raise UserError(f"{info_file}: is not a JSON object; mend or remove it")
    for key, value in info.items():
        known = key.lower().replace("_", "-")
        if known in USABLE and value is not None and (key != known or USABLE[known](value) is None):
            warnings.warn(
                f"{info_file}: {key} {value!r} means nothing; what is read is {known}, a number", stacklevel=2
            )
    return info


def pixels_per_micron_of(info: dict[str, Any]) -> float | None:
    """The scale that `read_info` gave, pixels per micrometre; None where there is none."""
    return possible_scale(info.get("pixels-per-micron"))


def is_prepared(folder: str | Path) -> bool:
    """Whether it is a folder into which recordings were prepared, see `prepared.write_prepared`."""
    return any(Path(folder).glob("X_*.npy"))


def refuse_recording(folder: str | Path) -> None:
    """Make sure that results are not written into somebody's raw data.

    Raises
    ------
    UserError
        The folder, or the file in its place, is a recording, or the folder of its frames or labels.
    """
    folder = Path(folder)
    if folder.name in ("images", "regions") and (folder.parent / "images").is_dir():
        folder = folder.parent
    if is_recording(folder) and ((folder / "images").is_dir() or not is_prepared(folder)):
        raise UserError(
            f"{folder}: is a recording, into which nothing is written; name an OUTPUT_FOLDER last"
        )
