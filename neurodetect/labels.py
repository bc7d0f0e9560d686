"""Labels of other programs as neurons: python -m neurodetect.labels LABELS regions.json

LABELS is one of these:
  a neurofinder regions.json
  ImageJ ROIs: the .zip that the ROI Manager saves, or one .roi
  a label image (.tif, .tiff, .png): 0 outside, and each neuron a number of its own
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurodetect.files import UserError, reason

if TYPE_CHECKING:
    from roifile import ImagejRoi

LABEL_SUFFIXES = (".json", ".zip", ".roi", ".tif", ".tiff", ".png")
LARGEST_ROI = 2**20  #: bytes; the outline of a neuron takes some hundred
MOST_ROIS = 2**16  #: in one file; no field of view has as many neurons
LARGEST_SIDE = 2**14  #: pixels of an image; checked where the recording's shape is not known

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
    # Here, since `--help` needs this module but not what these import.
    from neurodetect.regions import labels_to_regions, read_regions

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

    A pixel belongs to it when its middle lies inside. ImageJ counts from the upper left corner of the
    first pixel, so that middle of row r and column c is (x, y) = (c + 1/2, r + 1/2).

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
            x, y, width, height = roi.xd, roi.yd, roi.widthd, roi.heightd
        if roi.roitype == ROI_TYPE.OVAL:
            return fill_oval(x, y, width, height, shape)
        return fill_polygons(
            [np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])], shape
        )
    return fill_polygons(roi.coordinates(multi=True), shape)


def fill_polygons(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose middle lies inside an odd number of polygons (so that there may be holes): (n, 2).

    A middle on an edge belongs to the polygon on its right or below it, so that polygons side by side
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
        corners = np.asarray(polygon, np.float64) - 0.5  # the middles of pixels are whole numbers now
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
    """Pixels whose middle lies in the ellipse that touches the sides of a box: (n, 2)."""
    if not (np.isfinite([x, y, width, height]).all() and width > 0 and height > 0):
        return np.empty((0, 2), int)
    (top, bottom), (left, right) = (
        np.clip([np.floor(start), np.ceil(start + length)], 0, limit).astype(int)
        for start, length, limit in zip((y, x), (height, width), shape, strict=True)
    )
    row, column = np.ogrid[top:bottom, left:right]
    from_middle = np.square((row + 0.5 - y) / height - 0.5) + np.square((column + 0.5 - x) / width - 0.5)
    return np.argwhere(from_middle <= 0.25) + (top, left)


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
    from neurodetect.frames import TiffFrames

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


def main() -> None:
    from neurodetect import console

    parser = console.Parser(__doc__, "python -m neurodetect.labels RoiSet.zip mouse1/regions/regions.json")
    parser.prog = "python -m neurodetect.labels"
    parser.add_argument("labels", metavar="LABELS", help="the file to read")
    parser.add_argument(
        "regions", metavar="regions.json", help="the file to write; its folder is made if it is missing"
    )
    parser.add_argument(
        "--shape",
        nargs=2,
        type=console.number_in(int, 1, LARGEST_SIDE),
        metavar=("H", "W"),
        help="rows and columns of the recording: what lies outside is then refused, or of a ROI cut off",
    )
    args = parser.parse_args()

    from neurodetect.regions import write_regions

    if not args.regions.lower().endswith(".json"):
        raise UserError(
            f"{args.regions}: does not end in .json; name the labels first, then the file to write"
        )
    regions = read_labels(args.labels, tuple(args.shape) if args.shape else None)
    write_regions(args.regions, regions)
    console.say(f"Wrote {args.regions}: {len(regions)} neuron{'s'[: len(regions) != 1]}")


if __name__ == "__main__":
    from neurodetect import console

    console.run(main)
