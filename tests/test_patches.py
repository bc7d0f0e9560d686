from __future__ import annotations

import numpy as np
import pytest
import torch

from neurodetect.files import UserError
from neurodetect.patches import PatchSampler

SHAPES = [(23, 61), (50, 34), (7, 9)]


@pytest.fixture(scope="module")
def labelled():
    """Images in which every pixel of all has another value, from 1, and random masks."""
    rng = np.random.default_rng(0)
    total = sum(h * w for h, w in SHAPES)
    values = np.split(
        rng.permutation(total).astype(np.float32) + 1, np.cumsum([h * w for h, w in SHAPES])[:-1]
    )
    images = [value.reshape(shape) for value, shape in zip(values, SHAPES, strict=True)]
    masks = [
        (rng.random(shape) < share).astype(np.uint8)
        for shape, share in zip(SHAPES, (0.2, 0.5, 0.8), strict=True)
    ]
    return images, masks


def reading(window, images, masks, known=True):
    """Where a window was cut: (image, row, column, flipped rows, flipped columns) and its true target.

    By the definition, tried in all four orientations: rows r - 20 … r + 19 about the centre, the
    target in rows r - 10 … r + 9.
    """
    found = []
    for flips in [(False, False), (False, True), (True, False), (True, True)]:
        axes = [axis for axis, flip in enumerate(flips) if flip]
        upright = np.flip(window, axes)
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            for r, c in np.argwhere(image == upright[20, 20]):
                cut = np.pad(image, 20)[r : r + 40, c : c + 40]
                if np.array_equal(cut, upright):
                    target = np.pad(mask, 20)[r + 10 : r + 30, c + 10 : c + 30]
                    found.append(((number, r, c, *flips), np.flip(target, axes)))
    if not known and not found:
        return None
    assert len(found) == 1
    return found[0]


def test_windows_and_targets_are_aligned_flipped_together_and_balanced(labelled):
    images, masks = labelled
    windows, targets = PatchSampler(images, masks, seed=3).sample(400)
    assert windows.shape == (400, 1, 40, 40) and windows.dtype == torch.float32
    assert targets.shape == (400, 400) and targets.dtype == torch.float32
    neurons, flips, sources = 0, np.zeros(2), np.zeros(3)
    for window, target in zip(windows.numpy(), targets.numpy(), strict=True):
        (number, r, c, flip_rows, flip_columns), expected = reading(window[0], images, masks)
        assert np.array_equal(target.reshape(20, 20), expected)
        neurons += masks[number][r, c]
        flips += flip_rows, flip_columns
        sources[number] += 1
    assert neurons == 200
    # 400 coin flips: within five standard deviations of a half.
    assert np.all(np.abs(flips - 200) < 5 * np.sqrt(400 * 0.25))
    # Uniform over pixels, not over images: half by the share of neuron pixels, half by the rest.
    share = sum(
        np.array(counts) / sum(counts) / 2
        for counts in ([m.sum() for m in masks], [(1 - m.astype(int)).sum() for m in masks])
    )
    assert np.all(np.abs(sources - 400 * share) < 5 * np.sqrt(400 * share * (1 - share)))


def test_every_pixel_is_drawn_the_border_too_and_never_padding():
    image = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    mask = np.zeros((3, 4))
    mask[0, 0] = mask[2, 3] = 1
    windows, _ = PatchSampler([image], [mask], seed=0).sample(2000)
    seen = {}
    for number, window in enumerate(windows[:, 0].numpy()):
        # A window about a real pixel of so small an image holds the whole image; where says its centre.
        rows, columns = np.nonzero(window)
        assert len(rows) == 12
        upright = window[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        flip_rows, flip_columns = upright[0, 0] > upright[2, 0], upright[0, 0] > upright[0, 3]
        row = (19 if flip_rows else 20) - rows.min()
        column = (19 if flip_columns else 20) - columns.min()
        assert 0 <= row < 3 and 0 <= column < 4
        seen.setdefault(upright[row, column], []).append(number)
    assert set(seen) == set(range(1, 13))
    assert {value for value, numbers in seen.items() if min(numbers) < 1000} == {1, 12}


def test_a_pixel_that_is_not_valid_is_no_centre(labelled):
    images, masks = labelled
    rng = np.random.default_rng(1)
    valid = [rng.random(images[0].shape) < 0.5, None, np.zeros(images[2].shape, bool)]
    windows, _ = PatchSampler(images, masks, seed=3, valid=valid).sample(200)
    centres = [reading(window[0], images, masks)[0][:3] for window in windows.numpy()]
    assert {number for number, _, _ in centres} == {0, 1}
    assert all(valid[0][r, c] for number, r, c in centres if number == 0)
    assert sum(masks[number][r, c] for number, r, c in centres) == 100
    drawn = (PatchSampler(images, masks, seed=3, valid=known) for known in (None, [None] * 3))
    assert np.array_equal(*(sampler.sample(20)[0] for sampler in drawn))


def test_transposed_windows_come_in_eight_orientations_each_with_its_target(labelled):
    images, masks = labelled
    windows, targets = PatchSampler(images, masks, seed=3, transpose=True).sample(200)
    counts = {}
    for window, target in zip(windows[:, 0].numpy(), targets.view(-1, 20, 20).numpy(), strict=True):
        for transposed in (False, True):
            upright, goal = (window.T, target.T) if transposed else (window, target)
            if place := reading(upright, images, masks, known=False):
                assert np.array_equal(goal, place[1])
                key = (*place[0][3:], transposed)
                counts[key] = counts.get(key, 0) + 1
                break
        else:
            pytest.fail("a window is none of the images'")
    # Eight orientations of 25 each: within five standard deviations.
    assert len(counts) == 8 and all(abs(n - 25) < 5 * np.sqrt(200 / 8 * 7 / 8) for n in counts.values())


def test_the_seed_decides_what_is_drawn(labelled):
    first, again, other = (PatchSampler(*labelled, seed=seed).sample(20) for seed in (5, 5, 6))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_an_odd_batch_has_its_odd_window_on_background():
    image, mask = np.arange(1, 5, dtype=np.float32).reshape(1, 4), np.array([[0, 0, 0, 1]])
    _, targets = PatchSampler([image], [mask], seed=0).sample(5)
    assert targets.shape == (5, 400)


def test_what_cannot_be_sampled_is_refused():
    image = np.ones((5, 6), np.float32)
    for masks in ([np.zeros((5, 6))], [np.ones((5, 6))]):
        with pytest.raises(UserError, match="training needs"):
            PatchSampler([image], masks)
    with pytest.raises(UserError):
        PatchSampler([], [])
    with pytest.raises(ValueError, match="mask"):
        PatchSampler([image], [np.zeros((6, 5))])


@pytest.mark.cuda
def test_on_a_gpu_windows_are_drawn_there(labelled):
    windows, targets = PatchSampler(*labelled, device="cuda", seed=3).sample(40)
    assert windows.is_cuda and targets.is_cuda
    for window, target in zip(windows.cpu().numpy(), targets.cpu().numpy(), strict=True):
        assert np.array_equal(target.reshape(20, 20), reading(window[0], *labelled)[1])
