"""The balanced sampler: random 40 x 40 windows, half of them centred on a neuron's pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from neurodetect.files import UserError
from neurodetect.network import MARGIN, TARGET, WINDOW

PADDING = WINDOW // 2  #: pixels of zeros around an image, so that every pixel can be a window's centre
INDEX = np.int32  #: of pixels in all images together; 2**31 of them would take 10 GB


class PatchSampler:
    """Draws windows and their targets from labelled images, on the training device.

    All padded images lie one behind the other in one flat tensor; a window is a gather of 1600 of
    its entries. So images may differ in size, and no Python loop runs over windows.

    Parameters
    ----------
    images : sequence of (H, W) arrays
        Standardized images (see `projection.standardize`).
    masks : sequence of (H, W) arrays
        1 (or any positive value) where a neuron is; the shapes of the images.
    device : torch.device or str
        Where windows are drawn and stay.
    seed : int
        Same seed, same machine and device: same windows.
    transpose : bool
        Rows and columns of a window change places with probability 1/2 too; with the flips that makes
        all eight orientations of a square.
    valid : sequence of bool (H, W) arrays or None, optional
        Of each image, where windows may have their centres; None is everywhere.

    Raises
    ------
    ValueError
        An image and its mask differ in shape.
    UserError
        There is no neuron pixel, or no other pixel, in any of the images.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        device: torch.device | str = "cpu",
        seed: int = 0,
        transpose: bool = False,
        valid: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        flat_images, flat_masks, neuron, background, starts, widths = [[] for _ in range(6)]
        start = 0
        everywhere = [None] * len(images)
        for image, mask, centers in zip(images, masks, valid or everywhere, strict=True):
            if np.ndim(image) != 2 or np.shape(image) != np.shape(mask):
                raise ValueError(f"an image of {np.shape(image)} has a mask of {np.shape(mask)}")
            padded_image = np.pad(np.asarray(image, np.float32), PADDING)
            padded_mask = np.pad(np.asarray(mask) > 0, PADDING)
            real = np.pad(np.ones(np.shape(image), bool) if centers is None else centers, PADDING)
            neuron.append((start + np.flatnonzero(real & padded_mask)).astype(INDEX))
            background.append((start + np.flatnonzero(real & ~padded_mask)).astype(INDEX))
            flat_images.append(padded_image.ravel())
            flat_masks.append(padded_mask.ravel())
            starts.append(start)
            widths.append(padded_image.shape[1])
            start += padded_image.size
        if start > np.iinfo(INDEX).max:
            raise UserError(f"{len(starts)} labelled recordings are too many to train on at once; take fewer")

        def gather(arrays: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(arrays)).to(device)

        if not starts or not sum(map(len, neuron)) or not sum(map(len, background)):
            raise UserError(
                "the labelled recordings have no pixel that is neuron, or none that is not; training needs "
                "both: label neurons in at least one recording"
            )
        self.device = torch.device(device)
        self._images, self._masks = gather(flat_images), gather(flat_masks)
        self._neuron, self._background = gather(neuron), gather(background)
        self._starts = torch.tensor(starts, device=device)
        self._widths = torch.tensor(widths, device=device)
        self._transpose = transpose
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw windows: half centred on neuron pixels, half on others, each turned at random.

        Window rows are r - 20 … r + 19 about the centre's row r, columns alike; the target is the
        mask in the central 20 x 20 pixels. Up-down and left-right flips come with probability 1/2 each.

        Parameters
        ----------
        count : int
            Number of windows; of an odd number the one left over is centred on background.

        Returns
        -------
        windows : float32 (count, 1, 40, 40)
        targets : float32 (count, 400)
            1 where a neuron is, row by row.

        Examples
        --------
        >>> image, mask = np.eye(60, 50), np.eye(60, 50) > 0
        >>> windows, targets = PatchSampler([image], [mask], seed=1).sample(10)
        >>> tuple(windows.shape), tuple(targets.shape)
        ((10, 1, 40, 40), (10, 400))
        """
        centers = torch.cat(
            [self._draw(self._neuron, count // 2), self._draw(self._background, count - count // 2)]
        )
        flips = self._coins(count), self._coins(count)
        pixels = self._pixels(centers, *flips, self._coins(count) if self._transpose else None)
        central = pixels[:, MARGIN : MARGIN + TARGET, MARGIN : MARGIN + TARGET]
        return self._images[pixels].unsqueeze(1), self._masks[central].flatten(1).float()

    def state(self) -> Tensor:
        """Where the random numbers are: a uint8 tensor on the CPU, for `restore`."""
        return self._generator.get_state()

    def restore(self, state: Tensor) -> None:
        """Go on drawing as after the `state` was taken, from a sampler of the same images and device."""
        self._generator.set_state(state)

    def _draw(self, candidates: Tensor, count: int) -> Tensor:
        chosen = torch.randint(len(candidates), (count,), device=self.device, generator=self._generator)
        return candidates[chosen].long()

    def _coins(self, count: int) -> Tensor:
        return torch.randint(2, (count,), device=self.device, generator=self._generator).bool()

    def _pixels(
        self, centers: Tensor, flip_rows: Tensor, flip_columns: Tensor, transpose: Tensor | None
    ) -> Tensor:
        """Where in the flat images the windows about these centres are: (count, 40, 40)."""
        width = self._widths[torch.bucketize(centers, self._starts, right=True) - 1]
        corner = centers - PADDING * width - PADDING
        offsets = torch.arange(WINDOW, device=self.device)
        # A flipped window reads its rows from the last to the first; its central square is flipped with it.
        rows = torch.where(flip_rows[:, None], WINDOW - 1 - offsets, offsets)
        columns = torch.where(flip_columns[:, None], WINDOW - 1 - offsets, offsets)
        pixels = corner[:, None, None] + rows[:, :, None] * width[:, None, None] + columns[:, None, :]
        if transpose is not None:
            pixels = torch.where(transpose[:, None, None], pixels.transpose(1, 2), pixels)
        return pixels
