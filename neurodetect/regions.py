"""Neurons as lists of pixels: from a probability map, to and from masks, neurofinder JSON in and out.

A neuron is an (n, 2) integer array of `[row, column]` pixels; a recording's neurons are a list of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from neurodetect.files import (
    LARGEST_SUBMISSION,
    UserError,
    json_bytes,
    listed,
    read_json,
    write_json,
    write_together,
)

THRESHOLD = 0.5  #: a pixel whose probability is above this is neuron: the probability, rounded
# Windows are balanced, but a map is blurred where small cells are: at a half more of them are missed than
# false ones are kept out, on held-out recordings of five laboratories.
CELL_THRESHOLD = 0.45  #: the same for the commands' "watershed"
SMALLEST_AREA = 20  #: pixels, where no typical neuron is known: smaller regions are left by the rounding
TYPICAL_AREA = 150.0  #: pixels of a neuron, where no labelled ones tell
# Measured on held-out recordings: hardly one labelled neuron in a hundred is smaller than this share.
SMALLEST_SHARE = 0.4  #: of a typical neuron's area; a smaller region is no neuron
SIZE_ROUNDS = 2  #: times that cells are sought again, with the size of those found
FEWEST_FOR_SIZE = 20  #: found neurons whose median area tells the size
# Smoothing, surround and distance are in radii of a typical neuron: a split means the same at every size.
SPLIT_SMOOTHING = 0.13  #: standard deviation of the Gaussian that smooths the distances
SPLIT_LEVELS = (0.0, 0.2, 0.4, 0.6)  #: of the way from the threshold to 1, where distances are taken
# The mean over windows blurs a map: the valley between two small cells is shallow, or gone. So what tells the
# map from its surround is added to it first.
SPLIT_SURROUND = 0.7  #: standard deviation of the Gaussian whose mean is the surround
SPLIT_DISTANCE = 0.25  #: smallest distance between two cells' centres, but no less than a pixel
CLEARANCE = 2  #: pixels about the cells found, their skirts, that no fainter cell may have
RIM_SHARE = 0.8  #: of the threshold: what a pixel beside a neuron must have to be its rim
EDGE_SHARE = 0.5  #: of a neuron's mean probability: what a pixel beside it must have to join it at last
SIZE_SMOOTHING = 0.4  #: of the usual cell's radius: standard deviation of the Gaussian that evens sizes
SMOOTHED_FAR = 3.0  #: standard deviations from which nothing is added
RING = 3  #: pixels round a neuron that it is compared with
MISFIT_BY_CHANCE = 1e-4  #: the probability at which labels are said to lie elsewhere than the cells
MOST_OFFSET = 2  #: rows and columns, up or down, by which they may lie off
METHODS = ("watershed", "connected")
MOST_NEURONS = 2**16  #: of one recording in a file; no field of view has as many
PART = re.compile(r"\.rows(\d+)-\d+\.columns(\d+)-\d+$")  #: how the name of a part ends, see `part_name`
PART_INSIDE = re.compile(PART.pattern[:-1] + r"(?!\d)")  #: the same in the name of a file that was made of it


def unique_pixels(region: np.ndarray) -> np.ndarray:
    """A neuron's pixels in row-major order, each once: (n, 2) to (m, 2)."""
    region = np.asarray(region)
    lower, right = (region[1:] > region[:-1]).T
    if (lower | (right & (region[1:, 0] == region[:-1, 0]))).all():
        return region  # most are so already, and are asked for many times
    region = region[np.lexsort((region[:, 1], region[:, 0]))]
    # Not np.unique(axis=0), which takes four times as long.
    first = np.ones(len(region), bool)
    first[1:] = (region[1:] != region[:-1]).any(axis=1)
    return region[first]


# From a probability map


def find_regions(
    probability: np.ndarray,
    method: str = "watershed",
    smallest_area: float | None = None,
    threshold: float = THRESHOLD,
    typical_area: float | None = None,
) -> list[np.ndarray]:
    """Neurons of a probability map.

    Parameters
    ----------
    probability : (H, W) array
        Probability of 'neuron' at each pixel, or a mask.
    method : {"watershed", "connected"}
        "watershed" tells touching cells apart and gives each its rim, see `split_touching` and `add_rim`.
        What it takes for the size of a cell it then learns from the map itself: cells are sought again with
        the median area of those found. With a threshold below CELL_THRESHOLD fainter cells are sought between
        these, see `add_fainter`. At last faint cells grow, see `grow_faint`, and all come nearer to the
        usual size, see `even_sizes`. "connected" gives plain connected components.
    smallest_area : float, optional
        Regions of fewer pixels, not counting the rim, are dropped. Without it SMALLEST_SHARE of the
        typical area (with "watershed" that of the map), or SMALLEST_AREA where that is not known.
    threshold : float
        Pixels above it are neuron; those at a neuron's edge may be lower.
    typical_area : float, optional
        Pixels of a typical neuron, e.g. the median of labelled ones: how finely touching cells are split at
        first, and to the end where fewer than FEWEST_FOR_SIZE are found.

    Returns
    -------
    list of (n, 2) int arrays
        `[row, column]` pixels of each neuron. Each is in one piece (pixels that share a side), none
        overlaps another, and none is empty. They are ordered by their first pixel, row by row.

    Raises
    ------
    ValueError
        The map has NaN or is not two-dimensional, or the method is unknown.

    Examples
    --------
    >>> probability = np.zeros((20, 30))
    >>> probability[2:9, 3:10] = probability[10:18, 15:25] = 0.9
    >>> [len(region) for region in find_regions(probability)]
    [49, 80]
    """
    (regions,) = find_by_threshold(probability, [threshold], method, smallest_area, typical_area)
    return regions


def find_by_threshold(
    probability: np.ndarray,
    thresholds: Iterable[float],
    method: str = "watershed",
    smallest_area: float | None = None,
    typical_area: float | None = None,
) -> Iterator[list[np.ndarray]]:
    """What `find_regions` finds at each of several thresholds; those below CELL_THRESHOLD take less time, as
    the cells above it are sought once for all of them."""
    probability = np.asarray(probability)
    if probability.ndim != 2 or np.isnan(probability).any():
        raise ValueError(f"a probability map is (H, W) and free of NaN, not {probability.shape}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, use one of {', '.join(METHODS)}")
    sought = None
    for threshold in thresholds:
        if method == "watershed":
            first = max(threshold, CELL_THRESHOLD)
            if first != sought:
                sought = first
                cells, area = find_cells_by_size(probability, smallest_area, first, typical_area)
            regions = cells
            if threshold < CELL_THRESHOLD:
                regions = add_fainter(cells, probability, smallest_area, threshold, area)
            regions = even_sizes(grow_faint(regions, probability), probability)
        else:
            labels, _ = ndimage.label(probability > threshold)
            regions = labels_to_regions(drop_small(labels, smallest_area, typical_area))
        yield sorted(regions, key=lambda region: tuple(region[0]))


def find_cells_by_size(
    probability: np.ndarray, smallest_area: float | None, threshold: float, typical_area: float | None
) -> tuple[list[np.ndarray], float | None]:
    """Neurons of a probability map by "watershed", and their size, learned from the map itself where
    FEWEST_FOR_SIZE are found; see `find_regions`."""
    for _ in range(1 + SIZE_ROUNDS):
        regions = find_cells(probability, smallest_area, threshold, typical_area)
        area = float(np.median([len(region) for region in regions])) if regions else None
        if len(regions) < FEWEST_FOR_SIZE or area == typical_area:
            break
        typical_area = area
    return regions, typical_area


def find_cells(
    probability: np.ndarray, smallest_area: float | None, threshold: float, typical_area: float | None
) -> list[np.ndarray]:
    """Neurons of a probability map by "watershed", of cells whose size is known; see `find_regions`."""
    labels = split_touching(probability, threshold, typical_area or TYPICAL_AREA)
    labels = drop_small(labels, smallest_area, typical_area)
    return labels_to_regions(add_rim(labels, probability, RIM_SHARE * threshold))


def add_fainter(
    regions: Sequence[np.ndarray],
    probability: np.ndarray,
    smallest_area: float | None,
    threshold: float,
    typical_area: float | None,
) -> list[np.ndarray]:
    """The cells found at CELL_THRESHOLD, and between them those that a lower threshold finds.

    At the lower one alone, bright cells would be too large and run into each other. So what was found is
    taken out of the map, and the rest is looked at again.

    Parameters
    ----------
    regions : sequence of (n, 2) int arrays
        None of which overlap, nor will those added.
    probability : (H, W) array
    smallest_area, threshold, typical_area
        See `find_regions`.
    """
    from skimage.segmentation import expand_labels  # see `split_touching`

    taken = expand_labels(regions_to_labels(regions, probability.shape), CLEARANCE) > 0
    rest = np.where(taken, 0, probability)
    return [*regions, *find_cells(rest, smallest_area, threshold, typical_area)]


def drop_small(labels: np.ndarray, smallest_area: float | None, typical_area: float | None) -> np.ndarray:
    """Labels (H, W) without regions that are too small; see `find_regions`."""
    if smallest_area is None:
        smallest_area = SMALLEST_AREA if typical_area is None else SMALLEST_SHARE * typical_area
    return np.where(np.bincount(labels.ravel())[labels] < smallest_area, 0, labels)


def split_touching(
    probability: np.ndarray, threshold: float = THRESHOLD, typical_area: float = TYPICAL_AREA
) -> np.ndarray:
    """Number the cells of a probability map, touching ones told apart.

    A watershed of the distance to the nearest pixel that is not neuron, flooded from its peaks. The
    distance is the mean over the threshold and higher ones, of the sharpened map: where the probability is
    lower between two cells than in them, they part although their outline has no waist.

    Parameters
    ----------
    probability : (H, W) array
        A probability map, or a mask.
    threshold : float
        Pixels above it belong to a cell.
    typical_area : float
        Pixels of a typical cell: smoothing and the distance between peaks follow from its radius.

    Returns
    -------
    int (H, W)
        0 outside, 1 and up for the cells.
    """
    # A third of a second that what only reads or draws neurons need not wait.
    from skimage.feature import peak_local_max
    from skimage.filters import difference_of_gaussians
    from skimage.segmentation import watershed

    mask = probability > threshold
    radius = math.sqrt(typical_area / math.pi)
    smooth, surround = SPLIT_SMOOTHING * radius, SPLIT_SURROUND * radius
    sharp = probability + difference_of_gaussians(probability, smooth, surround)
    levels = [threshold + share * (1 - threshold) for share in SPLIT_LEVELS]
    distance = np.mean([ndimage.distance_transform_edt(mask & (sharp > level)) for level in levels], axis=0)
    distance = ndimage.gaussian_filter(distance, smooth)
    pieces, count = ndimage.label(mask)
    # Peaks are sought piece by piece, so that a small neuron beside a large one keeps its own.
    apart = max(1, round(SPLIT_DISTANCE * radius))
    peaks = peak_local_max(distance, min_distance=apart, labels=pieces, exclude_border=False)
    markers = np.zeros(mask.shape, np.int32)
    markers[peaks[:, 0], peaks[:, 1]] = np.arange(1, len(peaks) + 1)
    # A piece on which the distance is flat has no peak; it is one cell.
    with_peak = np.bincount(pieces[peaks[:, 0], peaks[:, 1]], minlength=count + 1) > 0
    flat = mask & ~with_peak[pieces]
    markers[flat] = len(peaks) + pieces[flat]
    return watershed(-distance, markers, mask=mask)


def grow_faint(regions: Sequence[np.ndarray], probability: np.ndarray) -> list[np.ndarray]:
    """Cells one pixel larger, where the probability is over half of the cell's own mean.

    An edge lies where a cell fades to half, and not at one probability for all: of a cell that the network is
    not sure of, little more than the middle is above a threshold.

    Parameters
    ----------
    regions : sequence of (n, 2) int arrays
        None of which overlap.
    probability : (H, W) array
    """
    labels = regions_to_labels(regions, probability.shape)
    half = np.append(np.inf, EDGE_SHARE * mean_probability(probability, regions))
    return labels_to_regions(add_rim(labels, probability, half))


def even_sizes(regions: Sequence[np.ndarray], probability: np.ndarray) -> list[np.ndarray]:
    """Cells nearer to the size that is usual in their recording, the less sure the network is of them.

    Where a faint cell ends is uncertain, so that those found differ more in size than labelled ones do. An
    area A becomes A**p * M**(1 - p), where M is the median area and p the cell's mean probability; the cell
    is then where, smoothed, it was densest. One of probability 1 stays as it is, as all do where there are
    not FEWEST_FOR_SIZE to tell what is usual.

    Parameters
    ----------
    regions : sequence of (n, 2) int arrays
        None of which overlap; nor do those returned, each of which is in one piece.
    probability : (H, W) array
    """
    if len(regions) < FEWEST_FOR_SIZE:
        return list(regions)
    usual = float(np.median([len(region) for region in regions]))
    smooth = SIZE_SMOOTHING * math.sqrt(usual / math.pi)
    margin = math.ceil(SMOOTHED_FAR * smooth)
    labels = regions_to_labels(regions, probability.shape)
    sure = mean_probability(probability, regions)
    for number, (region, share) in enumerate(zip(regions, sure, strict=True), start=1):
        count = round(len(region) ** share * usual ** (1 - share))
        if count == len(region):
            continue
        first = np.maximum(region.min(axis=0) - margin, 0)
        part = labels[tuple(map(slice, first, region.max(axis=0) + margin + 1))]
        own = part == number
        density = ndimage.gaussian_filter(own.astype(np.float32), smooth, truncate=SMOOTHED_FAR)
        density[(part > 0) & ~own] = 0
        count = min(count, np.count_nonzero(density))
        pieces, _ = ndimage.label(density >= np.partition(density.ravel(), -count)[-count])
        part[own] = 0
        part[pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()] = number
    return labels_to_regions(labels)


def add_rim(labels: np.ndarray, probability: np.ndarray, lowest: float | np.ndarray) -> np.ndarray:
    """Cells one pixel larger, where the probability allows it.

    The network learns from masks with a gap between touching neurons (see `regions_to_separate_mask`) and
    gives lower probabilities at every outline, so that cells come out small by about half of their rim.

    Parameters
    ----------
    labels : int (H, W)
        0 outside, 1 and up for the cells.
    probability : (H, W) array
    lowest : float or array
        Pixels above it may join a cell that they share a side with; an array has a number for every label.

    Returns
    -------
    int (H, W)
        No cell loses a pixel, and each stays in one piece.
    """
    from skimage.segmentation import expand_labels  # see `split_touching`

    larger = expand_labels(labels, 1)
    if np.ndim(lowest):
        lowest = np.asarray(lowest)[larger]
    return np.where(labels > 0, labels, np.where(probability > lowest, larger, 0))


def mean_probability(probability: np.ndarray, regions: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of a probability map over the pixels of each neuron: (H, W) to float64 (number of neurons,)."""
    means = [probability[region[:, 0], region[:, 1]].mean(dtype=np.float64) for region in regions]
    return np.array(means, np.float64)


# To and from masks


def labels_to_regions(labels: np.ndarray) -> list[np.ndarray]:
    """Pixels of each positive label of an (H, W) label image, in the labels' order, row-major.

    Examples
    --------
    >>> [region.tolist() for region in labels_to_regions(np.array([[0, 2], [1, 2]]))]
    [[[1, 0]], [[0, 1], [1, 1]]]
    """
    rows, columns = np.nonzero(labels > 0)
    values = labels[rows, columns]
    order = np.argsort(values, kind="stable")  # stable: row-major order within a label
    pixels = np.column_stack([rows, columns])[order]
    starts = np.flatnonzero(np.diff(values[order])) + 1
    return np.split(pixels, starts) if len(pixels) else []


def regions_to_mask(regions: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """1 where any neuron is, 0 elsewhere: uint8 (H, W). A pixel in two neurons is 1 all the same.

    Examples
    --------
    >>> regions_to_mask([np.array([[0, 1], [1, 1]]), np.array([[1, 2]])], (2, 4)).tolist()
    [[0, 1, 0, 0], [0, 1, 1, 0]]
    """
    mask = np.zeros(shape, np.uint8)
    for region in regions:
        mask[region[:, 0], region[:, 1]] = 1
    return mask


def regions_to_separate_mask(regions: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """1 where a neuron is and no other one beside it: uint8 (H, W).

    Where neurons touch, the pixels of each that have one of the other among their eight neighbours are 0,
    as is background. A network that learns from such a mask leaves a valley between touching neurons.
    """
    labels = regions_to_labels(regions, shape)
    largest = ndimage.maximum_filter(labels, 3, mode="nearest")
    # Background must not count as the smallest label.
    smallest = ndimage.minimum_filter(np.where(labels > 0, labels, len(regions) + 1), 3, mode="nearest")
    return ((labels > 0) & (smallest == largest)).astype(np.uint8)


def regions_to_labels(regions: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Number of the neuron at each pixel, from 1, and 0 where none is: int32 (H, W).

    A pixel in two neurons belongs to the later one.
    """
    labels = np.zeros(shape, np.int32)
    for number, region in enumerate(regions, start=1):
        labels[region[:, 0], region[:, 1]] = number
    return labels


# Do labels fit the image?


def rows_and_columns_exchanged(image: np.ndarray, regions: Sequence[np.ndarray]) -> bool:
    """Whether neurons fit an image much better with rows and columns exchanged.

    Neurons differ from what surrounds them, bright or dark, and other places of an image less. Whether the
    exchanged ones differ more is asked by the rank test of Mann and Whitney (1947): with few neurons, or
    where they fit neither way, the answer is no.

    Parameters
    ----------
    image : (H, W) array
        The mean image, or any in which neurons can be seen.
    regions : sequence of (n, 2) int arrays
        `[row, column]` pixels of each neuron.
    """
    from scipy.stats import mannwhitneyu  # half a second, see `split_touching`

    if not len(regions):
        return False
    (given,) = contrasts(image, regions)
    (exchanged,) = contrasts(image, [region[:, ::-1] for region in regions])
    return bool(mannwhitneyu(exchanged, given, alternative="greater").pvalue < MISFIT_BY_CHANCE)


def offset_of_cells(image: np.ndarray, regions: Sequence[np.ndarray]) -> tuple[int, int]:
    """How far the cells of an image lie from where they are labelled: rows and columns, in whole pixels.

    Labels that were counted from 1 are a row and a column too far down and right, and those of a movie that
    was moved afterwards are where its cells were. The cells are where the labelled neurons, all moved alike
    by up to MOST_OFFSET pixels, differ most from what surrounds them, bright or dark: by the sum of squares.
    It is (0, 0) where they do not clearly differ more than as they are, by the signed-rank test of Wilcoxon
    (1945).

    Parameters
    ----------
    image : (H, W) array
        The mean image, or any in which neurons can be seen.
    regions : sequence of (n, 2) int arrays
        `[row, column]` pixels of each neuron.

    Examples
    --------
    >>> image = np.zeros((60, 60))
    >>> image[4::8, 4::8] = 1
    >>> counted_from_1 = [np.array([place]) + 1 for place in np.argwhere(image)]
    >>> offset_of_cells(image, counted_from_1)
    (-1, -1)
    """
    if not len(regions):
        return 0, 0
    from scipy.stats import wilcoxon  # half a second, see `split_touching`

    steps = range(-MOST_OFFSET, MOST_OFFSET + 1)
    offsets = [(0, 0), *product(steps, steps)]
    differences = contrasts(image, regions, offsets) ** 2
    best = int(differences.sum(axis=1).argmax())  # the first of those alike, so (0, 0) before others
    gains = differences[best] - differences[0]
    gains = gains[gains != 0]
    # Fewer than 14 cannot be clear, whatever they are.
    enough = 0.5 ** len(gains) < MISFIT_BY_CHANCE
    clear = enough and wilcoxon(gains, alternative="greater").pvalue < MISFIT_BY_CHANCE
    return offsets[best] if clear else (0, 0)


def contrasts(
    image: np.ndarray, regions: Sequence[np.ndarray], offsets: Sequence[tuple[int, int]] = ((0, 0),)
) -> np.ndarray:
    """How much each neuron differs from the ring around it, with all moved by each offset in turn.

    The difference of the means, bright or dark, in standard deviations of the image thereabouts: (number of
    offsets, number of neurons), at least 0. It is 0 for a neuron that is not wholly in the image, or has
    neurons only around it. What an offset moves out of the image has the values at its edge.
    """
    from skimage.segmentation import expand_labels  # see `split_touching`

    inside = [region if (region < image.shape).all() else region[:0] for region in regions]
    cells = regions_to_labels(inside, image.shape)
    near = expand_labels(cells, RING)
    rows, columns = np.nonzero(near)
    # Two sets of pixels for each neuron: its ring, and itself.
    sets = 2 * near[rows, columns] + (cells[rows, columns] > 0)
    margin = max(abs(step) for offset in offsets for step in offset)
    wide = np.pad(image - np.mean(image, dtype=np.float64), margin, mode="edge")

    def sums(values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(sets, values, 2 * len(regions) + 2).reshape(-1, 2)[1:]

    result, counts = [], sums()
    for down, right in offsets:
        values = wide[rows + margin + down, columns + margin + right]
        totals, squares = sums(values), sums(values**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            ring, cell = (totals / counts).T
            both = totals.sum(axis=1) / counts.sum(axis=1)
            contrast = abs(cell - ring) / np.sqrt(squares.sum(axis=1) / counts.sum(axis=1) - both**2)
        result.append(np.nan_to_num(contrast, posinf=0))
    return np.array(result)


# Outlines


def outlines(regions: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outlines of neurons along the edges of their pixels.

    Parameters
    ----------
    regions : sequence of (n, 2) int arrays
        `[row, column]` pixels of each neuron. Pixel `[r, c]` is the square r - 0.5 … r + 0.5,
        c - 0.5 … c + 0.5.

    Returns
    -------
    list of (k, 2) float arrays
        Closed polygons, the last corner being the first, as `[row, column]`; neuron by neuron, with one
        polygon for each piece of a neuron and one for each of its holes (those that meet at a corner may
        share one). Where two neurons touch, each has its own.

    Examples
    --------
    >>> outlines([np.array([[0, 0], [0, 1]])])[0].tolist()
    [[-0.5, -0.5], [-0.5, 1.5], [0.5, 1.5], [0.5, -0.5], [-0.5, -0.5]]
    """
    rings: list[np.ndarray] = []
    for region in regions:
        region = np.asarray(region)
        if len(region):
            rings += trace(region - region.min(axis=0), region.min(axis=0) - 0.5)
    return rings


def trace(pixels: np.ndarray, origin: np.ndarray) -> Iterator[np.ndarray]:
    """Outlines of one neuron whose pixels begin at row 0 and column 0. See `outlines`."""
    mask = np.zeros(pixels.max(axis=0) + 3, bool)
    mask[pixels[:, 0] + 1, pixels[:, 1] + 1] = True
    # Pixel edges with the neuron on one side only, as steps from corner to corner clockwise round it:
    # neighbour on the outer side, first corner and last corner of the edge, from the pixel's upper left.
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, first, last in (
        ((-1, 0), (0, 0), (0, 1)),
        ((0, 1), (0, 1), (1, 1)),
        ((1, 0), (1, 1), (1, 0)),
        ((0, -1), (1, 0), (0, 0)),
    ):
        outside = ~np.roll(mask, (-neighbour[0], -neighbour[1]), axis=(0, 1))
        edges = np.argwhere(mask & outside) - 1
        for start, end in zip((edges + first).tolist(), (edges + last).tolist(), strict=True):
            steps.setdefault(tuple(start), []).append(tuple(end))
    while steps:
        corner = next(iter(steps))
        ring = [corner]
        while corner in steps:  # as many steps lead to a corner as from it: the way ends where it began
            ends = steps[corner]
            after = ends.pop()
            if not ends:
                del steps[corner]
            if len(ring) > 1 and (ring[-2][0] == after[0] or ring[-2][1] == after[1]):
                ring[-1] = after  # straight on
            else:
                ring.append(after)
            corner = after
        yield np.array(ring) + origin


# neurofinder JSON


def read_regions(path: str | Path, shape: tuple[int, int] | None = None) -> list[np.ndarray]:
    """Neurons of a neurofinder `regions.json`.

    Parameters
    ----------
    path : str or Path
        `[{"coordinates": [[row, column], ...]}, ...]`; other keys are ignored.
    shape : (int, int), optional
        (H, W) of the recording; a pixel outside it is an error.

    Returns
    -------
    list of (n, 2) int arrays
        In the file's order (scores depend on it), each neuron's pixels once, row by row.

    Raises
    ------
    UserError
        The file is missing or malformed, or a neuron is empty or has pixels that are negative,
        fractional or outside the image.
    """
    return parse_regions(read_json(path), shape, source=str(path))


def parse_regions(value: Any, shape: tuple[int, int] | None, source: str) -> list[np.ndarray]:
    """Neurons of the parsed JSON of a regions file; `source` names it in errors. See `read_regions`."""
    if not isinstance(value, list):
        raise UserError(
            f'{source}: is no list of {{"coordinates": [[row, column], ...]}}; is it the right file?'
        )
    if len(value) > MOST_NEURONS:
        raise UserError(f"{source}: has {len(value)} neurons, more than any recording; is it the right file?")
    return [parse_region(entry, shape, f"{source}: neuron {index}") for index, entry in enumerate(value)]


def parse_region(entry: Any, shape: tuple[int, int] | None, source: str) -> np.ndarray:
    """One neuron of parsed JSON. See `read_regions`."""
    if not isinstance(entry, dict) or "coordinates" not in entry:
        raise UserError(f'{source} has no "coordinates": [[row, column], ...]; export the labels again')
    try:
        coordinates = np.array(entry["coordinates"])
    except (TypeError, ValueError, OverflowError):
        coordinates = np.array("ragged")
    if coordinates.dtype.kind not in "iuf":
        raise UserError(f"{source} has coordinates that are not pairs of numbers; export the labels again")
    if coordinates.size == 0:
        raise UserError(f"{source} has no pixels; remove it from the file")
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        raise UserError(f"{source} has coordinates that are not [row, column] pairs; export the labels again")
    limit = np.asarray(shape if shape is not None else (2**31, 2**31))
    wrong = ~((coordinates >= 0) & (coordinates < limit) & (coordinates == np.floor(coordinates))).all(axis=1)
    if wrong.any():
        row, column = coordinates[wrong][0]
        frame = f" of {shape[0]} rows and {shape[1]} columns" if shape is not None else ""
        raise UserError(
            f"{source} has pixel [{row:g}, {column:g}], which is no pixel of the image{frame}; "
            "coordinates are whole numbers, [row, column], from 0; are they of this recording, rows first?"
        )
    return unique_pixels(coordinates.astype(np.int64))


def regions_as_json(
    regions: Sequence[np.ndarray], names: Sequence[str | int | None] | None = None
) -> list[dict[str, Any]]:
    """The value that neurofinder's JSON has for these neurons; each that has a name has it as "id"."""
    entries: list[dict[str, Any]] = [{"coordinates": np.asarray(region).tolist()} for region in regions]
    for entry, name in zip(entries, names or [None] * len(entries), strict=True):
        if name is not None:
            entry["id"] = name
    return entries


def write_regions(
    path: str | Path, regions: Sequence[np.ndarray], names: Sequence[str | int | None] | None = None
) -> None:
    """Write a neurofinder `regions.json`, see `regions_as_json`."""
    write_json(path, regions_as_json(regions, names), indent=None)


# Parts of a recording, and labels that are moved


def cut_region(region: np.ndarray, rows: range, columns: range) -> np.ndarray:
    """What of a neuron's pixels (n, 2) lies in a part of the image, as pixels of the part: (m, 2).

    Examples
    --------
    >>> cut_region(np.array([[4, 7], [5, 7], [5, 8]]), range(5, 9), range(7, 20)).tolist()
    [[0, 0], [0, 1]]
    """
    moved = region - (rows.start, columns.start)
    return moved[((moved >= 0) & (moved < (len(rows), len(columns)))).all(axis=1)]


def move_regions(
    regions: Sequence[np.ndarray], offset: tuple[int, int], shape: tuple[int, int]
) -> list[np.ndarray]:
    """Neurons moved by so many rows down and columns right; what leaves the image (H, W) is cut off.

    Examples
    --------
    >>> [region.tolist() for region in move_regions([np.array([[0, 1], [1, 1]])], (-1, 2), (9, 9))]
    [[[0, 3]]]
    """
    rows, columns = (range(-step, side - step) for step, side in zip(offset, shape, strict=True))
    return [cut_region(region, rows, columns) for region in regions]


def part_name(name: str, rows: range, columns: range) -> str:
    """What the part of a recording at these rows and columns is called.

    Examples
    --------
    >>> part_name("mouse1", range(100, 300), range(0, 200))
    'mouse1.rows100-300.columns0-200'
    """
    return f"{name}.rows{rows.start}-{rows.stop}.columns{columns.start}-{columns.stop}"


def whole_name(name: str) -> str:
    """The name of the recording that a part is of, see `part_name`; of a whole recording its own."""
    return PART.sub("", name)


def part_origin(name: str, ending: re.Pattern = PART) -> tuple[int, int]:
    """Row and column of the whole recording at which a part begins, see `part_name`; of a whole (0, 0).

    Examples
    --------
    >>> part_origin("mouse1.rows100-300.columns50-200")
    (100, 50)
    >>> part_origin("submission_mouse1.rows100-300.columns50-200_rois.zip", PART_INSIDE)
    (100, 50)
    """
    numbers = ending.search(name)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


# The submission


def dataset_name(name: str) -> str:
    """The challenge's name of a recording: its folder's name without a leading `neurofinder.`."""
    return name.removeprefix("neurofinder.")


def require_distinct_datasets(names: Iterable[str]) -> None:
    """Refuse recordings that would be one dataset in a submission.

    Raises
    ------
    UserError
        Two have the same name, or differ only by a leading `neurofinder.`.
    """
    known: dict[str, str] = {}
    for name in names:
        dataset = dataset_name(name)
        if dataset in known:
            raise UserError(
                f"{known[dataset]} and {name}: two recordings are one dataset, {dataset}, in a submission; "
                "rename one of them"
            )
        known[dataset] = name


def write_submission(
    path: str | Path,
    found: Mapping[str, Sequence[np.ndarray]],
    probabilities: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write `submission.json`, one entry per recording in the order given.

    Parameters
    ----------
    path : str or Path
        The file to write, whole or not at all.
    found : mapping of str to sequence of (n, 2) arrays
        The neurons of each recording; the key is the recording's folder name.
    probabilities : mapping of str to sequence of float, optional
        Mean probability of each neuron, written beside its coordinates to three decimals: the network's
        confidence. Readers of the format look at the coordinates alone.

    Raises
    ------
    UserError
        Two recordings are one dataset, or the file cannot be written or is too large for `read_submission`.
    """
    require_distinct_datasets(found)
    value = []
    for name, regions in found.items():
        entries = regions_as_json(regions)
        if probabilities is not None:
            for entry, probability in zip(entries, probabilities[name], strict=True):
                entry["probability"] = round(float(probability), 3)
        value.append({"dataset": dataset_name(name), "regions": entries})
    content = json_bytes(value, indent=None)
    if len(content) > LARGEST_SUBMISSION:
        raise UserError(f"{path}: would be too large to be read; find neurons in fewer recordings at once")
    write_together({Path(path): content})


def read_submission(path: str | Path, name: str, shape: tuple[int, int]) -> list[np.ndarray]:
    """Neurons that a `submission.json` has for a recording.

    Parameters
    ----------
    path : str or Path
        What `write_submission` wrote; other keys are ignored.
    name : str
        The recording's name.
    shape : (int, int)
        (H, W) of the recording; a pixel outside it is an error.

    Returns
    -------
    list of (n, 2) int arrays
        See `read_regions`.

    Raises
    ------
    UserError
        The file is missing or malformed, or has no entry for the recording, or two.
    """
    datasets = parse_submission(read_json(path, LARGEST_SUBMISSION), source=str(path))
    wanted = dataset_name(name)
    if wanted not in datasets:
        if parts := [each for each in datasets if whole_name(each) == whole_name(wanted)]:
            raise UserError(
                f"{path}: has no neurons of {wanted}, but of {listed(parts)}; look at that, with the "
                "--crop that its name tells or without"
            )
        raise UserError(
            f"{path}: has no neurons of {wanted}, only of {listed(datasets)}; "
            "run conv2d_predict.py on it, or rename one of the two"
        )
    return parse_regions(datasets[wanted], shape, source=f"{path}: {wanted}")


def parse_submission(value: Any, source: str) -> dict[str, Any]:
    """The regions, still as parsed JSON, of each recording of a submission, by the challenge's names.

    Raises
    ------
    UserError
        The value is no submission, or has a recording twice; `source` names it.
    """
    datasets: dict[str, Any] = {}
    for entry in value if isinstance(value, list) and value else [None]:
        if not isinstance(entry, dict) or not isinstance(entry.get("dataset"), str) or "regions" not in entry:
            raise UserError(
                f'{source}: is no list of {{"dataset": name, "regions": [...]}}; is it the right file?'
            )
        name = dataset_name(entry["dataset"])
        if name in datasets:
            raise UserError(f"{source}: has {name} twice; remove one of them")
        datasets[name] = entry["regions"]
    return datasets
