"""One mean image per recording: projection over time, clipping, scaling; prepared data in and out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from neurodetect.files import (
    UserError,
    digest,
    natural_key,
    read_array,
    reason,
    write_array,
    write_json,
)
from neurodetect.recording import positive_number, read_scale
from neurodetect.regions import read_regions, regions_to_mask, write_regions

CLIP_DEVIATIONS = 3.0  #: standard deviations above the mean at which bright pixels are cut
BACKGROUND = 25.0  #: pixels, standard deviation of the Gaussian whose mean is the local brightness
FRAMES_IN_32_BITS = 2**16  #: whose sum fits, whatever their 16-bit pixels
LONGEST_NAME = 200  #: bytes of a recording's name; file systems allow 255, and our files' names are longer


def mean_projection(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Mean intensity of each pixel over time.

    Parameters
    ----------
    frames : iterable of (H, W) arrays
        A recording, a stack (T, H, W), or anything that gives frames one by one. One frame at a time
        is in memory.

    Returns
    -------
    float64 (H, W)
        Sums of integers of up to 32 bits are exact.

    Raises
    ------
    ValueError
        There are no frames, or not all are (H, W) and of one dtype.
    """
    total = None
    for count, frame in enumerate(frames):
        frame = np.asarray(frame)
        if total is None:
            first = frame
            exact = frame.dtype.kind in "iu" and frame.dtype.itemsize <= 4
            total = np.zeros(frame.shape, np.int64 if exact else np.float64)
            # Sums of 32 bits take half the time; they are moved on before they can overflow.
            short = exact and frame.dtype.itemsize <= 2
            recent = np.zeros(frame.shape, f"{frame.dtype.kind}4") if short else total
        if frame.ndim != 2 or frame.shape != first.shape or frame.dtype != first.dtype:
            raise ValueError(
                f"frame {count} is {frame.dtype} {frame.shape}, not (H, W) like the first {first.shape}"
            )
        np.add(recent, frame, out=recent)
        if short and count % FRAMES_IN_32_BITS == FRAMES_IN_32_BITS - 1:
            total += recent
            recent[:] = 0
    if total is None:
        raise ValueError("a mean of no frames")
    if short:
        total += recent
    return total / (count + 1)


def clip_bright(image: np.ndarray, deviations: float = CLIP_DEVIATIONS) -> np.ndarray:
    """Cut the brightest pixels: every value above mean + 3 standard deviations becomes that limit.

    Parameters
    ----------
    image : (H, W) array
    deviations : float
        Standard deviations (over all pixels of the image) above the mean.

    Returns
    -------
    (H, W) array
        Of the image's dtype if it is a float type, otherwise float64.
    """
    image = np.asarray(image)
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large is refused when it is written
        limit = image.mean(dtype=np.float64) + deviations * image.std(dtype=np.float64)
        return np.minimum(image, limit).astype(image.dtype if image.dtype.kind == "f" else np.float64)


def standardize(image: np.ndarray) -> np.ndarray:
    """Scale an image by itself to mean 0 and standard deviation 1.

    Parameters
    ----------
    image : (H, W) array

    Returns
    -------
    float32 (H, W)

    Raises
    ------
    ValueError
        The image is constant or not finite: no scaling makes its deviation 1.
    """
    image = np.asarray(image, np.float64)
    deviation = image.std()
    if not np.isfinite(deviation):
        raise ValueError("the image has NaN or infinite pixels")
    if image.min() == image.max():
        raise ValueError("the image is constant")
    return ((image - image.mean()) / deviation).astype(np.float32)


def flatten(image: np.ndarray) -> np.ndarray:
    """An image less its local brightness, for backgrounds that are bright here and dark there.

    Parameters
    ----------
    image : (H, W) array

    Returns
    -------
    float64 (H, W)
        The difference from the mean of the surround, a Gaussian of BACKGROUND pixels of which only the
        part within the image counts.
    """
    image = np.asarray(image, np.float64)
    weight = ndimage.gaussian_filter(np.ones_like(image), BACKGROUND, mode="constant")
    return image - ndimage.gaussian_filter(image, BACKGROUND, mode="constant") / weight


def scale(image: np.ndarray, background: str = "keep") -> np.ndarray:
    """What the network sees of an image: standardized, with "subtract" after `flatten`. See `standardize`."""
    return standardize(flatten(image) if background == "subtract" else image)


# Prepared data on disk


class Prepared(NamedTuple):
    """What `preprocessing.py` wrote of one recording.

    `mask` and `regions` are None for a recording without labels, `pixels_per_micron` where unknown.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray | None
    regions: list[np.ndarray] | None
    pixels_per_micron: float | None


def write_prepared(
    folder: str | Path,
    name: str,
    image: np.ndarray,
    regions: Sequence[np.ndarray] | None = None,
    pixels_per_micron: float | None = None,
) -> None:
    """Write `X_NAME.npy` and, for a labelled recording, `y_NAME.npy` and `regions_NAME.json`.

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

    Raises
    ------
    UserError
        The image is constant, so that no neuron can be told in it, or has values beyond float32; the name
        is no name for files; or a file cannot be written.
    """
    folder = Path(folder)
    require_name(name)
    with np.errstate(over="ignore"):
        image = np.asarray(image, np.float32)
    if not np.isfinite(image).all():
        raise UserError(f"{name}: the mean image has values beyond float32; divide the frames by a constant")
    if image.min() == image.max():
        raise UserError(
            f"{name}: the mean image is constant, there is nothing to see in it; check the frames"
        )
    mask_file, regions_file = folder / f"y_{name}.npy", folder / f"regions_{name}.json"
    info_file = folder / f"info_{name}.json"
    # What this recording no longer has is removed: left from an earlier run it would be read as its own.
    if regions is not None:
        write_regions(regions_file, regions)
        write_array(mask_file, regions_to_mask(regions, image.shape))
    else:
        mask_file.unlink(missing_ok=True)
        regions_file.unlink(missing_ok=True)
    if pixels_per_micron is not None:
        write_json(info_file, {"pixels-per-micron": pixels_per_micron})
    else:
        info_file.unlink(missing_ok=True)
    # Last: without it the others do not count.
    write_array(folder / f"X_{name}.npy", image)


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
    image_file, mask_file = folder / f"X_{name}.npy", folder / f"y_{name}.npy"
    regions_file, info_file = folder / f"regions_{name}.json", folder / f"info_{name}.json"
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
    mask = regions = None
    if mask_file.exists():
        mask = read_array(mask_file)
        if mask.shape != image.shape:
            raise UserError(f"{mask_file}: is {mask.shape}, but {image_file.name} is {image.shape}; {again}")
        if not np.isin(mask, (0, 1)).all():
            raise UserError(f"{mask_file}: has values other than 0 and 1; {again}")
        if not regions_file.exists():
            raise UserError(f"{regions_file}: is missing beside {mask_file.name}; {again}")
        regions = read_regions(regions_file, image.shape)
        # A killed run leaves them so: the network would learn from the one and be scored with the other.
        if not np.array_equal(mask, regions_to_mask(regions, image.shape)):
            raise UserError(f"{mask_file}: does not show the neurons of {regions_file.name}; {again}")
        mask = mask.astype(np.uint8, order="C")
    return Prepared(name, image, mask, regions, read_scale(info_file))


def read_folder(folder: str | Path) -> list[Prepared]:
    """Every recording prepared in a folder, in natural order of their names. Raises as its parts do."""
    return [read_prepared(folder, name) for name in prepared_names(folder)]


def read_labelled(folder: str | Path) -> tuple[list[Prepared], list[str]]:
    """The labelled recordings of a folder, and the names of those without labels.

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
    return labelled, [recording.name for recording in recordings if recording.mask is None]


def neuron_area(recordings: Sequence[Prepared]) -> dict[str, float | None]:
    """Median area of the labelled neurons of recordings, for `expected_area`.

    Returns
    -------
    dict
        "pixels", and "square_microns" where every recording's scale is known, else None; both None where
        no neuron is labelled.
    """
    labelled = [(len(region), r.pixels_per_micron) for r in recordings for region in r.regions]
    if not labelled:
        return {"pixels": None, "square_microns": None}
    areas = [area for area, _ in labelled]
    known = all(pixels_per_micron for _, pixels_per_micron in labelled)
    return {
        "pixels": float(np.median(areas)),
        "square_microns": float(np.median([a / ppm**2 for a, ppm in labelled])) if known else None,
    }


def expected_area(area: dict[str, float | None], pixels_per_micron: float | None) -> float | None:
    """Pixels of a typical neuron in a recording, by what `neuron_area` gave for others.

    The neurons are taken to have the same size in µm where both scales are known, else in pixels.
    """
    microns = positive_number(area.get("square_microns"))
    if microns is not None and pixels_per_micron is not None:
        return microns * pixels_per_micron**2
    return positive_number(area.get("pixels"))


def digests(folder: str | Path, recordings: Sequence[Prepared]) -> dict[str, str]:
    """SHA-256 of the files that recordings were read from, by the files' names."""
    files = [
        file
        for r in recordings
        for file in (f"X_{r.name}.npy", f"y_{r.name}.npy", f"regions_{r.name}.json", f"info_{r.name}.json")
    ]
    return {file: digest(Path(folder) / file) for file in files if (Path(folder) / file).exists()}
