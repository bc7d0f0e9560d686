from __future__ import annotations

import os
from contextlib import suppress
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurodetect.detection import expected_area, neuron_area
from neurodetect.files import UserError
from neurodetect.prepared import Prepared, prepared_names, read_labelled, read_prepared, write_prepared
from neurodetect.projection import (
    BACKGROUND,
    clip_bright,
    mean_projection,
    network_input,
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


# On disk


class Killed(BaseException):
    """The process is gone; nothing of it runs any more."""


@pytest.fixture
def folder(tmp_path):
    image = np.arange(12.0).reshape(3, 4)
    write_prepared(tmp_path, "b10", image, [np.array([[2, 3]]), np.array([[0, 1], [2, 3]])], 1.15)
    write_prepared(tmp_path, "b2", image)
    return tmp_path


def test_prepared_data_on_disk(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        *("X_b10.npy", "X_b2.npy", "info_b10.json", "regions_b10.json", "y_b10.npy")
    ]
    image, mask = np.load(folder / "X_b10.npy"), np.load(folder / "y_b10.npy")
    assert image.dtype == np.float32 and np.array_equal(image, np.arange(12).reshape(3, 4))
    assert mask.dtype == np.uint8 and mask.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert prepared_names(folder) == ["b2", "b10"]
    prepared = read_prepared(folder, "b10")
    assert prepared.name == "b10" and prepared.pixels_per_micron == 1.15
    assert [region.tolist() for region in prepared.regions] == [[[2, 3]], [[0, 1], [2, 3]]]
    unlabelled = read_prepared(folder, "b2")
    assert unlabelled.mask is None and unlabelled.regions is None and unlabelled.pixels_per_micron is None


def test_unlabelled_recordings_are_named(folder):
    with pytest.warns(UserWarning, match="b2 has no labels"):
        labelled = read_labelled(folder)
    assert [recording.name for recording in labelled] == ["b10"]
    (folder / "y_b10.npy").unlink()
    with pytest.raises(UserError, match="none of its 2 recordings has labels"):
        read_labelled(folder)


def test_labels_of_an_earlier_run_do_not_stay(folder):
    write_prepared(folder, "b10", np.arange(6.0).reshape(2, 3))
    assert read_prepared(folder, "b10").mask is None


@pytest.mark.parametrize("file", ["X_b10.npy", "y_b10.npy", "regions_b10.json", "info_b10.json"])
@pytest.mark.parametrize("regions", [[np.array([[1, 1]])], None], ids=["labelled", "unlabelled"])
def test_a_failed_write_leaves_all_of_an_earlier_run(folder, monkeypatch, file, regions):
    def full(path, content):
        if file in path.name.replace(f".{os.getpid()}.partial", "").lstrip("."):
            raise OSError(28, "No space left on device")
        return write(path, content)

    write = Path.write_bytes
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(Path, "write_bytes", full)
    if regions is None and file in ("y_b10.npy", "regions_b10.json"):
        pytest.skip("an unlabelled recording has no such file")
    with pytest.raises(UserError, match="No space"):
        write_prepared(folder, "b10", np.arange(12.0).reshape(3, 4) + 1, regions, 1.0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("regions", [[np.array([[1, 1]])], None], ids=["labelled", "unlabelled"])
def test_a_preparation_that_is_killed_at_any_moment_pairs_no_image_with_other_labels(
    folder, monkeypatch, regions
):
    """Killed after each rename or removal in turn: read is the old recording, the new one, or none."""
    old, shape = read_prepared(folder, "b10"), (3, 4)
    image = np.arange(12.0).reshape(shape) ** 2
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    outcomes = []
    for moment in range(8):
        for name, content in before.items():
            (folder / name).write_bytes(content)
        done = []

        def die(*arguments, change, moment=moment, done=done, **options):
            if len(done) == moment:
                raise Killed
            done.append(1)
            return change(*arguments, **options)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr("os.replace", partial(die, change=os.replace))
            patch.setattr(Path, "unlink", partialmethod(die, change=Path.unlink))
            write_prepared(folder, "b10", image, regions)
        try:
            read = read_prepared(folder, "b10")
        except UserError as error:
            assert "run preprocessing.py again" in str(error)
            outcomes.append("refused")
            continue
        wanted = old if np.array_equal(read.image, old.image) else Prepared("b10", image, None, regions, None)
        assert np.array_equal(read.image, wanted.image)
        if read.regions is not None:
            assert list(map(np.ndarray.tolist, read.regions)) == list(map(np.ndarray.tolist, wanted.regions))
        outcomes.append("read")
    assert outcomes[0] == outcomes[-1] == "read" and "refused" in outcomes


def test_an_edited_image_says_how_to_keep_it(folder):
    np.save(folder / "X_b10.npy", np.arange(12, dtype=np.float32).reshape(3, 4)[::-1])
    with pytest.raises(UserError, match=r"or remove info_b10\.json"):
        read_prepared(folder, "b10")
    (folder / "info_b10.json").unlink()
    assert read_prepared(folder, "b10").image[0, 0] == 8


def test_a_constant_image_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="name: the mean image is constant"):
        write_prepared(tmp_path, "name", np.full((4, 5), 7.0), [np.array([[1, 1]])])
    assert list(tmp_path.iterdir()) == []


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        prepared_names(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no X_"):
        prepared_names(tmp_path)


@pytest.mark.parametrize(
    ("file", "array", "match"),
    [
        ("X_b10.npy", np.zeros(5), "image"),
        ("X_b10.npy", np.zeros((0, 5)), "image"),
        ("X_b10.npy", np.zeros((3, 4), complex), "image"),
        ("X_b10.npy", np.ones((3, 4)), "constant"),
        ("X_b10.npy", np.array([[np.nan, 1]]), "NaN"),
        ("X_b10.npy", np.arange(12).reshape(4, 3), r"y_b10.npy: is \(3, 4\)"),
        ("y_b10.npy", np.full((3, 4), 2), "0 and 1"),
    ],
)
def test_prepared_files_that_cannot_be_used(folder, file, array, match):
    np.save(folder / file, array)
    with pytest.raises(UserError, match=match):
        read_prepared(folder, "b10")


def test_regions_that_are_missing_or_outside(folder):
    (folder / "regions_b10.json").write_text('[{"coordinates": [[3, 2]]}]')
    with pytest.raises(UserError, match="neuron 0"):
        read_prepared(folder, "b10")
    (folder / "regions_b10.json").unlink()
    with pytest.raises(UserError, match="regions_b10.json: is missing"):
        read_prepared(folder, "b10")


# Background and sizes


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


def labelled_with(areas, pixels_per_micron):
    image = np.zeros((2, 2), np.float32)
    return Prepared("a", image, image, [np.zeros((area, 2), int) for area in areas], pixels_per_micron)


def test_a_typical_neuron_is_the_median_and_keeps_its_size_in_microns():
    known = neuron_area([labelled_with([40, 80, 400], 2.0)])
    assert known == {"pixels": 80, "square_microns": 20}
    assert expected_area(known, 1.0) == 20 and expected_area(known, 3.0) == 180
    assert expected_area(known, None) == 80
    some = neuron_area([labelled_with([40, 80], 2.0), labelled_with([100], None)])
    assert some == {"pixels": 80, "square_microns": None} and expected_area(some, 3.0) == 80
    two = neuron_area([labelled_with([100], 1.0), labelled_with([400, 400], 2.0)])
    assert two["square_microns"] == 100


def test_without_labelled_neurons_there_is_no_typical_one():
    assert expected_area(neuron_area([labelled_with([], 1.0)]), 1.0) is None
    assert expected_area({}, 2.0) is None
