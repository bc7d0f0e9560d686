"""Neurons outlined in ImageJ or Fiji: the .zip that the ROI Manager saves, and single .roi files."""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from neurodetect.files import LARGEST_SIDE, UserError, listed, reason

if TYPE_CHECKING:
    from roifile import ImagejRoi

LARGEST_ROI = 2**20  #: bytes; the outline of a neuron takes some hundred
MOST_ROIS = 2**16  #: in one file; no field of view has as many neurons
LARGEST_NUMBER = 2**31  #: of an oval's box in pixels; ImageJ's whole numbers end there

logging.getLogger("roifile").addHandler(logging.NullHandler())  # our errors say it in one line


def read_rois(files: Path | Sequence[Path], shape: tuple[int, int] | None) -> list[tuple[np.ndarray, str]]:
    """Neurons of a `.zip`, or of one or several `.roi` files. See `labels.read_named_labels`."""
    from roifile import ImagejRoi

    files = [files] if isinstance(files, Path) else files
    path = files[0] if len(files) == 1 else files[0].parent
    shape = shape or (LARGEST_SIDE, LARGEST_SIDE)
    regions, left_out, positions = [], [], set()
    for name, content in (roi for file in files for roi in roi_files(file)):
        source = f"{path}: ROI {name}"
        try:
            roi = ImagejRoi.frombytes(content)
            kind = kind_without_area(roi)
            region = fill_roi(roi, shape) if kind is None else None
        except UserError as error:
            raise UserError(f"{source} {error}") from None
        except Exception as error:  # struct.error, ValueError, IndexError, ...
            raise UserError(f"{source} cannot be read ({error}); save the ROIs again") from error
        if region is None:
            left_out.append(f"{name} ({kind})")
            continue
        if not len(region):
            raise UserError(
                f"{source} has no pixel in an image of {shape[0]} rows and {shape[1]} columns; "
                "is it of this recording?"
            )
        # The ROI manager shows the file's name where the ROI has none of its own.
        regions.append((region, roi.name or PurePath(name).name.removesuffix(".roi")))
        # In an image of channels and planes `position` counts their pairs.
        alone = roi.position if not (roi.c_position or roi.z_position) else 0
        positions.add((roi.c_position, roi.z_position, alone))
    if not regions and not left_out:
        raise UserError(f"{path}: holds no .roi; save the ROIs from ImageJ's ROI Manager")
    if left_out:
        what = f"ROIs without an area ({len(left_out)}): {listed(left_out)}"
        if not regions:
            raise UserError(f"{path}: holds nothing but {what}; outline the neurons")
        warnings.warn(f"{path}: leaves out {what}", stacklevel=2)
    for axis, kind in enumerate(("channels", "planes", "slices")):
        # A ROI that belongs to all of them has position 0.
        numbers = sorted({position[axis] for position in positions} - {0})
        if len(numbers) > 1:
            warnings.warn(
                f"{path}: the ROIs were drawn on different {kind} ({listed(numbers)}); all of them are taken",
                stacklevel=2,
            )
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


def kind_without_area(roi: ImagejRoi) -> str | None:
    """What a ROI is that outlines nothing, e.g. "point", "line" or "text"; None for one that does."""
    from roifile import ROI_SUBTYPE, ROI_TYPE

    areas = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED, ROI_TYPE.RECT, ROI_TYPE.OVAL)
    pictures = (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE)
    if roi.roitype in areas and roi.subtype not in pictures:
        return None
    return (roi.subtype if roi.subtype in pictures else roi.roitype).name.lower()


def fill_roi(roi: ImagejRoi, shape: tuple[int, int]) -> np.ndarray:
    """Pixels of one ROI that has an area: (n, 2), row by row.

    A pixel belongs to it when its centre lies inside. ImageJ counts from the upper left corner of the
    first pixel, so that the centre of row r and column c is (x, y) = (c + 1/2, r + 1/2).
    """
    from roifile import ROI_TYPE

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
