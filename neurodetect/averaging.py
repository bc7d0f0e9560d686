"""The mean of real recordings over time: pixels that frames lack, frames that are broken, parts of the image.

Motion correction leaves borders of NaN or zeros, and a light or a shutter spoils frames: neither may count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

FRAMES_IN_32_BITS = 2**16  #: whose sum fits, whatever their 16-bit pixels
BATCH = 64  #: frames whose samples are summed together
GRID = 20  #: rows and columns, about, of the pixels by which a frame's brightness is judged
TILE_STEP = 3  #: rows and columns between such pixels where tiles are read
SATURATED = 0.05  #: share of a frame's pixels at the largest value of their type that spoils it
LOW_CONTRAST = 0.25  #: of the median frame's deviation: a frame of less shows hardly anything
UNUSUAL_DEVIATIONS = 3.0  #: of the median frame, that a frame's mean is away from the median frame's
LISTED_RANGES = 10  #: of frame numbers in a warning

Box = tuple[int, int, int, int]  # first row, end of the rows, first column, end of the columns
Tile = tuple[tuple[slice, slice], Iterable[np.ndarray]]


class Projection(NamedTuple):
    """The mean image of a recording, and which frames are not as the others; they are counted from 0.

    Attributes
    ----------
    image : float64 (H, W)
        The mean over the frames that have a pixel; NaN where none has.
    length : int
        Number of frames.
    left_out : list of int
        Not in the mean: frames without a pixel, of one value throughout, or saturated.
    dark, bright : list of int
        In the mean, although far darker (or of hardly any contrast) or brighter than most.
    """

    image: np.ndarray
    length: int
    left_out: list[int]
    dark: list[int]
    bright: list[int]


def project(frames: Iterable[np.ndarray], tiles: Callable[[], Iterable[Tile]] | None = None) -> Projection:
    """Mean image over what frames have of it, and which frames are not as the others.

    A frame lacks pixels that are NaN. A frame without NaN lacks the rows and columns at its edges that are
    wholly 0, as motion correction leaves them; but only where the next row or column is mostly not 0, since
    where photons are few such rows come by chance.

    Frames of one value throughout, or with 5 % of their pixels at the largest value of an integer type, are
    left out, unless half of all frames are so: then that is how the recording is.

    Parameters
    ----------
    frames : iterable of (H, W) arrays
        As of `mean_projection`.
    tiles : callable, optional
        Called instead of reading `frames`, where a file gives parts of the image over all times faster:
        returns an iterable of ((rows, columns), blocks), two slices and an iterable of (n, h, w) arrays,
        consecutive in time. The tiles share out the image. It is called again where frames are left out.

    Returns
    -------
    Projection
        The same of both, up to the rounding of sums of floats.

    Raises
    ------
    ValueError
        As of `mean_projection`.
    """
    summed = sum_frames(frames) if tiles is None else sum_tiles(tiles)
    usual = ~summed.left_out & np.isfinite(summed.means)
    dark = bright = np.zeros(len(usual), bool)
    if usual.any() and (deviation := np.median(summed.deviations[usual])) > 0:
        distance = (summed.means - np.median(summed.means[usual])) / deviation
        bright = usual & (distance > UNUSUAL_DEVIATIONS)
        faint = (distance < -UNUSUAL_DEVIATIONS) | (summed.deviations < LOW_CONTRAST * deviation)
        dark = usual & faint & ~bright
        if 2 * (dark | bright).sum() >= usual.sum():  # then none is like "the others"
            dark = bright = np.zeros(len(usual), bool)
    numbers = (np.flatnonzero(which).tolist() for which in (summed.left_out, dark, bright))
    return Projection(quotient(summed.total, summed.present), len(usual), *numbers)


def describe_unusual(projection: Projection, first: int = 1) -> list[str]:
    """What to tell of the frames that are not as the others, a line for each kind.

    Of a recording that is left out altogether nothing: it has no image, which is said elsewhere.

    Parameters
    ----------
    projection : Projection
    first : int
        What the first frame is called; the player counts from 1.
    """
    advice = "; they are in the mean, --frames FIRST:LAST leaves them out"
    kinds = [
        (projection.left_out, "left out of the mean (empty, of one value throughout, or saturated)", ""),
        (projection.dark, "much darker than the others or with hardly any contrast", advice),
        (projection.bright, "much brighter than the others", advice),
    ]
    return [
        f"{len(numbers)} of {projection.length} frames {what}: {ranges(numbers, first)}{end}"
        for numbers, what, end in kinds
        if 0 < len(numbers) < projection.length
    ]


def ranges(numbers: Sequence[int], first: int) -> str:
    """Ascending numbers in words, such as "1-3, 7", where 0 is called `first`."""
    runs = np.split(np.array(numbers) + first, np.flatnonzero(np.diff(numbers) > 1) + 1)
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(texts[:LISTED_RANGES] + ["..."] * (len(texts) > LISTED_RANGES))


# Sums over time


class FrameSum:
    """The sum of frames, and how many of them have each pixel.

    Sums of integers of up to 32 bits are exact.

    Parameters
    ----------
    like : (H, W) array
        A frame.
    """

    def __init__(self, like: np.ndarray) -> None:
        self._total: np.ndarray = np.zeros(like.shape, sum_dtype(like.dtype))
        # Sums of 32 bits take half the time; they are moved on before they can overflow.
        self._short = like.dtype.kind in "iu" and like.dtype.itemsize <= 2
        self._recent = np.zeros(like.shape, f"{like.dtype.kind}4") if self._short else self._total
        self._lacking = np.zeros(like.shape, np.int64)
        self._boxes: Counter[Box] = Counter()
        self._count = 0

    def add(self, frame: np.ndarray, nan: np.ndarray | None, box: Box) -> None:
        """Add a frame; it has the pixels in the box, but for those that are `nan`, if any."""
        if nan is not None:
            self._lacking += nan
            frame = np.where(nan, 0, frame)
        np.add(self._recent, frame, out=self._recent)
        self._boxes[box] += 1
        self._count += 1
        if self._short and self._count % FRAMES_IN_32_BITS == 0:
            self._move_on()

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The sum of each pixel's values, and the number of frames that have it."""
        if self._short:
            self._move_on()
        return self._total, coverage(self._boxes, self._total.shape) - self._lacking

    def _move_on(self) -> None:
        self._total += self._recent
        self._recent[:] = 0


class Sums(NamedTuple):
    """Of each pixel the sum of its values and the number of frames that have it; of each frame, whether it
    is left out, and its mean and standard deviation."""

    total: np.ndarray
    present: np.ndarray
    left_out: np.ndarray
    means: np.ndarray
    deviations: np.ndarray


def sum_frames(frames: Iterable[np.ndarray]) -> Sums:
    """The sums over frames that come one by one."""
    good: FrameSum | None = None
    boxes: list[Box] = []
    shares, empties, parts = [], [], []
    for frame in alike(frames):
        if good is None:
            # Those that may have to be left out are summed apart.
            good, bad, whole = FrameSum(frame), FrameSum(frame), whole_box(frame)
            steps = [side // GRID | 1 for side in frame.shape]  # odd, or stripes could lie between them
            limit = largest_value(frame.dtype)
            grid = tuple(slice(None, None, step) for step in steps)
            samples = np.empty((BATCH, *frame[grid].shape), frame.dtype)
        nan = nan_pixels(frame)
        box = zero_border(frame) if nan is None else whole
        sample = samples[len(boxes) % BATCH]
        sample[...] = frame[grid]
        # Only where the sample gives reason is the whole frame looked at.
        share = spoiled_share(frame) if nan is not None or is_doubtful(sample, limit) else 0.0
        (good if share < SATURATED else bad).add(frame, nan, box)
        boxes.append(box)
        shares.append(share)
        empties.append(box[1] == 0 or (nan is not None and bool(nan.all())))
        if len(boxes) % BATCH == 0:
            parts.append(moments(samples))
    assert good is not None  # or `alike` would have raised
    parts.append(moments(samples[: len(boxes) % BATCH]))
    means, deviations = statistics(np.concatenate(parts), np.array(boxes), steps)
    left_out = frames_to_leave_out(np.array(shares), np.array(empties))
    total, present = good.sums()
    if not left_out[np.array(shares) >= SATURATED].all():
        more = bad.sums()
        total, present = total + more[0], present + more[1]
    return Sums(total, present, left_out, means, deviations)


def sum_tiles(tiles: Callable[[], Iterable[Tile]]) -> Sums:
    """The sums over tiles, see `project`."""
    parts: list[tuple[slice, slice, np.ndarray, np.ndarray]] = []
    added = extremes = None
    # By a tile's first row or column, for every frame: how many pixels of its rows or columns are 0.
    zeros: tuple[dict[int, np.ndarray], dict[int, np.ndarray]] = ({}, {})
    for (rows, columns), blocks in tiles():
        looks = [look_at_block(block, rows, columns) for block in blocks]
        ends = np.cumsum([len(look.moments) for look in looks])
        for look, end in zip(looks, ends, strict=True):
            if look.zeros is None:
                continue
            for known, start, counts in zip(zeros, (rows.start, columns.start), look.zeros, strict=True):
                strip = known.setdefault(start, np.zeros((ends[-1], counts.shape[1]), np.uint32))
                strip[end - len(counts) : end] += counts
        total = np.sum([look.total for look in looks], axis=0)
        parts.append((rows, columns, total, np.sum([look.lacking for look in looks], axis=0)))
        more = np.concatenate([look.moments for look in looks])
        extreme = np.concatenate([look.extremes for look in looks])
        added = more if added is None else added + more
        extremes = extreme if extremes is None else np.fmin(extremes, extreme)
    if added is None or extremes is None:
        raise ValueError("a mean of no frames")
    shape = max(part[0].stop for part in parts), max(part[1].stop for part in parts)
    total, lacking = np.zeros(shape, parts[0][2].dtype), np.zeros(shape, np.int64)
    for rows, columns, some, lacked in parts:
        total[rows, columns], lacking[rows, columns] = some, lacked
    (*of_sample, nans, largest), (low, high) = added.T, extremes.T
    boxes = np.tile([0, shape[0], 0, shape[1]], (len(nans), 1))
    if zeros[0]:
        border = zero_borders(*(joined(strips, side) for strips, side in zip(zeros, shape, strict=True)))
        boxes = np.where(nans[:, None] > 0, boxes, border)
    empty = (boxes[:, 1] == 0) | (nans == total.size)
    shares = np.where(low < -high, largest / total.size, 1.0)
    left_out = frames_to_leave_out(shares, empty)
    taken_off = left_out & ~empty  # empty frames are nowhere in the sums
    if taken_off.any():
        for (rows, columns), blocks in tiles():
            start = 0
            for block in blocks:
                some = block[taken_off[start : start + len(block)]]
                start += len(block)
                if len(some):
                    look = look_at_block(some, rows, columns)
                    total[rows, columns] -= look.total
                    lacking[rows, columns] -= look.lacking
    present = coverage(Counter(map(tuple, boxes[~taken_off].tolist())), shape) - lacking
    means, deviations = statistics(np.stack(of_sample, axis=1), boxes, (TILE_STEP, TILE_STEP))
    return Sums(total, present, left_out, means, deviations)


class BlockLook(NamedTuple):
    """What sums need of n frames of a tile (h, w).

    `total` and `lacking` (h, w) are the sum and the number of NaN; `zeros` are how many pixels are 0 in the
    rows (n, h) and in the columns (n, w) of each frame, None where there is no 0; `moments` (n, 5) are those
    of a sample, see `moments`, and the numbers of NaN and of pixels at the type's largest value; `extremes`
    (n, 2) the smallest value and the largest times -1.
    """

    total: np.ndarray
    lacking: np.ndarray
    zeros: tuple[np.ndarray, np.ndarray] | None
    moments: np.ndarray
    extremes: np.ndarray


def look_at_block(block: np.ndarray, rows: slice, columns: slice) -> BlockLook:
    """What sums need of a block (n, h, w) of the tile at these rows and columns."""
    nan = nan_pixels(block)
    filled = block if nan is None else np.where(nan, 0, block)
    zeros = None
    if np.count_nonzero(block) < block.size:
        zero = block == 0
        zeros = zero.sum(axis=2, dtype=np.uint32), zero.sum(axis=1, dtype=np.uint32)
    flat = block.reshape(len(block), -1)
    low, high = np.fmin.reduce(flat, axis=1), np.fmax.reduce(flat, axis=1)
    largest = np.zeros(len(block))
    if high.max() == (limit := largest_value(block.dtype)):
        largest += np.count_nonzero(flat == limit, axis=1)
    sample = block[:, -rows.start % TILE_STEP :: TILE_STEP, -columns.start % TILE_STEP :: TILE_STEP]
    lacking = np.zeros(block.shape[1:], np.int64) if nan is None else nan.sum(axis=0)
    nans = np.zeros(len(block)) if nan is None else nan.sum(axis=(1, 2))
    return BlockLook(
        filled.sum(axis=0, dtype=sum_dtype(block.dtype)),
        lacking,
        zeros,
        np.column_stack([moments(sample), nans, largest]),
        np.column_stack([low.astype(np.float64), -high.astype(np.float64)]),
    )


def alike(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames as arrays; a ValueError where there are none, or one is of another kind than the first."""
    first: np.ndarray | None = None
    for number, frame in enumerate(frames):
        frame = np.asarray(frame)
        if first is None:
            first = frame
        if frame.ndim != 2 or frame.shape != first.shape or frame.dtype != first.dtype:
            raise ValueError(
                f"frame {number} is {frame.dtype} {frame.shape}, not (H, W) like the first {first.shape}"
            )
        yield frame
    if first is None:
        raise ValueError("a mean of no frames")


def sum_dtype(dtype: np.dtype) -> type:
    """In which sums are kept: int64 where that is exact."""
    return np.int64 if dtype.kind in "iu" and dtype.itemsize <= 4 else np.float64


def quotient(total: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The mean of each pixel, NaN where no frame has it."""
    with np.errstate(invalid="ignore"):
        return total / present


def coverage(boxes: Counter[Box], shape: tuple[int, ...]) -> np.ndarray:
    """In how many of the boxes each pixel is."""
    covered = np.zeros(shape, np.int64)
    for (top, bottom, left, right), count in boxes.items():
        covered[top:bottom, left:right] += count
    return covered


# Missing pixels and broken frames


def whole_box(frame: np.ndarray) -> Box:
    return 0, frame.shape[0], 0, frame.shape[1]


def nan_pixels(frame: np.ndarray) -> np.ndarray | None:
    """Which pixels are NaN; None where none is."""
    if frame.dtype.kind != "f" or not np.isnan(frame.min()):
        return None
    return np.isnan(frame)


def lacking_pixels(frame: np.ndarray) -> np.ndarray | None:
    """Which pixels a frame lacks, see `project`: bool (H, W); None where it has all."""
    nan = nan_pixels(frame)
    if nan is not None or (box := zero_border(frame)) == whole_box(frame):
        return nan
    top, bottom, left, right = box
    lacking = np.ones(frame.shape, bool)
    lacking[top:bottom, left:right] = False
    return lacking


def zero_border(frame: np.ndarray) -> Box:
    """The box that a border of zeros leaves of a frame, see `project`; of a frame of zeros none."""
    if frame[0, 0] and frame[0, -1] and frame[-1, 0] and frame[-1, -1]:
        return whole_box(frame)

    def first_of(lines: np.ndarray) -> int:
        return next((number for number, line in enumerate(lines) if line.any()), len(lines))

    rows, columns = frame.shape
    top, left = first_of(frame), first_of(frame.T)
    if top == rows:
        return 0, 0, 0, 0
    bottom, right = rows - first_of(frame[::-1]), columns - first_of(frame.T[::-1])

    def is_filled(line: np.ndarray, length: int) -> bool:
        return 2 * np.count_nonzero(line) > length

    height, width = bottom - top, right - left
    return (
        top if is_filled(frame[top], width) else 0,
        bottom if is_filled(frame[bottom - 1], width) else rows,
        left if is_filled(frame[:, left], height) else 0,
        right if is_filled(frame[:, right - 1], height) else columns,
    )


def zero_borders(in_rows: np.ndarray, in_columns: np.ndarray) -> np.ndarray:
    """`zero_border` of n frames at once, by the numbers of zeros in their rows (n, H) and columns (n, W)."""
    rows, columns = in_rows.shape[1], in_columns.shape[1]

    def inner(zeros: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The first line of each frame that is not wholly 0, and the last."""
        return (zeros == length).argmin(axis=1), len(zeros[0]) - 1 - (zeros == length)[:, ::-1].argmin(axis=1)

    (top, bottom), (left, right) = inner(in_rows, columns), inner(in_columns, rows)

    def filled(zeros: np.ndarray, line: np.ndarray, across: int, length: np.ndarray) -> np.ndarray:
        return 2 * (across - np.take_along_axis(zeros, line[:, None], axis=1)[:, 0].astype(int)) > length

    height, width = bottom - top + 1, right - left + 1
    boxes = np.stack(
        [
            np.where(filled(in_rows, top, columns, width), top, 0),
            np.where(filled(in_rows, bottom, columns, width), bottom + 1, rows),
            np.where(filled(in_columns, left, rows, height), left, 0),
            np.where(filled(in_columns, right, rows, height), right + 1, columns),
        ],
        axis=1,
    )
    boxes[(in_rows == columns).all(axis=1)] = 0
    return boxes


def joined(strips: dict[int, np.ndarray], side: int) -> np.ndarray:
    """Strips (T, n) side by side, by where they begin; zeros where none is."""
    result = np.zeros((len(next(iter(strips.values()))), side), np.uint32)
    for start, strip in strips.items():
        result[:, start : start + strip.shape[1]] = strip
    return result


def is_doubtful(sample: np.ndarray, limit: int | None) -> bool:
    """Whether pixels of a frame, none NaN, give reason to look at its `spoiled_share`."""
    largest = sample.item(sample.argmax())  # takes half the time of `max`
    return largest == limit or (largest == sample.item(0) and largest == sample.min())


def largest_value(dtype: np.dtype) -> int | None:
    """That pixels of an integer type can have; None of a float type."""
    return int(np.iinfo(dtype).max) if dtype.kind in "iu" else None


def spoiled_share(frame: np.ndarray) -> float:
    """Share of a frame's pixels at the largest value of its type; 1 if it is of one value or NaN."""
    if not np.fmin.reduce(frame, axis=None) < np.fmax.reduce(frame, axis=None):
        return 1.0
    limit = largest_value(frame.dtype)
    return 0.0 if limit is None else np.count_nonzero(frame == limit) / frame.size


def frames_to_leave_out(shares: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Which frames are left out, by `spoiled_share` and whether they have any pixel."""
    bad = ~empty & (shares >= SATURATED)
    # Where many frames have some such pixels, the next frame with a few more is as good as they.
    if 2 * bad.sum() < len(bad) - empty.sum() and np.median(shares[~empty]) < SATURATED / 5:
        return empty | bad
    return empty


def moments(samples: np.ndarray) -> np.ndarray:
    """Of frames (n, h, w) the number of NaN, and the sums of the others and of their squares: (n, 3)."""
    values = samples.reshape(len(samples), samples.shape[1] * samples.shape[2]).astype(np.float64)
    nans = np.zeros(len(values))
    if samples.dtype.kind == "f":
        nan = np.isnan(values)
        values[nan] = 0
        nans += nan.sum(axis=1)
    return np.stack([nans, values.sum(axis=1), np.einsum("ij,ij->i", values, values)], axis=1)


def statistics(
    of_samples: np.ndarray, boxes: np.ndarray, steps: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of frames within their boxes, by the moments of every so many rows and
    columns; NaN where there is no pixel."""
    top, bottom, left, right = boxes.T
    rows = -(-bottom // steps[0]) - -(-top // steps[0])
    columns = -(-right // steps[1]) - -(-left // steps[1])
    nans, sums, squares = of_samples.T
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        count = rows * columns - nans
        means, squares = sums / count, squares / count
        variances = squares - means**2
    return means, np.sqrt(np.where(variances > 1e-14 * squares, variances, 0))  # else it is rounding
