from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurodetect.projection import (
    BACKGROUND,
    Projection,
    clip_bright,
    describe_unusual,
    fill_missing,
    mean_projection,
    network_input,
    project,
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
        patch.setattr("neurodetect.projection.FRAMES_IN_32_BITS", 3)
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


# Borders


SHAPE = (50, 61)  # so large that frames are looked at in a sample of their pixels


def tiled(movie, rows=(0, 7, 30), columns=(0, 20, 41), times=(0, 5, 64)):
    """What `project` takes as tiles: the movie in parts of several sizes."""

    def parts(starts, end):
        return [slice(*ends) for ends in zip(starts, [*starts[1:], end], strict=True)]

    def tiles():
        for r in parts(rows, movie.shape[1]):
            for c in parts(columns, movie.shape[2]):
                yield (r, c), (movie[t, r, c] for t in parts(times, len(movie)))

    return tiles


def moved(fill, dtype, count=70):
    """A movie with borders of `fill` that differ from frame to frame, and the mean of what is left."""
    rng = np.random.default_rng(0)
    movie = rng.integers(100, 200, (count, *SHAPE)).astype(dtype)
    movie[:, 20, 30:34] = 0  # within the image a 0 is a value
    left = movie.astype(np.float64)
    for frame, kept in zip(movie[2:], left[2:], strict=True):  # two frames have no border
        top, bottom, first, last = rng.integers(0, 7, 4)
        edges = np.ones(SHAPE, bool)
        edges[top : SHAPE[0] - bottom, first : SHAPE[1] - last] = False
        frame[edges], kept[edges] = fill, np.nan
    movie[:, :2], left[:, :2] = fill, np.nan  # in no frame
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
        return movie, np.nanmean(left, axis=0)


@pytest.mark.parametrize(
    ("fill", "dtype"),
    [
        (0, np.uint16),
        (0, np.int16),
        (0, np.uint32),
        (0, np.float32),
        (np.nan, np.float32),
        (np.nan, np.float64),
    ],
)
def test_the_mean_is_over_the_frames_that_have_a_pixel(fill, dtype):
    movie, expected = moved(fill, dtype)
    assert np.isnan(expected[:2]).all() and not np.isnan(expected[2:]).any()
    for projection in (project(movie), project([], tiled(movie))):
        np.testing.assert_allclose(projection.image, expected, rtol=1e-12)
        assert projection[1:] == (70, [], [], [])


def test_few_photons_make_no_border():
    # About one photon in 30 pixels: rows at the edges are often without any.
    movie = np.random.default_rng(1).poisson(1 / 30, (200, *SHAPE)).astype(np.uint8)
    assert (movie[:, 0] == 0).all(axis=1).sum() > 10
    for projection in (project(movie), project([], tiled(movie))):
        assert np.array_equal(projection.image, movie.mean(axis=0))


@given(hnp.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3)))
def test_tiles_and_frames_agree_on_what_a_border_is(movie):
    by_frames, by_tiles = project(movie), project([], tiled(movie, (0, 2), (0, 1), (0, 2)))
    assert np.array_equal(by_frames.image, by_tiles.image, equal_nan=True)
    assert by_frames.left_out == by_tiles.left_out


# Broken frames


def field(count=70, dtype=np.uint16):
    rng = np.random.default_rng(2)
    return (rng.integers(100, 300, SHAPE) + rng.integers(0, 50, (count, *SHAPE))).astype(dtype)


def dark(frame):
    frame[:] = 0


def flat(frame):
    frame[:] = 117


def full(frame):
    frame[:] = 65535


def stripes(frame):
    frame[1::2] = 65535


@pytest.mark.parametrize("spoil", [dark, flat, full, stripes])
def test_broken_frames_are_left_out_of_the_mean(spoil):
    movie = field()
    broken = [3, 5, 6, 64, 69]
    for number in broken:
        spoil(movie[number])
    expected = np.delete(movie, broken, axis=0).mean(axis=0)
    for projection in (project(movie), project([], tiled(movie))):
        assert projection.left_out == broken and not projection.dark and not projection.bright
        np.testing.assert_allclose(projection.image, expected, rtol=1e-12)


def test_empty_frames_of_floats_are_left_out():
    movie = field(dtype=np.float32)
    movie[4], movie[7], movie[9] = np.nan, 0, 117.25
    expected = np.delete(movie.astype(np.float64), [4, 7, 9], axis=0).mean(axis=0)
    for projection in (project(movie), project([], tiled(movie))):
        assert projection.left_out == [4, 7, 9]
        np.testing.assert_allclose(projection.image, expected, rtol=1e-12)


def test_where_most_frames_are_saturated_all_count_but_those_without_a_pixel():
    movie = field()
    movie[10:60, 5:10] = 65535
    movie[0] = 0
    for projection in (project(movie), project([], tiled(movie))):
        assert projection.left_out == [0]
        assert np.array_equal(projection.image, movie[1:].mean(axis=0))


def test_a_movie_that_often_is_a_little_saturated_keeps_its_brightest_frames():
    movie = field(dtype=np.uint8)
    movie[:, :2] = 255  # 4 % of the pixels
    movie[20:30, :4] = 255
    for projection in (project(movie), project([], tiled(movie))):
        assert projection.left_out == []


def test_nothing_but_empty_frames_is_an_image_of_nan():
    for projection in (
        project(np.zeros((3, 4, 5))),
        project([], lambda: [(np.s_[0:4, 0:5], [np.zeros((3, 4, 5))])]),
    ):
        assert np.isnan(projection.image).all() and projection.left_out == [0, 1, 2]
        assert describe_unusual(projection) == []


def test_frames_unlike_the_others_count_and_are_named():
    movie = field()
    movie[8] += 500  # brighter by more than three deviations
    movie[20] = np.random.default_rng(0).integers(90, 100, SHAPE)  # the shutter was closed
    movie[30:32] = movie[30:32] // 10 + 200  # out of focus
    for projection in (project(movie), project([], tiled(movie))):
        assert projection[1:] == (70, [], [20, 30, 31], [8])
        np.testing.assert_allclose(projection.image, movie.mean(axis=0))
    darker, brighter = describe_unusual(projection)
    assert darker.startswith("3 of 70 frames") and ": 21, 31-32;" in darker and "--frames" in darker
    assert "1 of 70 frames much brighter than the others: 9;" in brighter
    assert ": 109;" in describe_unusual(projection, first=101)[1]


def test_borders_make_no_frame_unlike_the_others():
    # Without its border a frame's deviation is a tenth of the others'.
    movie = np.random.default_rng(0).normal(2000, 20, (20, *SHAPE)).astype(np.uint16)
    movie[2:, :10] = 0
    for projection in (project(movie), project([], tiled(movie, times=(0, 5)))):
        assert projection[1:] == (20, [], [], [])


def test_a_long_list_of_frames_is_cut():
    (line,) = describe_unusual(Projection(np.zeros((1, 1)), 99, list(range(0, 98, 2)), [], []))
    assert line.startswith("49 of 99 frames") and line.endswith(": 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, ...")


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


@pytest.mark.parametrize("background", ["keep", "subtract"])
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


def test_borders_through_the_command(command, tmp_path):
    movie, expected = moved(np.nan, np.float32, count=12)
    movie[4] = 0
    tifffile.imwrite(tmp_path / "a.tif", movie, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", field(5), photometric="minisblack")
    result = command("preprocessing.py", "a.tif", "b.tif", "out")
    assert result.returncode == 0
    assert result.stderr.startswith("warning: a: 1 of 12 frames left out") and result.stderr.endswith(": 5\n")
    valid = np.load(tmp_path / "out" / "valid_a.npy")
    assert np.array_equal(valid == 1, ~np.isnan(expected))
    expected = np.nanmean(np.delete(movie, 4, axis=0)[:, 2:], axis=0, dtype=np.float64)
    image = np.load(tmp_path / "out" / "X_a.npy")
    np.testing.assert_allclose(
        image[2:], np.minimum(expected, expected.mean() + 3 * expected.std()), rtol=1e-6
    )
    assert np.unique(image[:2]).tolist() == [pytest.approx(np.median(expected), rel=1e-6)]
    assert not (tmp_path / "out" / "valid_b.npy").exists()


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


def test_scale_standardizes_either_way():
    image = np.random.default_rng(2).random((60, 50)) * 100
    assert np.array_equal(network_input(image), standardize(image))
    assert np.array_equal(network_input(image, "subtract"), standardize(subtract_background(image)))
    assert network_input(image, "subtract").dtype == np.float32
