"""The stride-1 averager: the network at every window of an image, averaged into one probability a pixel.

`brute_force_map` says what is meant: cut every 40 x 40 window out of the zero-padded image, give it to
the network, and average for each pixel all the probabilities it received. `probability_map` computes
the same numbers with less than half the arithmetic, because neighbouring windows see nearly the same pixels.

What keeps windows from sharing everything is the zero padding inside each of them: features near a window's
border depend on where that border is. Counted from the border, the convolutions before the pool feel it
1, 2 and 3 cells deep, the pool 2, the convolutions after it 3, 4 and 5 cells deep. So along either axis
a cell is in the low border, the middle or the high border of its window, and over two axes:

================  =================================  ======================================================
rows x columns    depends on                         computed
================  =================================  ======================================================
middle x middle   the pixel alone                    once for the image
border x middle   the window's row, and the column   for each window row: a strip over all columns
middle x border   the window's column, and the row   for each window column: a strip over all rows
border x border   the window                         for each window: its four corners
================  =================================  ======================================================

The next layer computes each zone from itself, the zones beside it and the row or column of zeros outside
the window. In the middle, pooling becomes a maximum at every pixel; after it the cells of a window are 2 px
apart, so that convolutions have dilation 2 there. At last the nine zones are put together to the 20 x 20
cells of 100 features of each window, and the dense layers run as they are, on many windows at once.

The image is handled in blocks of windows, so memory depends on the size of a block and not on that of the
image. `Zones` holds, for a block and a layer, what its windows share; corners and dense layers are computed
for a few of the block's window rows at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from itertools import chain, product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from neurodetect.files import UserError
from neurodetect.network import MARGIN, TARGET, WINDOW, NeuronNet
from neurodetect.patches import PADDING
from neurodetect.progress import progress_bar
from neurodetect.training import arithmetic, choose_precision

# A processor's caches want little at a time, a GPU's thousands of cores much.
BLOCK_SIDE = {"cpu": 48, "cuda": 192}  #: side of a block of windows where the caller does not say
BATCH = {"cpu": 512, "cuda": 8192}  #: windows at a time in corners and dense layers
LOW, HIGH, MIDDLE, OUTSIDE = 0, 1, 2, 3  #: where in its window a cell is, along one axis


def window_runs(length: int, stride: int) -> list[range]:
    """First pixels, in the padded image, of the windows along an axis.

    Parameters
    ----------
    length : int
        Pixels of the image along the axis, without its padding.
    stride : int
        Pixels from one window to the next, 1 to 20.

    Returns
    -------
    list of range
        0, stride, 2 stride, ... up to `length`. The window at s labels the image's pixels s - 10 to s + 9;
        where the last of them does not reach the last pixel, a second run holds the start `length` alone.

    Raises
    ------
    UserError
        The stride is not positive, or leaves gaps between the squares that windows label.
    """
    if not 1 <= stride <= TARGET:
        raise UserError(f"a stride of {stride} px is not possible; choose one from 1 to {TARGET}")
    run = range(0, length + 1, stride)
    return [run] if run[-1] + MARGIN >= length else [run, range(length, length + 1)]


def brute_force_map(
    network: NeuronNet,
    image: np.ndarray,
    stride: int = 1,
    *,
    precision: str = "float32",
    batch_size: int = 256,
) -> np.ndarray:
    """Mean probability of 'neuron' over all windows that label a pixel, window by window: the definition.

    Parameters, result and errors are those of `probability_map`; `batch_size` windows go through the
    network at a time.
    """
    device = next(network.parameters()).device
    padded = _pad(image, device)
    starts = [torch.tensor([*chain(*window_runs(length, stride))]) for length in image.shape]
    windows = padded.unfold(0, WINDOW, 1).unfold(1, WINDOW, 1)
    labelled = torch.arange(MARGIN, MARGIN + TARGET, device=device)
    total, count = torch.zeros_like(padded), torch.zeros_like(padded)
    with torch.inference_mode(), arithmetic(device, choose_precision(precision, device)):
        for batch in torch.cartesian_prod(*starts).to(device).split(batch_size):
            rows, columns = batch.T
            logits = network(windows[rows, columns].unsqueeze(1)).float()
            probabilities = torch.sigmoid(logits).view(-1, TARGET, TARGET)
            pixels = (rows[:, None, None] + labelled[:, None], columns[:, None, None] + labelled)
            total.index_put_(pixels, probabilities, accumulate=True)
            count.index_put_(pixels, torch.ones_like(probabilities), accumulate=True)
    return (_crop(total) / _crop(count)).cpu().numpy()


def probability_map(
    network: NeuronNet,
    image: np.ndarray,
    stride: int = 1,
    *,
    precision: str = "auto",
    block_side: int | None = None,
    description: str | None = None,
) -> np.ndarray:
    """Mean probability of 'neuron' over all windows that label a pixel.

    Parameters
    ----------
    network : NeuronNet
        Computes on the device of its parameters.
    image : ndarray (H, W)
        A standardised image of any size from 1 x 1; this function does not scale it.
    stride : int
        Pixels from one window to the next along both axes, 1 to 20.
    precision : {"auto", "float32", "bfloat16"}
        Number format of the network's arithmetic; the averages are float32 in any case.
    block_side : int, optional
        A block holds at most `block_side` x `block_side` windows: memory grows with their number, the
        result stays the same. Where a block does not fit a CUDA device's memory, blocks of half the
        windows are tried, and so on; the first time there is a warning.
    description : str, optional
        Label of a progress bar; without it none is drawn.

    Returns
    -------
    ndarray of float32 (H, W)
        Values from 0 to 1; `brute_force_map` gives the same up to rounding.

    Raises
    ------
    UserError
        The image is not two-dimensional, is empty or holds NaN or infinity; or the stride leaves gaps.
    """
    device = next(network.parameters()).device
    padded = _pad(image, device)
    network = _SharingNetwork(network, getattr(torch, choose_precision(precision, device)))
    blocks = list(product(*(window_runs(length, stride) for length in image.shape)))
    limit = (block_side or BLOCK_SIDE[device.type]) ** 2
    total, count = torch.zeros_like(padded), torch.zeros_like(padded)
    bar = progress_bar(
        description=description or "",
        total=sum(len(rows) * len(columns) for rows, columns in blocks),
        unit="windows",
        show=description is not None,
    )
    warned = False
    with torch.inference_mode(), arithmetic(device, "float32"), bar:  # the layers have their own dtype
        while blocks:
            rows, columns = blocks.pop()
            windows = len(rows) * len(columns)
            if windows > limit:
                blocks += _halves(rows, columns)
                continue
            try:
                probabilities = network.probabilities(padded, rows, columns)
            except torch.OutOfMemoryError:
                if windows == 1:
                    raise
                if not warned:
                    warnings.warn(
                        f"{device} is short of memory: smaller blocks, a little slower", stacklevel=2
                    )
                warned, limit = True, windows // 2
                blocks.append((rows, columns))
                continue
            _add_windows(total, probabilities, rows, columns)
            _add_windows(count, torch.ones_like(probabilities), rows, columns)
            bar.update(windows)
    return (_crop(total) / _crop(count)).cpu().numpy()


def _pad(image: np.ndarray, device: torch.device) -> Tensor:
    """The image with zeros around it, float32 on the device; anything but a finite 2-D image is refused."""
    if image.ndim != 2 or image.size == 0:
        raise UserError(f"an image of shape {image.shape} has no probability map; it must be rows x columns")
    padded = np.pad(image.astype(np.float32), PADDING)
    if not np.isfinite(padded).all():
        raise UserError("the image holds NaN or infinity; run preprocessing.py again")
    return torch.from_numpy(padded).to(device)


def _crop(padded: Tensor) -> Tensor:
    """The image without its padding."""
    return padded[PADDING:-PADDING, PADDING:-PADDING]


def _halves(rows: range, columns: range) -> list[tuple[range, range]]:
    """A block of windows cut in two across its longer side; the first half comes last, to be popped first."""
    if len(rows) >= len(columns):
        middle = len(rows) // 2
        return [(rows[middle:], columns), (rows[:middle], columns)]
    middle = len(columns) // 2
    return [(rows, columns[middle:]), (rows, columns[:middle])]


def _add_windows(total: Tensor, values: Tensor, rows: range, columns: range) -> None:
    """Add the (rows, columns, 20, 20) values of a block's windows to the pixels that they label."""

    def every(starts: range, first: int) -> slice:
        return slice(first, first + starts[-1] - starts[0] + 1, starts.step)

    over_rows = values.new_zeros(rows[-1] - rows[0] + TARGET, len(columns), TARGET)
    for i in range(TARGET):
        over_rows[every(rows, i)] += values[:, :, i]
    labelled = total[rows[0] + MARGIN : rows[-1] + MARGIN + TARGET, columns[0] + MARGIN :]
    for j in range(TARGET):
        labelled[:, every(columns, j)] += over_rows[:, :, j]


class _SharingNetwork:
    """The network's layers, in the precision and the memory order that suit shared features."""

    def __init__(self, network: NeuronNet, dtype: torch.dtype) -> None:
        before = network.conv1, network.conv2, network.conv3
        after = network.conv4, network.conv5, network.conv6
        self.layers = [
            deepcopy(layer).to(dtype=dtype, memory_format=torch.channels_last)
            for layer in (*before, network.pool, *after)
        ]
        # The network lists features map by map; here they come cell by cell.
        maps, cells = network.conv6.out_channels, WINDOW // 2
        dense = network.dense.weight.detach().to(dtype).view(-1, maps, cells, cells)
        self.dense = dense.permute(0, 2, 3, 1).flatten(1), network.dense.bias.detach().to(dtype)
        self.output = network.output.weight.detach().to(dtype), network.output.bias.detach().to(dtype)
        self.dtype = dtype

    def probabilities(self, padded: Tensor, rows: range, columns: range) -> Tensor:
        """Probabilities (rows, columns, 20, 20) for the windows of a block, float32."""
        seen = padded[rows[0] : rows[-1] + WINDOW, columns[0] : columns[-1] + WINDOW].to(self.dtype)
        zones = [Zones.of_image(seen, rows, columns)]
        for layer in self.layers:
            zones.append(zones[-1].next(layer))
        probabilities = padded.new_empty(len(rows), len(columns), TARGET, TARGET)
        step = min(max(1, BATCH[padded.device.type] // len(columns)), len(rows))
        cells, maps = zones[-1].cells, zones[-1].middle.shape[-1]
        buffer = seen.new_empty(step, len(columns), cells, cells, maps)
        for first in range(0, len(rows), step):
            some = slice(first, min(first + step, len(rows)))
            features = buffer[: some.stop - first]
            self._features(zones, some, features)
            hidden = functional.linear(features.flatten(0, 1).flatten(1), *self.dense).tanh_()
            logits = functional.linear(hidden, *self.output)
            probabilities[some] = torch.sigmoid(logits.float()).view(-1, len(columns), TARGET, TARGET)
        return probabilities

    def _features(self, zones: list[Zones], some: slice, out: Tensor) -> None:
        """Features of some of a block's window rows, from the zones of all layers, into `out`."""
        zones = [z.of_rows(some) for z in zones]
        corners = None
        for before, layer in zip(zones[:-1], self.layers, strict=True):
            corners = before.next_corners(corners, layer)
        last = zones[-1]
        cells = range(last.cells)
        last.cut(corners, cells, cells, out)


class Zones:
    """One layer's features that the windows of a block share: all but the corners.

    Maps are the last axis everywhere. Windows start at `rows` and `columns`. Each has `cells` cells along
    an axis, `spacing` px apart, and the `border` outermost on either side feel where the window ends.

    Attributes
    ----------
    middle : Tensor (H, W, maps)
        Begins with the first middle cell of the block's first window.
    row_strips : Tensor (2, rows, border, W, maps)
        Low and high border cells of each window row, in the columns of `middle`.
    column_strips : Tensor (2, columns, H, border, maps)
        Low and high border cells of each window column, in the rows of `middle`.
    """

    def __init__(
        self,
        middle: Tensor,
        row_strips: Tensor,
        column_strips: Tensor,
        rows: range,
        columns: range,
        cells: int = WINDOW,
        spacing: int = 1,
    ) -> None:
        self.middle, self.row_strips, self.column_strips = middle, row_strips, column_strips
        self.rows, self.columns, self.cells, self.spacing = rows, columns, cells, spacing
        self.border = row_strips.shape[2]

    @classmethod
    def of_image(cls, image: Tensor, rows: range, columns: range) -> Zones:
        """The network's input: one map, and no cell feels a border yet."""
        height, width = image.shape
        row_strips = image.new_empty(2, len(rows), 0, width, 1)
        column_strips = image.new_empty(2, len(columns), height, 0, 1)
        return cls(image[:, :, None], row_strips, column_strips, rows, columns)

    def of_rows(self, some: slice) -> Zones:
        """The zones of some of the window rows; nothing is copied."""
        skipped = self.rows[some.start] - self.rows[0]
        return Zones(
            self.middle[skipped:],
            self.row_strips[:, some],
            self.column_strips[:, :, skipped:],
            self.rows[some],
            self.columns,
            self.cells,
            self.spacing,
        )

    def next(self, layer: nn.Conv2d | nn.MaxPool2d) -> Zones:
        """The zones after a layer."""
        height, width, maps = self.middle.shape
        sides = self._sides(layer)
        size = len(sides[LOW])
        row_strips = self.middle.new_empty(2, len(self.rows), size, width, maps)
        column_strips = self.middle.new_empty(2, len(self.columns), height, size, maps)
        for side in (LOW, HIGH):
            for zone, run, source in self._zones(sides[side]):
                to_rows, to_columns = row_strips[side, :, run], column_strips[side, :, :, run]
                if zone == OUTSIDE:
                    to_rows.zero_()
                    to_columns.zero_()
                elif zone == MIDDLE:
                    to_rows.copy_(self._at_rows(self.middle, 0, source))
                    to_columns.copy_(self._at_columns(self.middle, 1, source).permute(1, 0, 2, 3))
                else:
                    to_rows.copy_(self.row_strips[zone, :, source])
                    to_columns.copy_(self.column_strips[zone, :, :, source])
        middle = self._apply(layer, self.middle, (True, True))
        row_strips = self._apply(layer, row_strips, (False, True))
        column_strips = self._apply(layer, column_strips, (True, False))
        if isinstance(layer, nn.Conv2d):
            return Zones(middle, row_strips, column_strips, self.rows, self.columns, self.cells, self.spacing)
        # Three border cells have become two, which begin the middle one pixel later.
        middle, row_strips, column_strips = middle[1:, 1:], row_strips[:, :, :, 1:], column_strips[:, :, 1:]
        return Zones(middle, row_strips, column_strips, self.rows, self.columns, self.cells // 2, 2)

    def next_corners(self, corners: Tensor | None, layer: nn.Conv2d | nn.MaxPool2d) -> Tensor:
        """The corners (2, 2, rows, columns, border, border, maps) after a layer, from those before it."""
        sides = self._sides(layer)
        size = len(sides[LOW])
        shape = (2, 2, len(self.rows), len(self.columns), size, size, self.middle.shape[-1])
        cut = self.middle.new_empty(shape)
        for i, j in product((LOW, HIGH), repeat=2):
            self.cut(corners, sides[i], sides[j], cut[i, j])
        return self._apply(layer, cut, (False, False))

    def cut(self, corners: Tensor | None, row_cells: range, column_cells: range, out: Tensor) -> None:
        """Put cells of every window together, into `out` (rows, columns, row cells, column cells, maps)."""
        for row_zone, to_rows, rows in self._zones(row_cells):
            for column_zone, to_columns, columns in self._zones(column_cells):
                if OUTSIDE in (row_zone, column_zone):
                    part = out.new_zeros(())
                elif row_zone == column_zone == MIDDLE:
                    part = self._at_columns(self._at_rows(self.middle, 0, rows), 2, columns).transpose(1, 2)
                elif column_zone == MIDDLE:
                    part = self._at_columns(self.row_strips[row_zone, :, rows], 2, columns).transpose(1, 2)
                elif row_zone == MIDDLE:
                    strips = self.column_strips[column_zone, :, :, columns]
                    part = self._at_rows(strips, 1, rows).transpose(0, 1)
                else:
                    part = corners[row_zone, column_zone, :, :, rows, columns]
                out[:, :, to_rows, to_columns] = part

    def _sides(self, layer: nn.Conv2d | nn.MaxPool2d) -> tuple[range, range]:
        """The cells of a window that make its low and its high border after a layer."""
        outside = 1 if isinstance(layer, nn.Conv2d) else 0
        depth = self.border + 1 + outside
        return range(-outside, depth), range(self.cells - depth, self.cells + outside)

    def _zones(self, cells: range) -> Iterator[tuple[int, slice, slice]]:
        """Split a run of a window's cells by zone.

        Yields the zone, its place in the run, and that place counted from the first cell of the zone.
        """
        low, high, end = self.border, self.cells - self.border, self.cells
        for zone, start, stop in (
            (OUTSIDE, -1, 0),
            (LOW, 0, low),
            (MIDDLE, low, high),
            (HIGH, high, end),
            (OUTSIDE, end, end + 1),
        ):
            first, last = max(start, cells.start), min(stop, cells.stop)
            if first < last:
                run = slice(first - cells.start, last - cells.start)
                yield zone, run, slice(first - start, last - start)

    def _at_rows(self, x: Tensor, axis: int, cells: slice) -> Tensor:
        """View an axis of pixel rows as two: window rows, and middle cells of each."""
        return _windows(x, axis, self.rows, cells, self.spacing)

    def _at_columns(self, x: Tensor, axis: int, cells: slice) -> Tensor:
        """View an axis of pixel columns as two: window columns, and middle cells of each."""
        return _windows(x, axis, self.columns, cells, self.spacing)

    def _apply(self, layer: nn.Conv2d | nn.MaxPool2d, x: Tensor, shared: tuple[bool, bool]) -> Tensor:
        """A layer on (..., rows, columns, maps), without padding.

        `shared` says for rows and for columns whether all windows' cells lie there, one at each pixel,
        or only those of one window, side by side.
        """
        maps_first = x.reshape(-1, *x.shape[-3:]).permute(0, 3, 1, 2)
        if isinstance(layer, nn.Conv2d):
            dilation = [self.spacing if s else 1 for s in shared]
            y = functional.elu_(functional.conv2d(maps_first, layer.weight, layer.bias, dilation=dilation))
        else:
            y = functional.max_pool2d(maps_first, 2, stride=[1 if s else 2 for s in shared])
        maps_last = y.permute(0, 2, 3, 1).contiguous()
        return maps_last.view(*x.shape[:-3], *maps_last.shape[1:])


def _windows(x: Tensor, axis: int, starts: range, cells: slice, spacing: int) -> Tensor:
    """View an axis of pixels as two, windows and cells; nothing is copied."""
    first, extent = cells.start * spacing, (cells.stop - cells.start - 1) * spacing + 1
    x = x.narrow(axis, first, starts[-1] - starts[0] + extent)
    return x.unfold(axis, extent, starts.step)[..., ::spacing].movedim(-1, axis + 1)
