"""Neurons that are marked in an NWB file, beside its movie: a PlaneSegmentation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurodetect.files import UserError
from neurodetect.formats.hdf5 import open_hdf5
from neurodetect.formats.nwb import groups_of, own_dataset

if TYPE_CHECKING:
    import h5py

MASKS_BYTES = 2**25  #: of masks read at once


def read_plane_segmentation(
    path: Path, shape: tuple[int, int], transpose: bool = False, movie: str | None = None
) -> list[np.ndarray] | None:
    """Neurons of an NWB file's PlaneSegmentation.

    Parameters
    ----------
    path : Path
        An NWB file; any other HDF5 file has none.
    shape : (int, int)
        (H, W) of its movie as it is read.
    transpose : bool
        Whether the movie was turned against NWB's schema, (time, x, y). Masks are as the movie where they
        fit both ways.
    movie : str, optional
        Name of the movie's dataset. What is marked in another imaging plane than its own does not count.

    Returns
    -------
    list of (n, 2) int arrays, or None without a PlaneSegmentation
        `[row, column]` pixels of each neuron, row by row. A column `iscell` leaves out what is none.

    Raises
    ------
    UserError
        There are several, or it is malformed, or of another shape.
    """
    with open_hdf5(path) as file:
        found = groups_of(file, "PlaneSegmentation")
        own = imaging_plane(file[movie].parent) if movie else None
        found = {n: table for n, table in found.items() if own in (None, imaging_plane(table) or own)}
        if not found:
            return None
        if len(found) > 1:
            raise UserError(
                f"{path}: has more than one PlaneSegmentation: {', '.join(found)}; "
                "export the one of this movie and name it with --labels FILE"
            )
        ((name, table),) = found.items()
        source = f"{path}: {name}"
        images, pixels = (own_dataset(table, column) for column in ("image_mask", "pixel_mask"))
        if images is not None:
            regions = list(image_masks(images, shape, transpose, source))
        elif pixels is not None:
            regions = pixel_masks(pixels, own_dataset(table, "pixel_mask_index"), shape, transpose, source)
        else:
            warnings.warn(f"{source} has neither image_mask nor pixel_mask and is not read", stacklevel=2)
            return None
        cells = own_dataset(table, "iscell")
        if cells is not None and cells.shape and cells.shape[0] == len(regions):
            is_cell = cells[()].reshape(max(1, len(regions)), -1)[: len(regions), 0] > 0
            if not is_cell.all():
                warnings.warn(
                    f"{source}: {is_cell.sum()} of {len(regions)} are cells, as iscell says; the others are "
                    "left out",
                    stacklevel=2,
                )
            regions = [region for region, yes in zip(regions, is_cell, strict=True) if yes]
    kept = [region for region in regions if len(region)]
    if len(kept) < len(regions):
        warnings.warn(f"{source}: {len(regions) - len(kept)} neurons have no pixel, left out", stacklevel=2)
    return kept


def imaging_plane(item: h5py.Group) -> str | None:
    """The imaging plane that a series or a segmentation links to; None where it does not say."""
    import h5py

    link = item.get("imaging_plane", getlink=True)
    return link.path.strip("/") if isinstance(link, h5py.SoftLink) else None


def image_masks(
    masks: h5py.Dataset, shape: tuple[int, int], transpose: bool, source: str
) -> Iterator[np.ndarray]:
    """Pixels of each mask of (n, x, y) or (n, y, x)."""
    if masks.ndim != 3 or masks.dtype.kind not in "biuf" or masks.shape[1:] not in (shape, shape[::-1]):
        raise UserError(
            f"{source} has masks of {' x '.join(map(str, masks.shape[1:]))} px, but the recording is "
            f"{shape[0]} x {shape[1]}; are they of another movie? --labels FILE names others"
        )
    turn = not transpose if shape[0] == shape[1] else masks.shape[1:] != shape
    at_once = max(1, MASKS_BYTES // (masks.dtype.itemsize * shape[0] * shape[1]))
    for start in range(0, len(masks), at_once):
        for mask in masks[start : start + at_once]:
            yield np.argwhere((mask.T if turn else mask) > 0)


def pixel_masks(
    pixels: h5py.Dataset,
    index: h5py.Dataset | None,
    shape: tuple[int, int],
    transpose: bool,
    source: str,
) -> list[np.ndarray]:
    """Pixels of each neuron of a list of (x, y, weight), which `index` cuts."""
    fields = pixels.dtype.names or ()
    if index is None or index.ndim != 1 or pixels.ndim != 1 or not {"x", "y"} <= set(fields):
        raise UserError(f"{source} has a pixel_mask that is not (x, y, weight) with an index; write it anew")
    values, ends = pixels[()], index[()].astype(np.int64)
    order = ("x", "y") if transpose else ("y", "x")
    places = np.stack([values[field] for field in order], axis=1).astype(np.int64)
    if not fits(places, shape) and fits(places[:, ::-1], shape):  # programs exchange x and y here, too
        places = places[:, ::-1]
    if np.any(np.diff(ends, prepend=0, append=len(places)) < 0):
        raise UserError(f"{source} has a pixel_mask_index that does not fit its pixels; write it again")
    if not fits(places, shape):
        raise UserError(
            f"{source} has pixels that are not in the recording's {shape[0]} x {shape[1]}; "
            "are they of another movie? --labels FILE names others"
        )
    weighted = values["weight"] > 0 if "weight" in fields else np.ones(len(places), bool)
    return [
        np.unique(places[start:end][weighted[start:end]], axis=0)
        for start, end in pairwise([0, *ends.tolist()])
    ]


def fits(places: np.ndarray, shape: tuple[int, int]) -> bool:
    """Whether all `[row, column]` lie in an image."""
    return bool(np.all((places >= 0) & (places < shape)))
