from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurodetect.projection import (
    BACKGROUND,
    clip_bright,
    fill_missing,
    mean_projection,
    network_input,
    normalize_locally,
    standardize,
    subtract_background,
)


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32]),
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=6),
        elements=st.integers(0, 255),
    )
)
def test_mean_against_numpy_on_the_whole_stack(stack):
    expected = stack.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(mean_projection(stack), expected, rtol=1e-12)
    assert mean_projection(iter(stack)).dtype == np.float64


def test_sums_of_integers_are_exact():
    # In float32 the sum would stop growing at 2 ** 24; in int32 it would overflow.
    frames = (np.full((2, 3), 2**32 - 1, np.uint32) for _ in range(1000))
    assert np.all(mean_projection(frames) == 2**32 - 1)
    assert np.all(mean_projection(np.full((7, 2, 3), -(2**31), np.int32)) == -(2**31))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize("extreme", ["min", "max"])
def test_long_movies_of_short_numbers_do_not_overflow(dtype, extreme):
    # Their sums are kept in 32 bits for 65,536 frames at a time.
    value = getattr(np.iinfo(dtype), extreme)
    frame = np.full((1, 2), value, dtype)
    for count in (2**16 - 1, 2**16, 2**16 + 1, 2**17 + 3):
        assert np.all(mean_projection(frame for _ in range(count)) == value)


@given(st.data())
def test_short_sums_are_moved_on_exactly(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurodetect.averaging.FRAMES_IN_32_BITS", 3)
        stack = data.draw(hnp.arrays(np.int16, (data.draw(st.integers(1, 10)), 2, 3)))
        assert np.array_equal(mean_projection(stack), stack.sum(axis=0, dtype=np.int64) / len(stack))


def test_no_frames_and_frames_of_two_kinds():
    with pytest.raises(ValueError, match="no frames"):
        mean_projection([])
    with pytest.raises(ValueError, match="frame 1"):
        mean_projection([np.zeros((2, 3)), np.zeros((3, 2))])
    with pytest.raises(ValueError, match="frame 1"):
        mean_projection([np.zeros((2, 3), np.uint16), np.zeros((2, 3), np.uint32)])


def test_nan_is_no_value_and_a_pixel_without_any_stays_nan():
    frames = np.array([[[1, np.nan, np.nan]], [[3, 5, np.nan]], [[5, 6, np.nan]]], np.float32)
    assert np.array_equal(mean_projection(frames), [[3, 5.5, np.nan]], equal_nan=True)


# Clipping and scaling


def test_clipping_by_hand():
    image = np.zeros((10, 10))
    image[3, 7] = 100.0
    limit = 1 + 3 * np.sqrt(99 * 1 + 99**2) / 10  # mean 1, variance (99 + 99 ** 2) / 100
    clipped = clip_bright(image)
    assert clipped[3, 7] == pytest.approx(limit) and clipped.sum() == clipped[3, 7]
    assert np.array_equal(clip_bright(image.astype(int)), clipped)
    assert clip_bright(image.astype(np.float32)).dtype == np.float32


@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(-1e6, 1e6, width=32)))
def test_clipping_cuts_above_and_leaves_the_rest(image):
    limit = image.mean(dtype=np.float64) + 3 * image.std(dtype=np.float64)
    np.testing.assert_allclose(clip_bright(image), np.where(image > limit, limit, image), 1e-6, 1e-30)


def test_standardizing():
    rng = np.random.default_rng(0)
    image = standardize(rng.normal(1e6, 3, (40, 50)))
    assert image.dtype == np.float32
    assert abs(image.mean(dtype=np.float64)) < 1e-6 and abs(image.std(dtype=np.float64) - 1) < 1e-6
    with pytest.raises(ValueError, match="constant"):
        standardize(np.full((4, 5), 0.1))
    with pytest.raises(ValueError, match="NaN"):
        standardize(np.array([[0, np.nan]]))


# Missing pixels: what there is becomes what it would without them


PRESENT = np.s_[3:, :-4]


@pytest.fixture
def part():
    """An image of which a border is missing: NaN there, and which pixels are valid."""
    image, valid = np.full((40, 33), np.nan), np.zeros((40, 33), bool)
    image[PRESENT] = np.random.default_rng(3).gamma(1, 100, image[PRESENT].shape)
    valid[PRESENT] = True
    return image, valid


def test_missing_pixels_do_not_count_in_clipping(part):
    clipped = clip_bright(part[0])
    assert (
        np.array_equal(clipped[PRESENT], clip_bright(part[0][PRESENT]))
        and clipped[PRESENT].max() < part[0][PRESENT].max()
    )
    assert np.array_equal(np.isnan(clipped), ~part[1])
    assert np.isnan(clip_bright(np.full((2, 2), np.nan))).all()


def test_missing_pixels_get_the_median(part):
    filled, valid = fill_missing(part[0])
    assert np.array_equal(valid, part[1]) and np.array_equal(filled[valid], part[0][valid])
    assert np.unique(filled[~valid]).tolist() == [np.median(part[0][PRESENT])]
    assert fill_missing(filled)[1] is None
    nothing, valid = fill_missing(np.full((2, 2), np.nan))
    assert not valid.any() and np.isfinite(nothing).all()


@pytest.mark.parametrize("background", ["keep", "subtract", "normalize"])
def test_missing_pixels_do_not_count_in_scaling(part, background):
    filled, valid = fill_missing(part[0])
    seen = network_input(filled, background, valid)
    np.testing.assert_allclose(seen[PRESENT], network_input(filled[PRESENT], background), atol=1e-5)
    assert np.isfinite(seen).all() and np.abs(seen[~valid]).max() < 1
    with pytest.raises(ValueError, match="constant"):
        standardize(filled, ~valid)


def test_far_from_all_valid_pixels_there_is_no_background():
    image = np.random.default_rng(0).random((10, 400))
    valid = np.zeros(image.shape, bool)
    valid[:, :20] = True
    less = subtract_background(image, valid)
    assert np.isfinite(less).all() and not less[~valid].any()


# Background


def test_a_flat_image_less_its_background_is_zero_to_the_border():
    assert np.abs(subtract_background(np.full((30, 50), 7.0))).max() < 1e-12


def test_the_background_is_the_gaussian_mean_within_the_image():
    image = np.random.default_rng(0).random((40, 33))
    rows, columns = np.indices(image.shape)
    for r, c in ((0, 0), (20, 5), (39, 32)):
        weights = np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / (2 * BACKGROUND**2))
        assert subtract_background(image)[r, c] == pytest.approx(
            image[r, c] - np.average(image, weights=weights), abs=1e-4
        )


def test_uneven_light_matters_less_without_the_background():
    rng = np.random.default_rng(1)
    image = rng.random((200, 220))
    lit = image + np.linspace(0, 10, 220)
    inner = (slice(50, -50),) * 2  # within 50 px of the border the surround is one-sided
    kept, flat = (
        np.corrcoef(f(image)[inner].ravel(), f(lit)[inner].ravel())[0, 1]
        for f in (network_input, subtract_background)
    )
    assert kept < 0.3 and flat > 0.99


def test_contrast_is_alike_everywhere_when_normalized():
    rng = np.random.default_rng(1)
    image = rng.random((200, 220))
    uneven = 1000 + image * np.geomspace(1, 100, 220)
    inner = (slice(50, -50),) * 2
    even, seen = (normalize_locally(i)[inner] for i in (image, uneven))
    assert np.corrcoef(even.ravel(), seen.ravel())[0, 1] > 0.98
    assert np.corrcoef(even.ravel(), subtract_background(uneven)[inner].ravel())[0, 1] < 0.9
    # By the definition, at one pixel.
    rows, columns = np.indices(image.shape)
    weights = np.exp(-((rows - 90) ** 2 + (columns - 70) ** 2) / (2 * BACKGROUND**2))
    squares = np.average(subtract_background(image) ** 2, weights=weights)
    expected = subtract_background(image)[90, 70] / np.sqrt(squares)
    assert normalize_locally(image)[90, 70] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_brightness_and_contrast_of_the_whole_do_not_matter_when_normalized(factor):
    image = np.random.default_rng(2).random((40, 50))
    np.testing.assert_allclose(normalize_locally(5 + factor * image), normalize_locally(image), atol=1e-6)


def test_a_flat_half_is_not_blown_up_to_full_contrast():
    image = np.random.default_rng(3).random((60, 400))
    image[:, 200:] = 1e-6 * image[:, 200:]
    seen = normalize_locally(image)
    assert np.isfinite(seen).all() and seen[:, 350:].std() < 0.01 * seen[:, :50].std()
    with pytest.raises(ValueError, match="constant"):
        network_input(np.full((30, 30), 3.0), "normalize")


def test_scale_standardizes_either_way():
    image = np.random.default_rng(2).random((60, 50)) * 100
    assert np.array_equal(network_input(image), standardize(image))
    assert np.array_equal(network_input(image, "subtract"), standardize(subtract_background(image)))
    assert network_input(image, "subtract").dtype == np.float32
