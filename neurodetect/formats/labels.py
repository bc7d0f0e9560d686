"""Neurons that people and other programs marked.

A file of them is one of these:
  a neurofinder regions.json
  ImageJ ROIs: the .zip that the ROI Manager saves, or one .roi
  a label image (.tif, .tiff, .png): 0 outside, and each neuron a number of its own
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from neurodetect.files import LARGEST_SIDE, LARGEST_SUBMISSION, UserError, read_json, reason, visible_files
from neurodetect.regions import dataset_name, labels_to_regions, parse_regions, parse_submission, read_regions

if TYPE_CHECKING:
    from roifile import ImagejRoi

LABEL_SUFFIXES = (".json", ".zip", ".roi", ".tif", ".tiff", ".png")
LARGEST_ROI = 2**20  #: bytes; the outline of a neuron takes some hundred
MOST_ROIS = 2**16  #: in one file; no field of view has as many neurons
LARGEST_NUMBER = 2**31  #: of an oval's box in pixels; ImageJ's whole numbers end there

logging.getLogger("roifile").addHandler(logging.NullHandler())  # our errors say it in one line


def read_labels(path: str | Path, shape: tuple[int, int] | None = None) -> list[np.ndarray]:
    """Neurons of a file of labels.

    Parameters
    ----------
    path : str or Path
        A neurofinder JSON file, ImageJ ROIs or a label image, by its suffix.
    shape : (int, int), optional
        (H, W) of the recording.

    Returns
    -------
    list of (n, 2) int arrays
        `[row, column]` pixels of each neuron, row by row; in the order of the file, or of a label image's
        numbers.

    Raises
    ------
    UserError
        The file is missing, malformed or of another shape, or a neuron has no pixel in the image. ImageJ
        draws over the border: what of a ROI lies outside the image is left out.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_regions(path, shape)
    if suffix in (".zip", ".roi"):
        return read_rois(path, shape)
    if suffix in LABEL_SUFFIXES:
        return labels_to_regions(read_label_image(path, shape))
    raise UserError(f"{path}: is no file of labels; those end in {', '.join(LABEL_SUFFIXES)}")


# ImageJ ROIs


def read_rois(path: Path, shape: tuple[int, int] | None) -> list[np.ndarray]:
    """Neurons of a `.zip` or `.roi` file of ImageJ. See `read_labels`."""
    from roifile import ImagejRoi

    shape = shape or (LARGEST_SIDE, LARGEST_SIDE)
    regions = []
    for name, content in roi_files(path):
        source = f"{path}: ROI {name}"
        try:
            region = fill_roi(ImagejRoi.frombytes(content), shape)
        except UserError as error:
            raise UserError(f"{source} {error}") from None
        except Exception as error:  # struct.error, ValueError, IndexError, ...
            raise UserError(f"{source} cannot be read ({error}); save the ROIs again") from error
        if not len(region):
            raise UserError(
                f"{source} has no pixel in an image of {shape[0]} rows and {shape[1]} columns; "
                "is it of this recording?"
            )
        regions.append(region)
    if not regions:
        raise UserError(f"{path}: holds no .roi; save the ROIs from ImageJ's ROI Manager")
    return regions


def roi_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each ROI, in order. A zip file is read in memory, and no more than it may hold."""
    try:
        if path.suffix.lower() == ".roi":
            with open(path, "rb") as file:
                yield path.stem, file.read(LARGEST_ROI)
            return
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if e.filename.lower().endswith(".roi")]
            # A leading dot marks what macOS leaves beside the files it packs.
            entries = [e for e in entries if not e.filename.rpartition("/")[2].startswith(".")]
            if len(entries) > MOST_ROIS:
                raise UserError(f"{path}: holds {len(entries)} ROIs; no recording has as many neurons")
            for entry in entries:
                with archive.open(entry) as file:
                    yield entry.filename, file.read(LARGEST_ROI)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the path") from error
    except Exception as error:  # BadZipFile, zlib.error, NotImplementedError, RuntimeError (a password), ...
        raise UserError(f"{path}: cannot be read as zip ({error}); save the ROIs again") from error


def fill_roi(roi: ImagejRoi, shape: tuple[int, int]) -> np.ndarray:
    """Pixels of one ROI: (n, 2), row by row.

    A pixel belongs to it when its centre lies inside. ImageJ counts from the upper left corner of the
    first pixel, so that the centre of row r and column c is (x, y) = (c + 1/2, r + 1/2).

    Raises
    ------
    UserError
        The ROI has no area: a point, a line, a text.
    """
    from roifile import ROI_SUBTYPE, ROI_TYPE

    areas = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED, ROI_TYPE.RECT, ROI_TYPE.OVAL)
    pictures = (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE)
    if roi.roitype not in areas or roi.subtype in pictures:
        kind = (roi.subtype if roi.subtype in pictures else roi.roitype).name.lower()
        raise UserError(f"is of type {kind}, which has no area; outline the neuron")
    if not roi.composite and roi.roitype in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
        x, y, width, height = roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top
        if roi.subpixelrect:
            x, y, width, height = roi.xd, roi.yd, roi.widthd, roi.heightd  # type: ignore[assignment]
        if roi.roitype == ROI_TYPE.OVAL:
            return fill_oval(x, y, width, height, shape)
        return fill_polygons(
            [np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])], shape
        )
    return fill_polygons(roi.coordinates(multi=True), shape)  # type: ignore[arg-type]


def fill_polygons(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies inside an odd number of polygons (so that there may be holes): (n, 2).

    A centre on an edge belongs to the polygon on its right or below it, so that polygons side by side
    share no pixel.

    Parameters
    ----------
    polygons : list of (n, 2) arrays
        Corners (x, y) in pixels from the upper left corner of the image; the last is joined to the first.
    shape : (int, int)
        (H, W) of the image; what lies outside is left out.
    """
    height, width = shape
    rows, columns = [], []
    for polygon in polygons:
        corners = np.asarray(polygon, np.float64) - 0.5  # the centres of pixels are whole numbers now
        if not np.isfinite(corners).all():
            raise UserError("has corners that are no numbers; save the ROIs again")
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            first, last = np.clip(np.ceil(sorted((y0, y1))), 0, height).astype(int)
            row = np.arange(first, last)
            rows.append(row)
            columns.append(x0 + (row - y0) * ((x1 - x0) / (y1 - y0)) if len(row) else row)
    row = np.concatenate([*rows, np.empty(0, int)])
    # In each row, a pixel is inside where the number of edges to its left is odd.
    column = np.clip(np.ceil(np.concatenate([*columns, np.empty(0)])), 0, width).astype(int)
    if not len(row):
        return np.empty((0, 2), int)
    top, left = row.min(), column.min()
    edges = np.zeros((row.max() - top + 1, column.max() - left + 1), int)
    np.add.at(edges, (row - top, column - left), 1)
    return np.argwhere(edges.cumsum(axis=1) % 2) + (top, left)


def fill_oval(x: float, y: float, width: float, height: float, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies inside or on the ellipse that touches the sides of a box: (n, 2)."""
    from skimage.draw import ellipse

    if not (np.abs([x, y, width, height]).max() < LARGEST_NUMBER and width > 0 and height > 0):  # or NaN
        return np.empty((0, 2), int)
    row, column = y + height / 2 - 0.5, x + width / 2 - 0.5  # the centres of pixels are whole numbers now
    half = 0.5 + 1e-12  # as `ellipse` leaves out what lies on it
    return np.column_stack(ellipse(row, column, half * height, half * width, shape=shape))


# Label images


def read_label_image(path: Path, shape: tuple[int, int] | None) -> np.ndarray:
    """The numbers of a label image: int64 (H, W). See `read_labels`."""
    labels = read_png(path) if path.suffix.lower() == ".png" else read_tiff(path)
    if shape is not None and labels.shape != tuple(shape):
        raise UserError(
            f"{path}: is {labels.shape[0]} x {labels.shape[1]} px, but the recording is "
            f"{shape[0]} x {shape[1]} (rows x columns)"
        )
    numbers = labels.astype(np.int64)
    if not np.array_equal(numbers, labels) or numbers.min() < 0:
        raise UserError(f"{path}: has values that are no whole numbers from 0; is it a label image?")
    if not numbers.any():
        raise UserError(f"{path}: marks no neuron; remove it if there are none")
    if numbers.max() == numbers[numbers > 0].min() and in_pieces(numbers):
        raise UserError(f"{path}: is a mask, all its neurons have one number; give each a number of its own")
    return numbers


def in_pieces(numbers: np.ndarray) -> bool:
    """Whether what is not zero is in more than one piece."""
    from scipy import ndimage

    return ndimage.label(numbers, structure=np.ones((3, 3)))[1] > 1


def read_tiff(path: Path) -> np.ndarray:
    """The only frame of a TIFF file."""
    from neurodetect.formats.tiff import TiffFrames

    frames = TiffFrames([path])
    if len(frames) > 1:
        raise UserError(f"{path}: has {len(frames)} frames; a label image is one")
    return frames.frame(0)


def read_png(path: Path) -> np.ndarray:
    """A grey PNG image, or the indices of one with a palette: (H, W)."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if max(image.size) > LARGEST_SIDE:
                raise UserError(f"{path}: claims {image.width} x {image.height} px; the file is damaged")
            if len(image.getbands()) > 1:
                raise UserError(f"{path}: is a colour image; export numbers, as grey values or TIFF")
            return np.asarray(image)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the file") from error
    except Exception as error:  # SyntaxError, ValueError, struct.error, ...: as many as there are damages
        raise UserError(f"{path}: cannot be read as PNG ({error}); export it again") from error


# Where labels are


def is_label_file(file: Path) -> bool:
    """`regions.json`, or any file of the other kinds of labels."""
    return file.name == "regions.json" or file.suffix.lower() in set(LABEL_SUFFIXES) - {".json"}


def the_labels(files: list[Path]) -> Path | None:
    """The one file of labels, or None."""
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise UserError(f"{files[0].parent}: has labels more than once, {names}; keep one of them")
    return files[0] if files else None


class Truth(NamedTuple):
    """The labels of one recording, and the file that has its scale if it exists."""

    labels: Path
    info: Path


def find_truths(path: str | Path) -> dict[str, Truth]:
    """The labelled recordings of a file or folder by the challenge's names of them, in natural order.

    Parameters
    ----------
    path : str or Path
        A file of labels, a recording with `regions/`, a folder of such recordings, or one with the
        `regions_NAME.json` of prepared recordings.

    Raises
    ------
    UserError
        There are none, or the same name is there twice.
    """
    path = Path(os.path.abspath(path))  # so that `.` has a name
    files: list[Path] = [path]
    if path.is_dir():
        entries = visible_files(path)
        files = [e for e in entries if e.name.startswith("regions_") and e.suffix == ".json"]
        for recording in (path, *entries):
            if (recording / "regions").is_dir():
                labels = the_labels([f for f in visible_files(recording / "regions") if is_label_file(f)])
                files += [labels] if labels is not None else []
    truths: dict[str, Truth] = {}
    for file in files:
        if file.parent.name == "regions":
            name, info = file.parent.parent.name, file.parent.parent / "info.json"
        else:
            name = file.stem.removeprefix("regions_")
            info = file.with_name(f"info_{name}.json")
        name = dataset_name(name)
        if name in truths:
            raise UserError(f"{path}: has {name} twice, {truths[name].labels} and {file}; keep one of them")
        truths[name] = Truth(file, info)
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
    value = read_json(path, LARGEST_SUBMISSION) if Path(path).suffix.lower() == ".json" else None
    if not isinstance(value, list) or not any(isinstance(e, dict) and "dataset" in e for e in value):
        return read_labels(path)
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
