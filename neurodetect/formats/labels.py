"""Neurons that people and other programs marked.

A file of them is one of these:
  a neurofinder regions.json, or a submission.json
  ImageJ ROIs: the .zip that the ROI Manager saves, one .roi, or a folder of them
  a label image (.tif, .tiff, .png, .npy): 0 outside, and each neuron a number of its own
  what Suite2p (stat.npy) and Cellpose (NAME_seg.npy) save
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neurodetect.files import (
    LARGEST_SUBMISSION,
    UserError,
    listed,
    read_array,
    read_json,
    require_exists,
    visible_files,
)
from neurodetect.formats.frames import TIFF_SUFFIXES
from neurodetect.formats.label_images import image_to_regions, read_label_image
from neurodetect.formats.pickles import Stored, read_objects
from neurodetect.formats.rois import read_rois
from neurodetect.regions import (
    dataset_name,
    parse_region,
    parse_regions,
    parse_submission,
    part_origin,
    whole_name,
)

LABEL_SUFFIXES = (".json", ".zip", ".roi", ".tif", ".tiff", ".png", ".npy")
ROI_SUFFIXES = (".zip", ".roi")
#: What files and folders of labels are usually called, behind the movie's name if that comes first.
LABEL_WORD = r"(seg|(cp_)?masks?|rois?|roi_?set|regions|labels|sources|stat|suite2p)"
LABEL_NAME = re.compile(rf"(.*[\W_])?{LABEL_WORD}", re.IGNORECASE)
SUITE2P_FILE = re.compile(r"(iscell|ops|redcell|F|Fneu|spks)(_chan2)?\.npy")  #: what lies beside a stat.npy
Name = str | int | None  #: of a neuron
Named = Sequence[tuple[np.ndarray, Name]]
LEFTOVERS = ("thumbs.db", "desktop.ini")  #: which Windows puts into folders


def read_labels(
    path: str | Path | Sequence[Path], shape: tuple[int, int] | None = None, name: str | None = None
) -> list[np.ndarray]:
    """Neurons of a file of labels, each once.

    Parameters
    ----------
    path : str, Path or sequence of Path
        A file of one of the kinds that this module names, by its suffix; several `.roi` files; or a folder
        with either.
    shape : (int, int), optional
        (H, W) of the recording.
    name : str, optional
        Of the recording: its neurons are taken of a submission that has several.

    Returns
    -------
    list of (n, 2) int arrays
        `[row, column]` pixels of each neuron, row by row; in the order of the file, or of a label image's
        numbers. A neuron with the same pixels as an earlier one is left out, with a warning.

    Raises
    ------
    UserError
        The file is missing, malformed or of another shape, or a neuron has no pixel in the image. ImageJ
        draws over the border: what of a ROI lies outside the image is left out.
    """
    return [region for region, _ in read_named_labels(path, shape, name)]


def read_named_labels(
    path: str | Path | Sequence[Path], shape: tuple[int, int] | None = None, name: str | None = None
) -> Named:
    """What `read_labels` reads, each neuron with its name.

    That is the number in a label image, the name of an ImageJ ROI, the index of a ROI of Suite2p, the "id" in
    JSON; None in JSON without.
    """
    path = Path(path) if isinstance(path, str) else path
    neurons = read_neurons(path, shape, name)
    once: dict[bytes, tuple[np.ndarray, Name]] = {}
    for region, name_of_it in neurons:
        once.setdefault(region.tobytes(), (region, name_of_it))
    if len(once) < len(neurons):
        source = path if isinstance(path, Path) else path[0].parent
        repeats = len(neurons) - len(once)
        warnings.warn(
            f"{source}: {repeats} of {len(neurons)} neurons have the pixels of another one and are left out",
            stacklevel=2,
        )
    return list(once.values())


def read_neurons(
    path: Path | Sequence[Path], shape: tuple[int, int] | None = None, name: str | None = None
) -> Named:
    """What `read_named_labels` reads, neurons that are there twice too."""
    if not isinstance(path, Path):
        return read_rois(path, shape)
    if path.is_dir():
        labels = set_of_labels(label_files(visible_files(path)))
        if labels is None:
            raise UserError(f"{path}: holds no labels; name a file of them, or a folder of .roi files")
        return read_neurons(labels, shape, name)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_json_neurons(path, shape, name)
    if suffix in (".zip", ".roi"):
        return read_rois(path, shape)
    if suffix == ".npy":
        return read_npy(path, shape)
    if suffix in LABEL_SUFFIXES:
        return read_label_image(path, shape)
    raise UserError(f"{path}: is no file of labels; those end in {', '.join(LABEL_SUFFIXES)}")


def read_json_neurons(path: Path, shape: tuple[int, int] | None, name: str | None) -> Named:
    """Neurons of a `regions.json`, or of the recording of this name in a `submission.json`."""
    value = read_json(path, LARGEST_SUBMISSION)
    if isinstance(value, dict) and isinstance(value.get("regions"), list):
        value = value["regions"]
    if not is_submission(value):
        return named(value, parse_regions(value, shape, source=str(path)))
    datasets = parse_submission(value, source=str(path))
    names, wanted = list(datasets), dataset_name(name or "")
    if wanted not in datasets:
        if len(names) > 1:
            none = f"none of them is {wanted}" if name else "only one can be read"
            raise UserError(
                f"{path}: has the neurons of {len(names)} recordings, {listed(names)}, and {none}; "
                "leave the one that is meant alone in the file, or rename it"
            )
        wanted = names[0]
        if name is not None and whole_name(wanted) == dataset_name(name):
            return named(datasets[wanted], regions_of_part(datasets[wanted], shape, path, wanted))
        if name is not None:
            warnings.warn(f"{path}: has neurons of {wanted}, which are taken for {name}", stacklevel=2)
    return named(datasets[wanted], parse_regions(datasets[wanted], shape, source=f"{path}: {wanted}"))


def regions_of_part(value: Any, shape: tuple[int, int] | None, path: Path, part: str) -> list[np.ndarray]:
    """Neurons, as parsed JSON, of a part that was cut out of a recording, as pixels of the whole (H, W)."""
    origin = part_origin(part)
    regions = [region + origin for region in parse_regions(value, None, source=f"{path}: {part}")]
    if shape is not None and any((region >= shape).any() for region in regions):
        raise UserError(
            f"{path}: has neurons of {part}, which is no part of an image of {shape[0]} x {shape[1]} px; are "
            "they of this recording?"
        )
    warnings.warn(
        f"{path}: has neurons of {part}, counted there from [{origin[0]}, {origin[1]}]", stacklevel=2
    )
    return regions


def named(value: list[dict], regions: list[np.ndarray]) -> Named:
    """The neurons of parsed JSON with their "id", where that is text or a whole number."""
    ids = (entry.get("id") for entry in value)
    names = (one if isinstance(one, str) or type(one) is int else None for one in ids)
    return list(zip(regions, names, strict=True))


def is_submission(value: Any) -> bool:
    """Whether parsed JSON is a submission rather than the neurons of one recording."""
    return isinstance(value, list) and any(isinstance(entry, dict) and "dataset" in entry for entry in value)


# Suite2p and Cellpose


def read_npy(path: Path, shape: tuple[int, int] | None) -> Named:
    """Neurons of Suite2p's `stat.npy`, of Cellpose's `_seg.npy`, or of a label image as numpy saves it."""
    objects = read_objects(path)
    if objects is None:
        return read_label_image(path, shape)
    dicts = objects and all(isinstance(entry, dict) for entry in objects)
    if dicts and all({"ypix", "xpix"} <= entry.keys() for entry in objects):
        return stat_to_regions(objects, shape, path)
    masks = objects[0].get("masks") if dicts else None
    if isinstance(masks, Stored) and isinstance(masks.value, np.ndarray):
        return image_to_regions(masks.value, shape, path)
    raise UserError(
        f"{path}: holds neither ROIs of Suite2p (ypix, xpix) nor masks of Cellpose; "
        "save its neurons as a label image"
    )


def stat_to_regions(stat: list[dict], shape: tuple[int, int] | None, path: Path) -> Named:
    """Neurons of Suite2p's ROIs: those that `iscell.npy` beside it calls cells, all where there is none.

    Pixels that a ROI shares with another one (`overlap`) are its own too.
    """
    if len({str(plain(roi.get("iplane"))) for roi in stat}) > 1:
        raise UserError(
            f"{path}: has the ROIs of several planes side by side; take the stat.npy of one plane"
        )
    cells = np.arange(len(stat))
    if (is_cell := path.with_name("iscell.npy")).exists():
        flags = read_array(is_cell, "copy it again, or remove it to take all ROIs")
        if flags.ndim not in (1, 2) or len(flags) != len(stat):
            raise UserError(
                f"{is_cell}: is not of the {len(stat)} ROIs of {path.name}; copy both again, "
                "or remove it to take all ROIs"
            )
        cells = np.flatnonzero(flags.reshape(len(stat), -1)[:, 0] > 0)
        if not len(cells):
            raise UserError(f"{is_cell}: calls none of {len(stat)} ROIs a cell; remove it to take all")
        if len(cells) < len(stat):
            warnings.warn(
                f"{path}: of {len(stat)} ROIs {len(cells)} are taken, which iscell.npy calls cells",
                stacklevel=2,
            )
    regions: list[tuple[np.ndarray, Name]] = []
    for index in cells.tolist():
        source = f"{path}: ROI {index}"
        try:
            pixels = np.transpose([plain(stat[index]["ypix"]), plain(stat[index]["xpix"])])
        except ValueError:
            raise UserError(f"{source} has more ypix than xpix or fewer; save it again") from None
        regions.append((parse_region({"coordinates": pixels}, shape, source), index))
    return regions


def plain(value: Any) -> Any:
    """A value of a pickle, the array or number itself where `read_objects` keeps one of numpy."""
    return value.value if isinstance(value, Stored) else value


# Where labels are


def find_labels(recording: Path) -> tuple[Path | list[Path] | None, list[Path]]:
    """The labels of a recording, and what else lies where labels are and is not read.

    Parameters
    ----------
    recording : Path
        A folder, whose labels lie in its `regions/` (or `Regions/`), or a file `movie.tif`, whose labels lie
        beside it as `movie.regions.zip` and so on; those of `movie.ome.tif` also as `movie.regions.zip`.

    Returns
    -------
    labels : Path, list of Path or None
        For `read_labels`. Several loose `.roi` files are one set.
    unread : list of Path
        Files and folders in the usual places, or with usual names, that are no part of it.

    Raises
    ------
    UserError
        There are labels of two kinds.
    """
    places, elsewhere, labels = in_folder(recording) if recording.is_dir() else beside_file(recording)
    taken = labels if isinstance(labels, list) else [labels]
    # What Suite2p writes beside its ROIs belongs to them.
    own = [file.parent for file in taken if file is not None and file.name == "stat.npy"]
    unread = [
        entry
        for entry in [*places, *elsewhere]
        if entry not in taken
        and entry.name.lower() not in LEFTOVERS
        and not (entry.parent in own and SUITE2P_FILE.fullmatch(entry.name))
    ]
    return labels, unread


def in_folder(recording: Path) -> tuple[list[Path], list[Path], Path | list[Path] | None]:
    """What lies in a recording's `regions/`, what elsewhere in it is called like labels, and its labels."""
    entries = visible_files(
        recording, without=TIFF_SUFFIXES
    )  # which of those are frames is not for us to say
    places = [file for folder in entries if is_regions_folder(folder) for file in visible_files(folder)]
    images = recording / "images"
    elsewhere = [
        entry
        for entry in [*entries, *(visible_files(images, without=TIFF_SUFFIXES) if images.is_dir() else [])]
        if (entry.suffix.lower() in ROI_SUFFIXES or LABEL_NAME.fullmatch(entry.stem))
        and not is_regions_folder(entry)
    ]
    return places, elsewhere, set_of_labels(label_files(places))


def beside_file(movie: Path) -> tuple[list[Path], list[Path], Path | list[Path] | None]:
    """`in_folder` for a single file, beside which is no such place."""
    stems = {movie.stem, re.sub(r"\.ome$", "", movie.stem, flags=re.IGNORECASE)}
    entries = [entry for entry in visible_files(movie.parent) if entry != movie]
    names = {f"{stem}.regions{suffix}".lower() for stem in stems for suffix in LABEL_SUFFIXES}
    labels = set_of_labels([entry for entry in entries if entry.name.lower() in names])
    # `movie_2_RoiSet.zip` is of another movie, `RoiSet.zip` may be of any.
    called = re.compile(rf"(({'|'.join(map(re.escape, stems))})[\W_]*)?{LABEL_WORD}", re.IGNORECASE)
    elsewhere = [
        entry
        for entry in entries
        if called.fullmatch(entry.stem) or (entry.stem in stems and entry.suffix.lower() in ROI_SUFFIXES)
    ]
    return [], elsewhere, labels


def is_regions_folder(entry: Path) -> bool:
    """`regions/`, in whatever case it is written."""
    return entry.name.lower() == "regions" and entry.is_dir()


def is_label_file(file: Path) -> bool:
    """`regions.json`, or any file of the other kinds of labels; a `.npy` file if its name says what it is."""
    suffix = file.suffix.lower()
    if suffix in (".json", ".npy"):
        return file.name.lower() in ("regions.json", "stat.npy") or file.name.lower().endswith("_seg.npy")
    return suffix in LABEL_SUFFIXES


def label_files(files: Sequence[Path]) -> list[Path]:
    """Those of a folder's files that are labels; a `.npy` of any name if there is nothing else."""
    arrays = [f for f in files if f.suffix.lower() == ".npy" and not SUITE2P_FILE.fullmatch(f.name)]
    return list(filter(is_label_file, files)) or arrays


def set_of_labels(files: Sequence[Path]) -> Path | list[Path] | None:
    """The one file of labels, all of them if there are only `.roi` files, or None.

    Raises
    ------
    UserError
        There are several.
    """
    rois = [file for file in files if file.suffix.lower() == ".roi"]
    if len(rois) == len(files) > 1:
        return rois
    if len(files) > 1:
        names = [file.name for file in files if file not in rois]
        names += [f"{len(rois)} .roi files"] if len(rois) > 1 else [file.name for file in rois]
        raise UserError(
            f"{files[0].parent}: has labels more than once, {' and '.join(names)}; keep one of them, "
            "or choose with preprocessing.py --labels FILE"
        )
    return files[0] if files else None


class Truth(NamedTuple):
    """The labels of one recording, and the file that has its scale if it exists."""

    labels: Path | list[Path]
    info: Path


def find_truths(path: str | Path) -> dict[str, Truth]:
    """The labelled recordings of a file or folder by the challenge's names of them, in natural order.

    Parameters
    ----------
    path : str or Path
        A file of labels, a recording with `regions/`, a folder of such recordings, one with the
        `regions_NAME.json` of prepared recordings, or one of `.roi` files.

    Raises
    ------
    UserError
        There are none, or the same name is there twice.
    """
    path = Path(os.path.abspath(path))  # so that `.` has a name
    found: list[Path | list[Path]] = [path]
    if path.is_dir():
        entries = visible_files(path)
        found = [e for e in entries if e.name.startswith("regions_") and e.suffix == ".json"]
        for recording in (path, *entries):
            if recording.is_dir() and any(map(is_regions_folder, visible_files(recording))):
                labels, _ = find_labels(recording)
                found += [labels] if labels is not None else []
        if any(entry.suffix.lower() == ".roi" for entry in entries):
            found.append(path)
    truths: dict[str, Truth] = {}
    for labels in found:
        file = labels[0] if isinstance(labels, list) else labels
        if file.parent.name.lower() == "regions":
            name, info = file.parent.parent.name, file.parent.parent / "info.json"
        else:
            name = file.stem.removeprefix("regions_")
            info = file.with_name(f"info_{name}.json")
        name = dataset_name(name)
        if name in truths:
            raise UserError(f"{path}: has {name} twice, {truths[name].labels} and {file}; keep one of them")
        truths[name] = Truth(labels, info)
    if not truths:
        raise UserError(f"{path}: holds no labels; expected are NAME/regions/ or regions_NAME.json")
    return truths


def read_estimate(path: str | Path) -> dict[str, list[np.ndarray]] | list[np.ndarray]:
    """Found neurons: of each recording of a `submission.json` by its name, or of another file's only one.

    Raises
    ------
    UserError
        The file is missing or malformed, or a submission has a recording twice.
    """
    path = Path(path)
    value = read_json(path, LARGEST_SUBMISSION) if path.suffix.lower() == ".json" else None
    if not is_submission(value):
        return [region for region, _ in read_neurons(path)]
    datasets = parse_submission(value, source=str(path))
    return {
        name: parse_regions(regions, None, source=f"{path}: {name}") for name, regions in datasets.items()
    }


def pair_recordings(
    truth: str | Path, estimate: str | Path
) -> tuple[dict[str, Truth], dict[str, list[np.ndarray]]]:
    """The recordings of `find_truths` and the neurons of `read_estimate`, under the same names.

    One labelled recording and one of found neurons are meant for each other whatever they are called.

    Raises
    ------
    UserError
        They have no recording in common, or it cannot be told which of several is meant.
    """
    require_exists(truth)
    require_exists(estimate)
    truths, found = find_truths(truth), read_estimate(estimate)
    if isinstance(found, list) or (len(found) == 1 and not os.path.isdir(truth)):
        if len(truths) > 1:
            raise UserError(
                f"{estimate}: holds one recording without its name, but {truth} has {len(truths)}; "
                "give the labels of that recording as TRUTH"
            )
        found = {name: found if isinstance(found, list) else next(iter(found.values())) for name in truths}
    if not found.keys() & truths.keys():
        raise UserError(
            f"{estimate}: has none of the recordings of {truth} ({', '.join(truths)}); "
            f"it has {', '.join(found)}"
        )
    return truths, found
