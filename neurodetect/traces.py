"""What neurons do over time: the mean brightness of each, and of its surround, in every frame.

The conventions are those of suite2p (Pachitariu et al., https://github.com/MouseLand/suite2p, version 1.1,
`suite2p/extraction/masks.py`) with its default settings, for neurons all of whose pixels weigh the same.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import ndimage, sparse

from neurodetect.averaging import Projection, lacking_pixels, project
from neurodetect.regions import unique_pixels

INNER_RADIUS = 2  #: pixels about a neuron that are not in its surround: suite2p's inner_neuropil_radius
INNER_STEPS = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), INNER_RADIUS)
SURROUND_PIXELS = 350  #: that a surround has more than: suite2p's min_neuropil_pixels
GROWTH = 5  #: pixels to each side by which the rectangle of a surround grows at a time
MOST_GROWTHS = 100
WORKERS = min(4, os.cpu_count() or 1)  #: threads that compute means
AHEAD = 2 * WORKERS  #: frames whose means are still being computed


class Traces(NamedTuple):
    """The traces of N neurons over T frames.

    Attributes
    ----------
    neurons, surrounds : float32 (N, T)
        Mean over the pixels of each neuron, and of its surround, in every frame; NaN where a frame has none
        of them.
    surround_pixels : list of int arrays
        The pixels of each surround, as indices into the flattened image.
    first : int
        Number of the first frame in the recording, counted from 1.
    rate_hz : float or None
        Frames a second, where it is known.
    """

    neurons: np.ndarray
    surrounds: np.ndarray
    surround_pixels: list[np.ndarray]
    first: int = 1
    rate_hz: float | None = None


def extract(
    frames: Iterable[np.ndarray], regions: Sequence[np.ndarray], shape: tuple[int, int]
) -> tuple[Traces, Projection]:
    """The traces of neurons in one pass over a recording's frames.

    Parameters
    ----------
    frames : iterable of (H, W) arrays
        A few at a time are in memory, and the traces twice at the end. A frame has to keep its values while
        the next ones are read.
    regions : sequence of (n, 2) int arrays
        `[row, column]` pixels of each neuron, see `neuron_pixels`.
    shape : (int, int)
        (H, W) of the frames.

    Returns
    -------
    traces : Traces
        A mean is over the pixels that a frame has: it lacks what is NaN, and rows and columns of zeros that
        motion correction left at its edges, as in `averaging.project`. For frames of integers of up to 32
        bits the sums are exact. Saturated frames have their values as any other.
    projection : Projection
        What `averaging.project` gives for the same frames: whether they are those that an image was made of
        can be told by it.

    Raises
    ------
    ValueError
        As of `averaging.project`, or frames are of another shape.
    """
    surrounds = surround_pixels(regions, shape)
    mean = GroupedMean([*neuron_pixels(regions, shape), *surrounds], shape)
    rows: list[np.ndarray] = []
    waiting: deque[Future[np.ndarray]] = deque()

    # Sparse products let other threads work: while one is computed the next frame is read.
    with ThreadPoolExecutor(WORKERS) as workers:

        def measured() -> Iterator[np.ndarray]:
            for frame in frames:
                waiting.append(workers.submit(mean, frame))
                if len(waiting) > AHEAD:
                    rows.append(waiting.popleft().result())
                yield frame

        projection = project(measured())
    rows += [future.result() for future in waiting]
    both = np.stack(rows, axis=1)
    return Traces(both[: len(regions)], both[len(regions) :], surrounds), projection


class GroupedMean:
    """The mean of frames over each of several sets of pixels, which may share pixels.

    Surrounds overlap several times over. So pixels that are in the same sets are summed first, each once, and
    sets then from these sums: two sparse products, of (groups, pixels) and of (sets, groups).

    Parameters
    ----------
    sets : sequence of (n,) int arrays
        Indices into the flattened image, each once in a set.
    shape : (int, int)
        (H, W) of the frames.
    """

    def __init__(self, sets: Sequence[np.ndarray], shape: tuple[int, int]) -> None:
        self._group = pixel_groups(sets, shape[0] * shape[1]).reshape(shape)
        self._count = int(self._group.max(initial=-1)) + 1
        pixels = np.flatnonzero(self._group >= 0)
        group = self._group.ravel()
        in_float = incidence(group[pixels], pixels, (self._count, group.size))
        self._sum_groups = {np.float64: in_float, np.int32: in_float.astype(np.int32)}
        largest = np.bincount(group[pixels]).max(initial=0)
        self._small_sums = largest * 2**16 <= np.iinfo(np.int32).max  # of 16-bit values
        members = [np.unique(group[of]) for of in sets]
        numbers = np.repeat(np.arange(len(sets)), [len(of) for of in members])
        columns = np.concatenate([np.zeros(0, int), *members])
        self._sum_sets = incidence(numbers, columns, (len(sets), self._count))
        self._sizes = np.array([len(of) for of in sets], np.float64)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Means over the pixels that a frame (H, W) has: float32 (sets,), NaN where it has none of a set.

        Raises ValueError for a frame of another shape.
        """
        if np.shape(frame) != self._group.shape:
            raise ValueError(f"a frame of {np.shape(frame)}, not {self._group.shape}")
        lacking, present = lacking_pixels(frame), self._sizes
        # Half the bytes, three quarters of the time; the sums are exact.
        small = self._small_sums and frame.dtype.kind in "iu" and frame.dtype.itemsize <= 2
        number = np.int32 if small else np.float64
        values = np.array(frame, number)
        if lacking is not None:
            values[lacking] = 0
            lacked = np.bincount(self._group[lacking] + 1, minlength=self._count + 1)
            present = present - self._sum_sets @ lacked[1:]
        sums = self._sum_sets @ (self._sum_groups[number] @ values.ravel())
        with np.errstate(invalid="ignore", over="ignore"):
            return (sums / present).astype(np.float32)


def incidence(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """A sparse matrix with ones at these places."""
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)


def pixel_groups(sets: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Number of the group of each pixel, int64 (size,): those of a group are in the same sets; -1 in none.

    Examples
    --------
    >>> pixel_groups([np.array([0, 1, 2]), np.array([2, 3])], 5).tolist()
    [0, 0, 2, 1, -1]
    """
    group, count = np.full(size, -1), 0
    for pixels in sets:
        # What was one group is one on either side of the set's edge.
        before, inside = np.unique(group[pixels], return_inverse=True)
        group[pixels] = count + inside
        count += len(before)
    used = group >= 0
    group[used] = np.unique(group[used], return_inverse=True)[1]  # some were split up altogether
    return group


def neuron_pixels(regions: Sequence[np.ndarray], shape: tuple[int, int]) -> list[np.ndarray]:
    """The pixels of each neuron that its trace is the mean of, as indices into the flattened image.

    Those that it shares with other neurons are left out (suite2p's `allow_overlap=False`); but a neuron that
    has no others keeps them, with a warning.

    Examples
    --------
    >>> two = [np.array([[0, 0], [0, 1]]), np.array([[0, 1], [0, 2]])]
    >>> [pixels.tolist() for pixels in neuron_pixels(two, (2, 3))]
    [[0], [2]]
    """
    pixels = flat_indices(regions, shape)
    sharers = np.bincount(np.concatenate([np.zeros(0, int), *pixels]), minlength=shape[0] * shape[1])
    own = [of[sharers[of] == 1] for of in pixels]
    covered = [number for number, of in enumerate(own, start=1) if not len(of)]
    if covered:
        warnings.warn(
            f"all pixels of neuron {', '.join(map(str, covered))} are in other neurons too; "
            "its trace is the mean of these",
            stacklevel=2,
        )
    return [mine if len(mine) else of for mine, of in zip(own, pixels, strict=True)]


def surround_pixels(regions: Sequence[np.ndarray], shape: tuple[int, int]) -> list[np.ndarray]:
    """The pixels of each neuron's surround (neuropil), as indices into the flattened image.

    The neuron grows by two pixels, up, down, left and right at a time; what it covers then is not in the
    surround. The rectangle about that grows by 5 px to each side, within the image, until it has more than
    350 other pixels that are in no neuron, or has grown a hundred times. They are the surround: the way of
    suite2p's `create_neuropil_masks`. It is empty where neurons leave no pixel.
    """
    free = np.ones(shape, bool)
    for region in regions:
        free[tuple(region.T)] = False
    # Sums over rectangles by their corners.
    above = np.zeros((shape[0] + 1, shape[1] + 1), np.int64)
    above[1:, 1:] = free.cumsum(axis=0).cumsum(axis=1)
    return [surround(region, free, above) for region in regions]


def surround(region: np.ndarray, free: np.ndarray, above: np.ndarray) -> np.ndarray:
    """The surround of one neuron; `above` [row, column] is the number of free pixels above and left of it."""
    limits = np.array(free.shape)
    first = np.maximum(region.min(axis=0) - INNER_RADIUS, 0)
    end = np.minimum(region.max(axis=0) + INNER_RADIUS + 1, limits)
    inner = np.zeros(end - first, bool)
    inner[tuple((region - first).T)] = True
    inner = ndimage.binary_dilation(inner, INNER_STEPS)
    place = tuple(map(slice, first, end))
    inner_free = np.count_nonzero(free[place] & inner)
    for _ in range(MOST_GROWTHS):
        first, end = np.maximum(first - GROWTH, 0), np.minimum(end + GROWTH, limits)
        (top, left), (bottom, right) = first, end
        inside = above[bottom, right] - above[top, right] - above[bottom, left] + above[top, left]
        if inside - inner_free > SURROUND_PIXELS or (not first.any() and (end == limits).all()):
            break
    chosen = free[top:bottom, left:right].copy()
    chosen[tuple(slice(s.start - f, s.stop - f) for s, f in zip(place, first, strict=True))] &= ~inner
    rows, columns = np.nonzero(chosen)
    return np.ravel_multi_index((rows + top, columns + left), free.shape)


def flat_indices(regions: Sequence[np.ndarray], shape: tuple[int, int]) -> list[np.ndarray]:
    """The pixels of each neuron, each once, as indices into the flattened image."""
    return [np.ravel_multi_index(tuple(unique_pixels(region).T), shape) for region in regions]
