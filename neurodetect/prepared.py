"""What `preprocessing.py` wrote of recordings: a mean image each, and the labelled neurons."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neurodetect.files import (
    UserError,
    array_bytes,
    digest,
    json_bytes,
    listed,
    natural_key,
    read_array,
    read_json,
    reason,
    write_together,
)
from neurodetect.recording import (
    Recording,
    chosen_frames,
    find_recording,
    open_recording,
    pixels_per_micron_of,
    read_info,
)
from neurodetect.regions import dataset_name, read_regions, regions_as_json, regions_to_mask, whole_name

# What may be chosen of a recording: options of `open_recording`, and the first and the last frame, counted
# from 1. Where it was, `info_NAME.json` has it under "reading".
READING = {
    "channel": int,
    "plane": int,
    "dataset": str,
    "axes": str,
    "transpose": bool,
    "frames": list,
    "crop": list,
}
SAME = 1e-6  #: of the largest value, or of the value itself, by which rounding may change a mean
LONGEST_NAME = 200  #: bytes of a recording's name; file systems allow 255, and our files' names are longer


class Prepared(NamedTuple):
    """What `preprocessing.py` wrote of one recording.

    `mask` and `regions` are None for a recording without labels, `pixels_per_micron` where unknown. `valid`
    (bool, (H, W)) says which pixels any frame has; None where all are had.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray | None
    regions: list[np.ndarray] | None
    pixels_per_micron: float | None
    valid: np.ndarray | None = None


def write_prepared(
    folder: str | Path,
    name: str,
    image: np.ndarray,
    regions: Sequence[np.ndarray] | None = None,
    pixels_per_micron: float | None = None,
    *,
    valid: np.ndarray | None = None,
    reading: Mapping[str, Any] | None = None,
    names: Sequence[str | int | None] | None = None,
) -> None:
    """Write `X_NAME.npy` and, for a labelled recording, `y_NAME.npy` and `regions_NAME.json`.

    Where pixels are missing there is `valid_NAME.npy` too. `info_NAME.json` has what ties the image to its
    neurons and missing pixels, and how the frames were read.

    Parameters
    ----------
    folder : str or Path
        Made if it is missing.
    name : str
        The recording's name.
    image : (H, W) array
        The clipped mean image; stored as float32.
    regions : sequence of (n, 2) int arrays, optional
        The labelled neurons.
    pixels_per_micron : float, optional
        Kept in `info_NAME.json`: the distance at which neurons match is 5 µm.
    valid : bool (H, W), optional
        Which pixels any frame has; the others only fill the image.
    names : sequence of str, int or None, optional
        Of the neurons: their "id" in `regions_NAME.json`.
    reading : mapping, optional
        What was chosen of the frames, see `READING`, for `open_frames`.

    Raises
    ------
    UserError
        No frame has a pixel; the image is constant, so that no neuron can be told in it, or has values
        beyond float32; the name is no name for files; or a file cannot be written.
    """
    folder = Path(folder)
    require_name(name)
    if valid is not None and not valid.any():
        raise UserError(f"{name}: all pixels of all frames are 0 or NaN; check the frames")
    with np.errstate(over="ignore"):
        image = np.asarray(image, np.float32)
    if not np.isfinite(image).all():
        raise UserError(f"{name}: the mean image has values beyond float32; divide the frames by a constant")
    if image.min() == image.max():
        raise UserError(
            f"{name}: the mean image is constant, there is nothing to see in it; check the frames"
        )
    image_file, mask_file, regions_file, info_file, valid_file = paths(folder, name)
    info: dict[str, Any] = {} if pixels_per_micron is None else {"pixels-per-micron": pixels_per_micron}
    chosen = {
        key: value for key, value in (reading or {}).items() if value is not None and value is not False
    }
    if chosen:
        info["reading"] = chosen
    if regions is not None or valid is not None or mask_file.exists() or valid_file.exists():
        info["preparation"] = fingerprint(image, regions or [], valid)
    # First what ties the other files together, last the image, without which they do not count: a run that
    # is killed in between leaves nothing that could be taken for one preparation.
    contents = {info_file: json_bytes(info)} if info else {}
    if regions is not None:
        contents[regions_file] = json_bytes(regions_as_json(regions, names), indent=None)
        contents[mask_file] = array_bytes(regions_to_mask(regions, image.shape))
    if valid is not None:
        contents[valid_file] = array_bytes(valid.astype(np.uint8))
    write_together(contents | {image_file: array_bytes(image)})
    # Left from an earlier run they would be read as this recording's own.
    for stale in {mask_file, regions_file, info_file, valid_file} - contents.keys():
        stale.unlink(missing_ok=True)


def paths(folder: Path, name: str) -> tuple[Path, Path, Path, Path, Path]:
    """Where the image, the mask, the neurons, the info and the valid pixels of a recording are."""
    image, mask, valid = (folder / f"{kind}_{name}.npy" for kind in ("X", "y", "valid"))
    regions, info = (folder / f"{kind}_{name}.json" for kind in ("regions", "info"))
    return image, mask, regions, info, valid


def fingerprint(image: np.ndarray, regions: Sequence[np.ndarray], valid: np.ndarray | None = None) -> str:
    """SHA-256 of the values of an image, its neurons and valid pixels, in hexadecimal digits."""
    hasher = hashlib.sha256(np.asarray(image, "<f4").tobytes())
    for region in regions:
        hasher.update(np.asarray(region, "<i8").tobytes() + b"end")
    if valid is not None:
        hasher.update(np.asarray(valid, np.uint8).tobytes() + b"valid")
    return hasher.hexdigest()


def require_name(name: str) -> None:
    """Refuse a recording's name that the files made of it could not have.

    Raises
    ------
    UserError
        It is too long, or not text: a file system of the Latin-1 days.
    """
    length = len(os.fsencode(name))
    if length > LONGEST_NAME:
        raise UserError(f"{name}: is a name of {length} bytes, {LONGEST_NAME} are possible; shorten it")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{ascii(name)}: is a name that is not UTF-8; rename the recording") from error


def prepared_names(folder: str | Path) -> list[str]:
    """Names of the recordings prepared in a folder, in natural order.

    Raises
    ------
    UserError
        There is no such folder, or nothing prepared in it.
    """
    try:
        files = [path.name for path in Path(folder).iterdir()]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({reason(error)}); check the path") from error
    names = [f[len("X_") : -len(".npy")] for f in files if f.startswith("X_") and f.endswith(".npy")]
    if not names:
        raise UserError(f"{folder}: holds no X_*.npy; run preprocessing.py RECORDING {folder} first")
    return sorted(names, key=natural_key)


def read_prepared(folder: str | Path, name: str) -> Prepared:
    """Read what `write_prepared` wrote of one recording.

    Raises
    ------
    UserError
        A file is unreadable, the files do not fit together, or the name is no name for files.
    """
    folder = Path(folder)
    require_name(name)
    image_file, mask_file, regions_file, info_file, valid_file = paths(folder, name)
    again = "run preprocessing.py again"
    image = read_array(image_file)
    if image.ndim != 2 or not image.size or image.dtype.kind not in "iuf":
        raise UserError(f"{image_file}: is no (H, W) image of numbers; {again}")
    with np.errstate(over="ignore"):
        image = image.astype(np.float32, order="C")
    if not np.isfinite(image).all():
        raise UserError(f"{image_file}: has pixels that are NaN, infinite or beyond float32; {again}")
    if image.min() == image.max():
        raise UserError(f"{image_file}: is constant, there is nothing to see in it; remove it")
    info = read_info(info_file)
    mask, valid = (
        read_zeros_and_ones(file, image_file, image.shape) if file.exists() else None
        for file in (mask_file, valid_file)
    )
    regions = None
    if mask is not None:
        if not regions_file.exists():
            raise UserError(f"{regions_file}: is missing beside {mask_file.name}; {again}")
        regions = read_regions(regions_file, image.shape)
        # A killed run leaves them so: the network would learn from the one and be scored with the other.
        if not np.array_equal(mask, regions_to_mask(regions, image.shape)):
            raise UserError(f"{mask_file}: does not show the neurons of {regions_file.name}; {again}")
    if valid is not None:
        valid = valid.astype(bool)
        if not valid.any() or np.ptp(image[valid]) == 0:
            raise UserError(
                f"{valid_file}: leaves no pixels, or a constant image, there is nothing to see; {again}"
            )
    if (mask is not None or valid is not None) and info.get("preparation", "") not in (
        "",
        fingerprint(image, regions or [], valid),
    ):
        other = valid_file if mask is None else regions_file
        raise UserError(
            f"{image_file}: is not the image to which {other.name} belongs, as when a preparation "
            f"was stopped; {again}, or remove {info_file.name} if you changed one of them on purpose"
        )
    return Prepared(name, image, mask, regions, pixels_per_micron_of(info), valid)


def open_frames(place: str | Path, folder: str | Path, recording: Prepared) -> tuple[Recording, range]:
    """Open the recording that a prepared one was made of, as it was read then.

    Parameters
    ----------
    place : str or Path
        Where it is, see `find_recording`.
    folder : str or Path
        Where it was prepared.
    recording : Prepared

    Returns
    -------
    Recording, range
        Without labels; and the numbers, from 0, of the frames that were chosen.

    Raises
    ------
    UserError
        There is no such recording, or its frames cannot be read so, or are of another shape than the image.
    """
    info_file = paths(Path(folder), recording.name)[3]
    reading = read_info(info_file).get("reading", {})
    if not is_reading(reading):
        raise UserError(f"{info_file}: does not say how the frames were read; run preprocessing.py again")
    path = find_recording(place, whole_name(recording.name))
    options = {key: value for key, value in reading.items() if key != "frames"}
    try:
        movie = open_recording(path, **options, labelled=False)
        frames = chosen_frames(movie, reading.get("frames"))
    except UserError as error:
        raise UserError(
            f"{recording.name}: its frames cannot be read as they were prepared ({error}); name the "
            "recording that was prepared, or run preprocessing.py again"
        ) from error
    if movie.shape != recording.image.shape:
        raise UserError(
            f"{path}: has frames of {movie.shape}, but X_{recording.name}.npy is {recording.image.shape}; "
            "name the recording that was prepared, or run preprocessing.py again"
        )
    return movie, frames


def is_reading(value: Any) -> bool:
    """Whether a value is as `READING` says."""
    if not isinstance(value, dict) or not all(type(value[key]) is READING.get(key) for key in value):
        return False
    pairs = [*value.get("crop", []), *([value["frames"]] if "frames" in value else [])]
    return len(value.get("crop", [1, 2])) == 2 and all(
        isinstance(pair, list) and [type(number) for number in pair] == [int, int] for pair in pairs
    )


def require_same(folder: str | Path, recording: Prepared) -> None:
    """Make sure that what was prepared of a recording, if it was, is this: there labels may be corrected.

    Raises
    ------
    UserError
        It has another image, other neurons or another scale.
    """
    image_file = paths(Path(folder), recording.name)[0]
    if not image_file.exists():
        return
    before = read_prepared(folder, recording.name)

    def what(of: Prepared) -> tuple[Any, ...]:
        image = np.asarray(of.image, np.float32)
        return fingerprint(image, of.regions or [], of.valid), of.regions is None, of.pixels_per_micron

    if what(before) != what(recording):
        raise UserError(
            f"{image_file}: was prepared of other frames, or with other labels or another scale, and would "
            "be replaced; choose another folder for --output, or remove it"
        )


def require_same_image(path: Path, image: np.ndarray, valid: np.ndarray | None, recording: Prepared) -> None:
    """Make sure that frames are those that were prepared, by the image that `preprocessing.py` makes of them.

    Parameters
    ----------
    path : Path
        Of the frames.
    image, valid
        As for `write_prepared`.
    recording : Prepared

    Raises
    ------
    UserError
        The image is another, by more than rounding.
    """
    near = SAME * np.abs(recording.image).max()
    every = np.ones(recording.image.shape, bool)
    there, then = (every if pixels is None else pixels for pixels in (valid, recording.valid))
    if not np.array_equal(there, then) or not np.allclose(image, recording.image, rtol=SAME, atol=near):
        raise UserError(
            f"{path}: the mean of its frames is not X_{recording.name}.npy: this is another recording, or it "
            "was changed; name the one that was prepared, or run preprocessing.py again"
        )


def read_zeros_and_ones(file: Path, image_file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array of 0 and 1 that goes with an image; refuses others as `read_prepared` does."""
    array = read_array(file)
    again = "run preprocessing.py again"
    if array.shape != shape:
        raise UserError(f"{file}: is {array.shape}, but {image_file.name} is {shape}; {again}")
    if not np.isin(array, (0, 1)).all():
        raise UserError(f"{file}: has values other than 0 and 1; {again}")
    return array.astype(np.uint8, order="C")


def read_folder(folder: str | Path) -> list[Prepared]:
    """Every recording prepared in a folder, in natural order of their names. Raises as its parts do."""
    return [read_prepared(folder, name) for name in prepared_names(folder)]


def read_labelled(folder: str | Path) -> list[Prepared]:
    """The labelled recordings of a folder; there is a warning for each that has no labels.

    Raises
    ------
    UserError
        None is labelled, or a file is unreadable.
    """
    recordings = read_folder(folder)
    labelled = [recording for recording in recordings if recording.mask is not None]
    if not labelled:
        raise UserError(
            f"{folder}: none of its {len(recordings)} recordings has labels (y_*.npy), which training "
            "and cross-validation need; is this the test folder?"
        )
    for recording in recordings:
        if recording.mask is None:
            warnings.warn(
                f"{recording.name} has no labels (no y_{recording.name}.npy) and is left out", stacklevel=2
            )
    return labelled


def read_groups(groups: str | Path, names: Sequence[str]) -> dict[str, str]:
    """Which recordings belong together, of one animal, field or laboratory: the group of each name.

    Parameters
    ----------
    groups : str or Path
        "prefix": the group is a name's beginning, up to the first dot, underscore, hyphen or space. Anything
        else is a JSON file of an object, {"NAME": "GROUP", ...}.
    names : sequence of str
        Of the recordings; a leading `neurofinder.` does not count.

    Raises
    ------
    UserError
        The file is unreadable, malformed, lacks a recording or has one in two groups.

    Examples
    --------
    >>> read_groups("prefix", ["neurofinder.00.01", "mouse7_monday"])
    {'neurofinder.00.01': '00', 'mouse7_monday': 'mouse7'}
    """
    if groups == "prefix":
        return {name: prefix(name) for name in names}
    content = read_json(groups)
    if not isinstance(content, dict) or not all(isinstance(group, str) for group in content.values()):
        raise UserError(f'{groups}: is no object of groups by recordings, {{"NAME": "GROUP", ...}}; mend it')
    by_dataset: dict[str, str] = {}
    for name, group in content.items():
        if by_dataset.setdefault(dataset_name(name), group) != group:
            raise UserError(
                f"{groups}: has {dataset_name(name)} twice, in {group} and in another group; mend it"
            )
    missing = [name for name in names if dataset_name(name) not in by_dataset]
    if missing:
        raise UserError(f"{groups}: has no group for {listed(missing)}; add them")
    return {name: by_dataset[dataset_name(name)] for name in names}


def held_out_together(images: Mapping[str, str], groups: Mapping[str, str] | None = None) -> list[str] | None:
    """The group of each recording, of which all are held out from a training; None if none are of one.

    Parts of a recording, see `regions.part_name`, and copies of its image under other names are a group: what
    is held out shall not have been seen.

    Parameters
    ----------
    images : mapping of str to str
        SHA-256 of each recording's image, by its name.
    groups : mapping of str to str, optional
        See `read_groups`.

    Raises
    ------
    UserError
        Parts or copies of one recording are in two groups.

    Examples
    --------
    >>> held_out_together({"a.rows0-60.columns0-60": "1", "b": "2", "a": "3", "copy of b": "2"})
    ['a', 'b', 'a', 'b']
    """
    by_image: dict[str, str] = {}
    wholes = [by_image.setdefault(image, dataset_name(whole_name(name))) for name, image in images.items()]
    if groups is None:
        return wholes if len(set(wholes)) < len(wholes) else None
    group_of_whole = {whole: groups[name] for whole, name in zip(wholes, images, strict=True)}
    for whole, name in zip(wholes, images, strict=True):
        if groups[name] != group_of_whole[whole]:
            raise UserError(
                f"{name}: is in group {groups[name]}, but a part or copy of it in {group_of_whole[whole]}: "
                "one would be held out from a training on the other; put them into one group"
            )
    return [groups[name] for name in images]


def prefix(name: str) -> str:
    """The group of a recording by its name's beginning, see `read_groups`."""
    return beginnings(name)[0]


def beginnings(name: str) -> list[str]:
    """What a recording's name begins with, up to each dot, underscore, hyphen or space, and the whole name.

    Examples
    --------
    >>> beginnings("neurofinder.04.00.test")
    ['04', '04.00', '04.00.test']
    """
    name = dataset_name(name)
    ends = [*(separator.start() for separator in re.finditer(r"[._\- ]", name)), len(name)]
    return [name[:end] for end in ends if end] or [name]


def group_of(name: str, groups: Collection[str]) -> str | None:
    """The group that a recording is of: the longest beginning of its name among the groups; None without one.

    Examples
    --------
    >>> [group_of(name, {"04", "04.00"}) for name in ("04.00.test", "04.01.test", "05.00.test")]
    ['04.00', '04', None]
    """
    return next((beginning for beginning in reversed(beginnings(name)) if beginning in groups), None)


def digests(folder: str | Path, recordings: Iterable[Prepared]) -> dict[str, str]:
    """SHA-256 of the files that recordings were read from, by the files' names."""
    files = [file for recording in recordings for file in paths(Path(folder), recording.name)]
    return {file.name: digest(file) for file in files if file.exists()}
