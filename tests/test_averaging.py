"""The mean of real recordings: borders that frames lack, broken frames, tiles."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurodetect.averaging import Projection, describe_unusual, project

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


# Through the command


def test_borders_through_the_command(command, tmp_path):
    movie, expected = moved(np.nan, np.float32, count=12)
    movie[4] = 0
    tifffile.imwrite(tmp_path / "a.tif", movie, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", field(5), photometric="minisblack")
    result = command("preprocessing.py", "a.tif", "b.tif", "out")
    assert result.returncode == 0
    (warning,) = [line for line in result.stderr.splitlines() if "frames" in line]  # old packages warn, too
    assert warning.startswith("warning: a: 1 of 12 frames left out of the mean") and warning.endswith(": 5")
    valid = np.load(tmp_path / "out" / "valid_a.npy")
    assert np.array_equal(valid == 1, ~np.isnan(expected))
    expected = np.nanmean(np.delete(movie, 4, axis=0)[:, 2:], axis=0, dtype=np.float64)
    image = np.load(tmp_path / "out" / "X_a.npy")
    np.testing.assert_allclose(
        image[2:], np.minimum(expected, expected.mean() + 3 * expected.std()), rtol=1e-6
    )
    assert np.unique(image[:2]).tolist() == [pytest.approx(np.median(expected), rel=1e-6)]
    assert not (tmp_path / "out" / "valid_b.npy").exists()
