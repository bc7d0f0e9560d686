"""What NWB files say beside the frames: the order of a series' axes, its rate and its scale.

The schema: https://nwb-schema.readthedocs.io/en/latest/format.html
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from neurodetect.formats.frames import MICRONS

if TYPE_CHECKING:
    import h5py

# Image series of NWB's core schema, as they are preferred where a file has several.
SERIES_TYPES = ("TwoPhotonSeries", "OnePhotonSeries", "ImageSeries")


def text_attribute(item: h5py.Group | h5py.Dataset, name: str) -> str:
    """A text attribute, whether it was stored as text or as bytes; empty where there is none."""
    value = item.attrs.get(name, "")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def groups_of(file: h5py.File, kind: str) -> dict[str, h5py.Group]:
    """The groups of a neurodata type in an NWB file by their names. Links are not followed."""
    found = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if text_attribute(item, "neurodata_type") == kind:
            found[name] = item

    file.visititems(visit)
    return found


def own_dataset(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """A group's dataset, not one in another file that it links to; None without one."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return None
    return group[name] if isinstance(group[name], h5py.Dataset) else None


def series_axes(series: h5py.Group, shape: tuple[int, ...]) -> tuple[str, list[str]]:
    """A letter for each axis of a series' data, three or four, and what was assumed, in words.

    NWB's schema says that data are (time, x, y) or (time, x, y, z), but programs write (time, y, x) too.
    The series' `dimension` is (width, height): where that fits one order only, it tells.
    """
    dimension = own_dataset(series, "dimension")
    if dimension is not None and dimension.ndim == 1 and 2 <= dimension.size <= 3:
        width, height = dimension[:2].tolist()
        if width != height and shape[1:3] in ((width, height), (height, width)):
            return ("TXY" if shape[1:3] == (width, height) else "TYX") + "Z" * (len(shape) - 3), []
    notes = ["rows and columns are as NWB's schema orders them, (time, x, y); --transpose turns them"]
    return "TXY" + "Z" * (len(shape) - 3), notes


def starting_rate(series: h5py.Group) -> float | None:
    """Frames a second of an NWB series; None where it does not say."""
    start = own_dataset(series, "starting_time")
    rate = None if start is None else start.attrs.get("rate")
    return float(rate) if isinstance(rate, (int, float, np.number)) else None


def grid_scale(file: h5py.File, movie: h5py.Dataset) -> float | None:
    """Pixels in a micrometre, of an NWB series' imaging plane or a dataset's `element_size_um`, (z, y, x).

    None where they do not say, or rows are not as far apart as columns, or no microscope is like that:
    a spacing in metres is often one in micrometres whose unit was forgotten.
    """
    import h5py

    sides = np.ravel(movie.attrs.get("element_size_um", []))[-2:]
    unit = "um"
    link = movie.parent.get("imaging_plane", getlink=True)
    planes = groups_of(file, "ImagingPlane") if isinstance(link, h5py.SoftLink) else {}
    plane = planes.get(link.path.strip("/")) if planes else None
    spacing = None if plane is None else own_dataset(plane, "grid_spacing")
    if spacing is not None and spacing.ndim == 1 and 2 <= spacing.size <= 3:
        sides = spacing[:2]
        unit = text_attribute(spacing, "unit").lower() or "meters"
    if len(sides) != 2 or sides.dtype.kind not in "iuf" or unit not in MICRONS:
        return None
    down, across = (sides * MICRONS[unit]).tolist()
    is_size = math.isfinite(down) and 0.01 < down < 100 and math.isclose(down, across, rel_tol=0.01)
    return 2 / (down + across) if is_size else None
