"""The stride-1 averager: the network at every window of an image, averaged into one probability a pixel.

`brute_force_map` says what is meant: cut every 40 x 40 window out of the zero-padded image, give it to
the network, and average for each pixel all the probabilities it received. `probability_map` computes
the same numbers with less than half the arithmetic, because neighbouring windows see nearly the same pixels.

What keeps windows from sharing everything is the zero padding inside each of them: features near a window's
border depend on where that border is. Counted from the border, the convolutions before the pool feel it
1, 2 and 3 cells deep, the pool 2, the convolutions after it 3, 4 and 5 cells deep. So along either axis
a cell is in the low border, the interior or the high border of its window, and over two axes:

===================  =================================  ===============================================
rows x columns       depends on                         computed
===================  =================================  ===============================================
interior x interior  the pixel alone                    once for the image
border x interior    the window's row, and the column   for each window row: a strip over all columns
interior x border    the window's column, and the row   for each window column: a strip over all rows
border x border      the window                         for each window: its four corners
===================  =================================  ===============================================

The next layer computes each zone from itself, the zones beside it and the row or column of zeros outside
the window. In the interior, pooling becomes a maximum at every pixel; after it the cells of a window are 2 px
apart, so that convolutions have dilation 2 there. At last the nine zones are put together to the 20 x 20
cells of 100 features of each window, and the dense layers run as they are, on many windows at once; where
they are tied, windows share most of their work, too, see `_TiedLayers`.

The image is handled in blocks of windows, so memory depends on the size of a block and not on that of the
image. `Zones` holds, for a block and a layer, what its windows share; corners and dense layers are computed
for a few of the block's window rows at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from neurodetect.device import arithmetic, choose_precision, is_out_of_memory
from neurodetect.files import UserError
from neurodetect.network import (
    MAPS_MULTIPLE,
    MARGIN,
    SQUARES,
    TARGET,
    WINDOW,
    NeuronNet,
    TiedNet,
    with_empty_maps,
)
from neurodetect.patches import PADDING
from neurodetect.processes import ALONE, Team
from neurodetect.progress import progress_bar

# A processor's caches want little at a time, a GPU's thousands of cores much: see `gpu_block`.
BLOCK_SIDE = 48  #: side of a block of windows on a CPU, where the caller does not say
BATCH = 512  #: windows at a time in corners and dense layers on a CPU
MEMORY = 4 * 2**30  #: bytes that a device is taken to have where PyTorch does not say
Weights = tuple[Tensor, Tensor]  #: of a layer: its weights and its biases
LOW, HIGH, INTERIOR, OUTSIDE = 0, 1, 2, 3  #: where in its window a cell is, along one axis


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

    Examples
    --------
    >>> window_runs(30, 10)
    [range(0, 31, 10)]
    >>> window_runs(31, 20)
    [range(0, 32, 20), range(31, 32)]
    """
    if not 1 <= stride <= TARGET:
        raise UserError(f"a stride of {stride} px is not possible; choose one from 1 to {TARGET}")
    run = range(0, length + 1, stride)
    return [run] if run[-1] + MARGIN >= length else [run, range(length, length + 1)]


def windows_per_pixel(length: int, stride: int) -> np.ndarray:
    """How many windows label each pixel along an axis: float32 (length,), parameters as in `window_runs`."""
    count = np.zeros(length + 2 * PADDING, np.float32)
    for start in chain(*window_runs(length, stride)):
        count[start + MARGIN : start + MARGIN + TARGET] += 1
    return count[PADDING:-PADDING]


def gpu_block(memory: int, stride: int, itemsize: int) -> tuple[int, int]:
    """How much of an image is handled at once on a GPU.

    Every block, and every batch of windows in it, costs some hundreds of commands, whatever its size. Blocks
    get three eighths of the memory and batches one eighth; the rest is for weights and what libraries keep.
    It is the memory there is that counts, not what is free just now, so that sums are added in the same
    order every time.

    Parameters
    ----------
    memory : int
        Bytes of the device.
    stride : int
        Pixels from one window to the next.
    itemsize : int
        Bytes of a value: 2 in bfloat16.

    Returns
    -------
    side : int
        A block holds at most side x side windows.
    batch : int
        Windows at a time in corners and dense layers.

    Examples
    --------
    >>> gpu_block(8 * 2**30, 1, 2), gpu_block(80 * 2**30, 1, 2)
    ((345, 2684), (1024, 26843))
    """
    values = memory / itemsize
    # Counted: values that a window takes in zones and their making, and as one of a batch. PyTorch's pooling
    # counts in 32 bits, which limits a block.
    windows = min(3 / 8 * values / (13_000 * stride + 500 * stride**2), 2**20 / stride)
    batch = min(1 / 8 * values / 200_000, 2**15)
    return max(1, int(windows**0.5)), max(1, int(batch))


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
    team: Team = ALONE,
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
        result stays the same up to rounding. The default is 48, on a GPU by its memory. Where a block
        does not fit the memory, blocks of half the windows are tried, and so on; the first time there is
        a warning.
    description : str, optional
        Label of a progress bar; without it none is drawn.
    team : Team
        Processes that share the blocks; each returns the map, which is that of one process up to rounding.

    Returns
    -------
    ndarray of float32 (H, W)
        Values from 0 to 1; `brute_force_map` gives the same up to rounding.

    Raises
    ------
    UserError
        The image is not two-dimensional, is empty or holds NaN or infinity; the stride leaves gaps; or
        not even one window fits the memory.
    """
    device = next(network.parameters()).device
    padded = _pad(image, device)
    dtype = getattr(torch, choose_precision(precision, device))
    side, batch = BLOCK_SIDE, BATCH
    if device.type != "cpu":
        memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else MEMORY
        side, batch = gpu_block(memory, stride, dtype.itemsize)
    network = _SharingNetwork(network, dtype, batch)
    blocks = list(product(*(window_runs(length, stride) for length in image.shape)))
    limit = (block_side or side) ** 2
    if team.size > 1:
        share = -(-sum(len(rows) * len(columns) for rows, columns in blocks) // team.size)
        blocks = _cut(blocks, min(limit, share))[team.rank :: team.size]
    total = torch.zeros_like(padded)
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
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if windows == 1:
                    raise UserError(
                        f"{device} has too little memory for a single window; close other programs on it"
                        + ("" if device.type == "cpu" else ", or use --device cpu")
                    ) from error
                if not warned:
                    warnings.warn(
                        f"{device} is short of memory: smaller blocks, a little slower", stacklevel=2
                    )
                warned, limit = True, windows // 2
                blocks.append((rows, columns))
                continue
            _add_windows(total, probabilities, rows, columns)
            bar.update(windows)
    team.add_up(total)
    counts = (windows_per_pixel(length, stride) for length in image.shape)
    return _crop(total).cpu().numpy() / np.outer(*counts)


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
        half = len(rows) // 2
        return [(rows[half:], columns), (rows[:half], columns)]
    half = len(columns) // 2
    return [(rows, columns[half:]), (rows, columns[:half])]


def _cut(blocks: list[tuple[range, range]], limit: int) -> list[tuple[range, range]]:
    """Blocks of at most `limit` windows, cut from these."""
    cut, rest = [], [*blocks]
    while rest:
        rows, columns = rest.pop()
        if len(rows) * len(columns) > limit:
            rest += _halves(rows, columns)
        else:
            cut.append((rows, columns))
    return cut


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

    def __init__(self, network: NeuronNet, dtype: torch.dtype, batch: int) -> None:
        multiple = MAPS_MULTIPLE.get(network.dense.weight.device.type, 1)
        self.before_pool, self.after_pool = (
            [_weights(layer, multiple, dtype) for layer in layers]
            for layers in (
                (network.conv1, network.conv2, network.conv3),
                (network.conv4, network.conv5, network.conv6),
            )
        )
        kind = _TiedLayers if isinstance(network, TiedNet) else _DenseLayers
        self.classifier = kind(network, multiple, dtype)
        self.dtype, self.batch = dtype, batch

    def probabilities(self, padded: Tensor, rows: range, columns: range) -> Tensor:
        """Probabilities (rows, columns, 20, 20) for the windows of a block, float32."""
        seen = padded[rows[0] : rows[-1] + WINDOW, columns[0] : columns[-1] + WINDOW].to(self.dtype)
        zones = [Zones.of_image(seen, rows, columns, self.classifier.beyond)]
        for weights in self.before_pool:
            zones.append(zones[-1].after_convolution(weights))
        zones.append(zones[-1].after_pooling())
        for weights in self.after_pool:
            zones.append(zones[-1].after_convolution(weights))
        shared = self.classifier.shared(zones[-1])
        probabilities = padded.new_empty(len(rows), len(columns), TARGET, TARGET)
        step = min(max(1, self.batch // len(columns)), len(rows))
        for first in range(0, len(rows), step):
            some = slice(first, min(first + step, len(rows)))
            part = [z.of_window_rows(some) for z in zones]
            logits = self.classifier.logits(part[-1], self._corners(part), shared.of_window_rows(some))
            probabilities[some] = torch.sigmoid(logits.float()).view(-1, len(columns), TARGET, TARGET)
        return probabilities

    def _corners(self, zones: list[Zones]) -> Tensor:
        """The last layer's corners (2, 2, rows, columns, 5, 5, maps), from the zones of all layers."""
        pool = len(self.before_pool)
        corners = None
        for before, weights in zip(zones[:pool], self.before_pool, strict=True):
            corners = before.corners_after_convolution(corners, weights)
        corners = zones[pool].corners_after_pooling(corners)
        for before, weights in zip(zones[pool + 1 : -1], self.after_pool, strict=True):
            corners = before.corners_after_convolution(corners, weights)
        return corners


class _DenseLayers:
    """The dense layers of any network, run on the features of each window."""

    beyond = 0

    def __init__(self, network: NeuronNet, multiple: int, dtype: torch.dtype) -> None:
        # The network lists features map by map; here they come cell by cell.
        maps, cells = network.conv6.out_channels, WINDOW // 2
        dense = network.dense.weight.detach().to(dtype).view(-1, maps, cells, cells)
        dense = functional.pad(dense, (0, 0, 0, 0, 0, -maps % multiple))
        self.dense = dense.permute(0, 2, 3, 1).flatten(1), network.dense.bias.detach().to(dtype)
        self.output = network.output.weight.detach().to(dtype), network.output.bias.detach().to(dtype)

    def shared(self, features: Zones) -> Zones:
        """What windows share: nothing but their features."""
        return features

    def logits(self, features: Zones, corners: Tensor, _: Zones) -> Tensor:
        """Logits (windows, 400) of windows, from the zones of their features and the corners of these."""
        cells = range(features.cells)
        windows = corners.new_empty(*corners.shape[2:4], len(cells), len(cells), corners.shape[-1])
        features.gather_cells(corners, cells, cells, windows)
        hidden = functional.linear(windows.flatten(0, 1).flatten(1), *self.dense).tanh_()
        return functional.linear(hidden, *self.output)


class _TiedLayers:
    """Dense layers that are tied: windows share the sums of their units, too.

    A unit's sum over the 11 x 11 values of each feature map is a convolution's, of what the features would be
    if windows did not end: the same for all. To it is added what the features near a window's end differ by:
    in rows for each window row, in columns for each window column, and in corners for each window. Of the 10
    squares along an axis the first five see cells of the low border, the others of the high one.
    """

    beyond = WINDOW // 4  #: pixels from the interior of the features to where a window ends

    def __init__(self, network: TiedNet, multiple: int, dtype: torch.dtype) -> None:
        dense = network.dense.weight.detach().to(dtype)
        dense = functional.pad(dense, (0, 0, 0, 0, 0, -dense.shape[1] % multiple))
        self.interior = dense, network.dense.bias.detach().to(dtype)
        self.in_rows = _at_borders(dense, 2).permute(0, 3, 1, 2, 5, 4).flatten(1, 2)
        self.in_columns = _at_borders(dense, 3).permute(0, 4, 1, 2, 3, 5).flatten(1, 2)
        corners = _at_borders(_at_borders(dense, 2), 4).permute(1, 0, 4, 5, 2, 6, 7, 3)
        self.in_corners = corners.flatten(5).flatten(2, 4)
        weight, bias = network.output_written_out()
        # There unit by unit, here square by square.
        weight = weight.unflatten(1, (-1, SQUARES, SQUARES)).permute(0, 2, 3, 1).flatten(1)
        self.output = weight.to(dtype), bias.to(dtype)

    def shared(self, features: Zones) -> Zones:
        """Sums of the units of squares: the interior's, and in the strips what is added where windows end."""
        spacing, border = features.spacing, features.border
        row_strips, column_strips = [], []
        for side, cells in enumerate(features.beside_interior()):
            rows = features.row_strips[side] - features._by_window_row(features.interior, 0, cells)
            sums = functional.conv2d(_maps_first(rows), self.in_rows[side], dilation=(1, spacing))
            row_strips.append(sums.unflatten(1, (border, -1))[..., 0, :].movedim(2, 3))
            columns = features._by_window_column(features.interior, 1, cells).transpose(0, 1)
            columns = features.column_strips[side] - columns
            sums = functional.conv2d(_maps_first(columns), self.in_columns[side], dilation=(spacing, 1))
            column_strips.append(sums.unflatten(1, (border, -1))[..., 0].permute(0, 3, 1, 2))
        interior = functional.conv2d(_maps_first(features.interior), *self.interior, dilation=spacing)
        return replace(
            features,
            interior=_maps_last(interior, torch.Size()),
            row_strips=torch.stack(row_strips),
            column_strips=torch.stack(column_strips),
            beyond=0,
        )

    def logits(self, features: Zones, corners: Tensor, shared: Zones) -> Tensor:
        """Logits (windows, 400), from the zones and corners of windows' features and from shared sums."""
        border, every = features.border, slice(None)
        cells, squares = features.beside_interior(), (slice(0, border), slice(border, 2 * border))
        hidden = corners.new_empty(*corners.shape[2:4], SQUARES, SQUARES, shared.interior.shape[-1])
        for i, j in product((LOW, HIGH), repeat=2):
            rows, columns = cells[i], cells[j]
            # In a corner both strips have been added, as if they went on there.
            differences = corners[i, j] - features.of_row_strips(i, every, columns)
            differences -= features.of_column_strips(j, rows, every) - features.of_interior(rows, columns)
            sums = functional.linear(differences.flatten(0, 1).flatten(1), self.in_corners[i, j])
            rows, columns = squares[i], squares[j]
            part = hidden[:, :, rows, columns]
            part.copy_(sums.view(part.shape))
            part += shared.of_interior(rows, columns)
            part += shared.of_row_strips(i, every, columns)
            part += shared.of_column_strips(j, rows, every)
        return functional.linear(hidden.tanh_().flatten(0, 1).flatten(1), *self.output)


def _at_borders(weight: Tensor, axis: int) -> Tensor:
    """Of a unit's weights along an axis, those of the cells of a window's low and of its high border.

    (..., 11, ...) becomes (2, ..., 5 squares, ..., 5 cells), the squares in the axis, the cells at the end.
    """
    border = SQUARES // 2
    around = [0, 0] * (weight.ndim - 1 - axis) + [border - 1, border - 1]
    every = functional.pad(weight, around).unfold(axis, border, 1).flip(axis)
    return torch.stack(
        [every.narrow(axis, every.shape[axis] - border, border), every.narrow(axis, 0, border)]
    )


@dataclass(frozen=True)
class Zones:
    """One layer's features that the windows of a block share: all but the corners.

    The zones of one window; a border is `border` cells wide, and outside the window all is zero::

                       low         interior         high
                     +--------+------------------+--------+
        low border   | corner |    row strip     | corner |
                     +--------+------------------+--------+
                     |        |                  |        |
        interior     | column |     interior     | column |
                     | strip  |                  | strip  |
                     |        |                  |        |
                     +--------+------------------+--------+
        high border  | corner |    row strip     | corner |
                     +--------+------------------+--------+

    Maps are the last axis everywhere.

    Attributes
    ----------
    interior : Tensor (H, W, maps)
        Begins with the first interior cell of the block's first window, or `beyond` before it.
    row_strips : Tensor (2, rows, border, W, maps)
        Low and high border cells of each window row, in the columns of `interior`.
    column_strips : Tensor (2, columns, H, border, maps)
        Low and high border cells of each window column, in the rows of `interior`.
    rows, columns : range
        First pixels of the windows.
    beyond : int
        Pixels that `interior` and the length of strips go on beyond the interior of the outermost windows.
    cells : int
        Cells of a window along an axis.
    spacing : int
        Pixels from one cell of a window to the next.
    """

    interior: Tensor
    row_strips: Tensor
    column_strips: Tensor
    rows: range
    columns: range
    beyond: int = 0
    cells: int = WINDOW
    spacing: int = 1

    @classmethod
    def of_image(cls, image: Tensor, rows: range, columns: range, beyond: int = 0) -> Zones:
        """The network's input: one map, and no cell feels a border yet."""
        image = functional.pad(image, [beyond] * 4)
        height, width = image.shape
        row_strips = image.new_empty(2, len(rows), 0, width, 1)
        column_strips = image.new_empty(2, len(columns), height, 0, 1)
        return cls(image[:, :, None], row_strips, column_strips, rows, columns, beyond)

    @property
    def border(self) -> int:
        """Cells, on either side of a window, that feel where it ends."""
        return self.row_strips.shape[2]

    def of_window_rows(self, some: slice) -> Zones:
        """The zones of some of the window rows; nothing is copied."""
        skipped = self.rows[some.start] - self.rows[0]
        return replace(
            self,
            interior=self.interior[skipped:],
            row_strips=self.row_strips[:, some],
            column_strips=self.column_strips[:, :, skipped:],
            rows=self.rows[some],
        )

    def after_convolution(self, weights: Weights) -> Zones:
        """The zones after a 3 x 3 convolution and ELU: borders are one cell wider."""
        row_strips, column_strips = self._gather_strips(*self._convolved_borders())
        return replace(
            self,
            interior=_convolve(weights, self.interior, (self.spacing, self.spacing)),
            row_strips=_convolve(weights, row_strips, (1, self.spacing)),
            column_strips=_convolve(weights, column_strips, (self.spacing, 1)),
        )

    def after_pooling(self) -> Zones:
        """The zones after the 2 x 2 max-pool: cells are 2 px apart."""
        row_strips, column_strips = self._gather_strips(*self._pooled_borders())
        # Three border cells have become two, which begin the interior one pixel later.
        return replace(
            self,
            interior=_pool(self.interior, (1, 1))[1:, 1:],
            row_strips=_pool(row_strips, (2, 1))[:, :, :, 1:],
            column_strips=_pool(column_strips, (1, 2))[:, :, 1:],
            cells=self.cells // 2,
            spacing=2,
        )

    def corners_after_convolution(self, corners: Tensor | None, weights: Weights) -> Tensor:
        """The corners (2, 2, rows, columns, border, border, maps) after it, from those before it."""
        return _convolve(weights, self._gather_corners(corners, *self._convolved_borders()), (1, 1))

    def corners_after_pooling(self, corners: Tensor) -> Tensor:
        """The corners (2, 2, rows, columns, border, border, maps) after it, from those before it."""
        return _pool(self._gather_corners(corners, *self._pooled_borders()), (2, 2))

    def gather_cells(
        self, corners: Tensor | None, row_cells: range, column_cells: range, out: Tensor
    ) -> None:
        """Put cells of every window together, into `out` (rows, columns, row cells, column cells, maps)."""
        for row_zone, to_rows, rows in self._split_by_zone(row_cells):
            for column_zone, to_columns, columns in self._split_by_zone(column_cells):
                to = out[:, :, to_rows, to_columns]
                if OUTSIDE in (row_zone, column_zone):
                    to.zero_()
                    continue
                if row_zone == column_zone == INTERIOR:
                    part = self.of_interior(rows, columns)
                elif column_zone == INTERIOR:
                    part = self.of_row_strips(row_zone, rows, columns)
                elif row_zone == INTERIOR:
                    part = self.of_column_strips(column_zone, rows, columns)
                else:
                    part = corners[row_zone, column_zone, :, :, rows, columns]
                to.copy_(part)

    def beside_interior(self) -> tuple[slice, slice]:
        """The cells of a window's low and high border, counted from its first interior cell."""
        interior = self.cells - 2 * self.border
        return slice(-self.border, 0), slice(interior, interior + self.border)

    def of_interior(self, rows: slice, columns: slice) -> Tensor:
        """View these cells of the interior by window: (rows, columns, row cells, column cells, maps)."""
        by_row = self._by_window_row(self.interior, 0, rows)
        return self._by_window_column(by_row, 2, columns).transpose(1, 2)

    def of_row_strips(self, side: int, rows: slice, columns: slice) -> Tensor:
        """The same of the row strips: these of their rows, and these cells of the interior's columns."""
        return self._by_window_column(self.row_strips[side, :, rows], 2, columns).transpose(1, 2)

    def of_column_strips(self, side: int, rows: slice, columns: slice) -> Tensor:
        """The same of the column strips: these cells of the interior's rows, and these of their columns."""
        return self._by_window_row(self.column_strips[side, :, :, columns], 1, rows).transpose(0, 1)

    def _convolved_borders(self) -> tuple[range, range]:
        """The cells of a window that a convolution makes into its low and its high border: -1 is outside."""
        return range(-1, self.border + 2), range(self.cells - self.border - 2, self.cells + 1)

    def _pooled_borders(self) -> tuple[range, range]:
        """The cells of a window that pooling makes into its low and its high border."""
        return range(self.border + 1), range(self.cells - self.border - 1, self.cells)

    def _gather_strips(self, low: range, high: range) -> tuple[Tensor, Tensor]:
        """Strips like `row_strips` and `column_strips`, but of these cells."""
        height, width, maps = self.interior.shape
        row_strips = self.interior.new_empty(2, len(self.rows), len(low), width, maps)
        column_strips = self.interior.new_empty(2, len(self.columns), height, len(low), maps)
        for side, cells in ((LOW, low), (HIGH, high)):
            for zone, run, source in self._split_by_zone(cells):
                to_rows, to_columns = row_strips[side, :, run], column_strips[side, :, :, run]
                if zone == OUTSIDE:
                    to_rows.zero_()
                    to_columns.zero_()
                elif zone == INTERIOR:
                    to_rows.copy_(self._by_window_row(self.interior, 0, source))
                    to_columns.copy_(self._by_window_column(self.interior, 1, source).transpose(0, 1))
                else:
                    to_rows.copy_(self.row_strips[zone, :, source])
                    to_columns.copy_(self.column_strips[zone, :, :, source])
        return row_strips, column_strips

    def _gather_corners(self, corners: Tensor | None, low: range, high: range) -> Tensor:
        """Corners (2, 2, rows, columns, cells, cells, maps) of these cells."""
        shape = (2, 2, len(self.rows), len(self.columns), len(low), len(low), self.interior.shape[-1])
        gathered = self.interior.new_empty(shape)
        for (i, row_cells), (j, column_cells) in product(((LOW, low), (HIGH, high)), repeat=2):
            self.gather_cells(corners, row_cells, column_cells, gathered[i, j])
        return gathered

    def _split_by_zone(self, cells: range) -> Iterator[tuple[int, slice, slice]]:
        """Split a run of a window's cells by zone.

        Yields the zone, its place in the run, and that place counted from the first cell of the zone.
        """
        low, high, end = self.border, self.cells - self.border, self.cells
        for zone, start, stop in (
            (OUTSIDE, -1, 0),
            (LOW, 0, low),
            (INTERIOR, low, high),
            (HIGH, high, end),
            (OUTSIDE, end, end + 1),
        ):
            first, last = max(start, cells.start), min(stop, cells.stop)
            if first < last:
                run = slice(first - cells.start, last - cells.start)
                yield zone, run, slice(first - start, last - start)

    def _by_window_row(self, x: Tensor, axis: int, cells: slice) -> Tensor:
        """View an axis of pixel rows as two: window rows, and interior cells of each."""
        return _by_window(x, axis, self.rows, cells, self.spacing, self.beyond)

    def _by_window_column(self, x: Tensor, axis: int, cells: slice) -> Tensor:
        """View an axis of pixel columns as two: window columns, and interior cells of each."""
        return _by_window(x, axis, self.columns, cells, self.spacing, self.beyond)


def _by_window(x: Tensor, axis: int, starts: range, cells: slice, spacing: int, beyond: int) -> Tensor:
    """View an axis of pixels as two, windows and cells; nothing is copied."""
    first, extent = beyond + cells.start * spacing, (cells.stop - cells.start - 1) * spacing + 1
    x = x.narrow(axis, first, starts[-1] - starts[0] + extent)
    return x.unfold(axis, extent, starts.step)[..., ::spacing].movedim(-1, axis + 1)


def _weights(layer: nn.Conv2d, multiple: int, dtype: torch.dtype) -> Weights:
    """A layer's weights and biases, see `network.with_empty_maps`, in a dtype and the order of maps last."""
    weight, bias = with_empty_maps(layer.weight.detach(), layer.bias.detach(), multiple)
    return weight.to(dtype=dtype, memory_format=torch.channels_last), bias.to(dtype)


def _convolve(weights: Weights, x: Tensor, dilation: tuple[int, int]) -> Tensor:
    """Convolution without padding and ELU on (..., rows, columns, maps).

    Along an axis with the cells of all windows, one a pixel, dilation is the spacing of a window's cells.
    """
    y = functional.conv2d(_maps_first(x), *weights, dilation=dilation)
    return _maps_last(functional.elu_(y), x.shape[:-3])


def _pool(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """2 x 2 max-pool of (..., rows, columns, maps); stride 1 along an axis with all windows' cells."""
    return _maps_last(functional.max_pool2d(_maps_first(x), 2, stride=stride), x.shape[:-3])


def _maps_first(x: Tensor) -> Tensor:
    """View (..., rows, columns, maps) as (N, maps, rows, columns), as PyTorch's layers want it."""
    return x.reshape(-1, *x.shape[-3:]).permute(0, 3, 1, 2)


def _maps_last(y: Tensor, leading: torch.Size) -> Tensor:
    """(N, maps, rows, columns) to (*leading, rows, columns, maps)."""
    y = y.permute(0, 2, 3, 1).contiguous()
    return y.view(*leading, *y.shape[1:])
