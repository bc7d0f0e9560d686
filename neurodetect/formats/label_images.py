"""Label images: 0 outside, and each neuron a number of its own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neurodetect.files import LARGEST_SIDE, UserError, listed, read_array, reason
from neurodetect.regions import labels_to_regions

FAR_APART = 6  #: pixels, up to which two pieces are not far apart; from twice as many on they always are
COLOUR = "is a colour image; export numbers, as grey values or TIFF"


def read_label_image(path: Path, shape: tuple[int, int] | None) -> list[tuple[np.ndarray, int]]:
    """Neurons of a `.tif`, `.tiff`, `.png` or plain `.npy` label image. See `labels.read_named_labels`."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        image = read_array(path, "save the label image again")
    else:
        image = read_png(path) if suffix == ".png" else read_tiff(path)
    return image_to_regions(image, shape, path)


def image_to_regions(
    image: np.ndarray, shape: tuple[int, int] | None, path: Path
) -> list[tuple[np.ndarray, int]]:
    """Neurons of a label image of whatever type with their numbers, in the order of these.

    Raises
    ------
    UserError
        It is no label image of a recording of this shape; `path` names it.
    """
    size = " x ".join(map(str, image.shape))
    if image.ndim != 2 or not image.size:
        raise UserError(f"{path}: is {size or 'a single number'}; a label image is rows x columns")
    if shape is not None and image.shape != tuple(shape):
        exchanged = image.shape[::-1] == tuple(shape)
        advice = ": are rows and columns exchanged? Transpose it" if exchanged else ""
        raise UserError(
            f"{path}: is {size} px, but the recording is {shape[0]} x {shape[1]} (rows x columns){advice}"
        )
    with np.errstate(invalid="ignore"):  # NaN, which is found below
        numbers = image.astype(np.int64)
    values, counts = np.unique(numbers, return_counts=True)
    background, share = values[counts.argmax()], counts.max() / numbers.size
    if np.array_equal(numbers, image) and background == values[0] == -1:
        raise UserError(f"{path}: has -1 as background, which must be 0; add 1 to every pixel")
    if not np.array_equal(numbers, image) or values[0] < 0:
        raise UserError(f"{path}: has values that are no whole numbers from 0; is it a label image?")
    if not values.any():
        raise UserError(f"{path}: marks no neuron; remove it if there are none")
    if background != 0 and (values[0] != 0 or share > 0.5):
        raise UserError(
            f"{path}: {'has no pixel of 0, and ' if values[0] else ''}number {background} covers "
            f"{share:.0%} of the image; the background must be 0, so set it where there is no neuron"
        )
    regions, numbered = labels_to_regions(numbers), values[values > 0]
    if len(regions) == 1 and count_pieces(regions[0]) > 1:
        raise UserError(f"{path}: is a mask, all its neurons have one number; give each a number of its own")
    report_pieces(regions, numbered, path)
    return list(zip(regions, numbered.tolist(), strict=True))


def report_pieces(regions: Sequence[np.ndarray], numbers: np.ndarray, path: Path) -> None:
    """Warn of neurons that are in pieces, and refuse where most are in pieces far apart: it is a picture."""
    far: list[str] = []
    near: list[str] = []
    for number, region in zip(numbers.tolist(), regions, strict=True):
        count = count_pieces(region, FAR_APART)
        if count > 1:
            far.append(f"number {number} is in {count} pieces")
        elif (count := count_pieces(region)) > 1:
            near.append(f"number {number} is in {count} pieces")
        if len(far) > max(2, len(regions) / 2):  # before all grey values of a large picture are looked at
            raise UserError(f"{path}: {listed(far)}, far apart; is it a label image?")
    for pieces, how in ((far, "far apart, but"), (near, "that do not touch, but")):
        if pieces:
            warnings.warn(f"{path}: {listed(pieces)}, {how} taken for one neuron", stacklevel=2)


def count_pieces(region: np.ndarray, cell: int = 1) -> int:
    """Number of pieces of a neuron that share no corner on a grid of cells so many pixels wide."""
    from scipy import ndimage

    cells = region // cell
    first = cells.min(axis=0)
    mask = np.zeros(cells.max(axis=0) - first + 1, bool)
    mask[tuple((cells - first).T)] = True
    return ndimage.label(mask, np.ones((3, 3)))[1]


def read_tiff(path: Path) -> np.ndarray:
    """The only page of a TIFF file: (H, W), the numbers as they are stored, whatever colour they mean."""
    from neurodetect.formats.tiff import end_of, find_pages, open_tiff

    _, count, _ = find_pages(path, {}, alone=True)
    if count > 1:
        raise UserError(f"{path}: has {count} frames; a label image is one: number all neurons in it")
    with open_tiff(path) as tiff:
        page = tiff.pages[0]
        if len(page.shape) > 2:
            raise UserError(f"{path}: {COLOUR}")
        if max(page.shape) > LARGEST_SIDE:
            raise UserError(f"{path}: claims {page.shape[1]} x {page.shape[0]} px; the file is damaged")
        if end_of(page) > tiff.filehandle.size:
            raise UserError(f"{path}: is cut short; copy or export it again")
        return page.asarray()


def read_png(path: Path) -> np.ndarray:
    """A grey PNG image, or the indices of one with a palette: (H, W)."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if max(image.size) > LARGEST_SIDE:
                raise UserError(f"{path}: claims {image.width} x {image.height} px; the file is damaged")
            if len(image.getbands()) > 1:
                raise UserError(f"{path}: {COLOUR}")
            return np.asarray(image)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the file") from error
    except Exception as error:  # SyntaxError, ValueError, struct.error, ...: as many as there are damages
        raise UserError(f"{path}: cannot be read as PNG ({error}); export it again") from error
