from __future__ import annotations

import json
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.draw import disk, ellipse
from skimage.segmentation import expand_labels

from neurodetect.files import UserError
from neurodetect.regions import (
    METHODS,
    add_fainter,
    contrasts,
    dataset_name,
    even_sizes,
    find_by_threshold,
    find_cells,
    find_regions,
    grow_faint,
    labels_to_regions,
    mean_probability,
    move_regions,
    offset_of_cells,
    parse_regions,
    read_regions,
    read_submission,
    regions_to_labels,
    regions_to_mask,
    regions_to_separate_mask,
    rows_and_columns_exchanged,
    split_touching,
    unique_pixels,
    write_regions,
    write_submission,
)
from neurodetect.scoring import match_overlaps

regions_lists = st.lists(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=1, max_size=20, unique=True).map(
        lambda pixels: np.array(sorted(pixels))
    ),
    max_size=8,
)


KINDS = ("bright", "dark with a bright rim", "half of them invisible")


def disks_in_an_image(shape, kind):
    rng = np.random.default_rng(0)
    regions = disks(shape, rng.uniform(6, np.array(shape) - 6, (60, 2)), 4)
    image = ndimage.gaussian_filter(rng.normal(size=shape), 8) * 30 + rng.normal(size=shape)  # uneven light
    for number, region in enumerate(regions):
        mask = regions_to_mask([region], shape)
        if kind == "bright":
            image += 2 * mask
        elif kind == "half of them invisible":
            image += 2 * mask * (number % 2)
        else:
            image += 2.0 * (ndimage.binary_dilation(mask) - mask) - 2 * mask
    return regions, image


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [(0, 0), (1, 1), (-1, 0), (0, 2), (2, -1)])
def test_labels_beside_their_cells_are_noticed(kind, offset):
    regions, image = disks_in_an_image((120, 140), kind)
    labels = [region - offset for region in regions]
    assert offset_of_cells(image, labels) == offset
    assert offset_of_cells(1e6 - 40 * image, labels) == offset  # whatever the scale, bright or dark
    assert offset_of_cells(image, labels[:3]) == (0, 0)  # too few to tell
    assert offset_of_cells(image, []) == (0, 0)
    other = [region[::-1] - (40, 3) for region in regions]  # where no cells are
    for picture in (np.ones(image.shape), np.random.default_rng(1).normal(size=image.shape)):
        assert offset_of_cells(picture, labels) == (0, 0)
    assert offset_of_cells(image, other) == (0, 0)


def test_contrast_is_that_of_a_neuron_and_its_ring():
    rng = np.random.default_rng(2)
    image = rng.normal(100, 5, (40, 50))
    regions = [*disks(image.shape, [(12, 14), (13, 21), (30, 40)], 4), np.array([[39, 50]])]
    labels = regions_to_labels(regions[:3], image.shape)
    nearest = expand_labels(labels, 3)
    expected = []
    for number in (1, 2, 3):
        cell, ring = image[labels == number], image[(nearest == number) & (labels == 0)]
        spread = np.concatenate([cell, ring]).std()
        expected.append(abs(cell.mean() - ring.mean()) / spread)
    still, moved = contrasts(image, regions, [(0, 0), (1, -2)])
    np.testing.assert_allclose(still, [*expected, 0], rtol=1e-9)  # one is not in the image
    np.testing.assert_allclose(
        moved[:3], contrasts(np.roll(image, (-1, 2), (0, 1)), regions)[0][:3], rtol=1e-9
    )


@given(regions_lists, st.integers(-5, 5), st.integers(-5, 5))
def test_moved_neurons_against_sets_of_pixels(regions, down, right):
    moved = move_regions(regions, (down, right), (41, 31))
    for before, after in zip(regions, moved, strict=True):
        expected = {(r + down, c + right) for r, c in before.tolist()}
        assert {*map(tuple, after.tolist())} == {(r, c) for r, c in expected if 0 <= r < 41 and 0 <= c < 31}


@pytest.mark.parametrize("shape", [(120, 120), (90, 160), (160, 90)])
@pytest.mark.parametrize("kind", KINDS)
def test_exchanged_rows_and_columns_are_noticed(shape, kind):
    regions, image = disks_in_an_image(shape, kind)
    exchanged = [region[:, ::-1] for region in regions]
    assert rows_and_columns_exchanged(image, exchanged) and not rows_and_columns_exchanged(image, regions)
    assert rows_and_columns_exchanged(image.T, regions) and not rows_and_columns_exchanged(image.T, exchanged)
    for other in (image[::-1], image[:, ::-1], np.ones(shape)):  # they fit neither way
        assert not rows_and_columns_exchanged(other, regions)
    assert not rows_and_columns_exchanged(image, exchanged[:3])  # too few to tell
    assert not rows_and_columns_exchanged(image, [])


def disks(shape, centers, radius):
    """One (n, 2) array of pixels per disk, row-major."""
    return [np.argwhere(painted(shape, center, radius)) for center in centers]


def painted(shape, center, radius):
    image = np.zeros(shape, bool)
    image[disk(center, radius, shape=shape)] = True
    return image


def test_mean_probability_is_each_neurons_own():
    probability = np.array([[0.5, 1.0, 0.0], [0.75, 0.0, 0.25]], np.float32)
    means = mean_probability(probability, [np.array([[0, 1], [1, 0], [1, 2]]), np.array([[0, 2]])])
    assert means.dtype == np.float64 and means.tolist() == [2 / 3, 0.0]
    assert mean_probability(probability, []).shape == (0,)


# Files


@given(regions_lists)
def test_regions_survive_writing_and_reading(tmp_path_factory, regions):
    path = tmp_path_factory.mktemp("regions") / "regions.json"
    write_regions(path, regions)
    back = read_regions(path, (41, 31))
    assert len(back) == len(regions)
    assert all(np.array_equal(a, b) for a, b in zip(back, regions, strict=True))


def test_coordinates_are_row_then_column(tmp_path):
    path = tmp_path / "regions.json"
    path.write_text('[{"coordinates": [[3, 7], [3, 8]]}]')
    mask = regions_to_mask(read_regions(path, (5, 10)), (5, 10))
    assert mask.sum() == 2 and mask[3, 7] == 1 and mask[3, 8] == 1
    with pytest.raises(UserError, match="outside|no pixel"):
        read_regions(path, (10, 5))


@pytest.mark.parametrize(
    "value",
    [
        {"coordinates": [[1, 2]]},
        [[1, 2]],
        [{"pixels": [[1, 2]]}],
        [{"coordinates": []}],
        [{"coordinates": [[]]}],
        [{"coordinates": [1, 2]}],
        [{"coordinates": [[1, 2, 3]]}],
        [{"coordinates": [[1, 2], [3]]}],
        [{"coordinates": [["a", "b"]]}],
        [{"coordinates": [[None, 1]]}],
        [{"coordinates": [[-1, 2]]}],
        [{"coordinates": [[1.5, 2]]}],
        [{"coordinates": [[1, 20]]}],
        [{"coordinates": [[10, 2]]}],
        [{"coordinates": [[1, 10**400]]}],
        [{"coordinates": "everywhere"}],
        [{"coordinates": {"row": 1}}],
        None,
        7,
    ],
)
def test_malformed_regions_are_one_line_that_names_the_file(value):
    with pytest.raises(UserError, match="regions.json") as error:
        parse_regions(value, (10, 20), "regions.json")
    assert "\n" not in str(error.value)


def test_nan_coordinates_are_refused(tmp_path):
    (tmp_path / "regions.json").write_text('[{"coordinates": [[NaN, 1]]}]')
    with pytest.raises(UserError, match="neuron 0"):
        read_regions(tmp_path / "regions.json", (10, 20))


@pytest.mark.parametrize(
    "pixel", ["1e400, 1", "-Infinity, 1", "1, 1e25", f"{10**400}, 1", f"1, {'9' * 5000}", "-0.5, 1", '"a", 1']
)
@pytest.mark.parametrize("shape", [(10, 20), None])
def test_numbers_that_are_no_pixels_are_one_line(tmp_path, pixel, shape):
    (tmp_path / "regions.json").write_text(f'[{{"coordinates": [[1, 1], [{pixel}]]}}]')
    with pytest.raises(UserError, match=r"regions\.json: .*; ?") as error:
        read_regions(tmp_path / "regions.json", shape)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_more_neurons_than_any_recording_has_are_refused_at_once():
    value = [{"coordinates": [[1, 2]]}] * 100_000
    with pytest.raises(UserError, match="here: has 100000 neurons"):
        parse_regions(value, None, "here")


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=30))
def test_unique_pixels_against_numpy(pixels):
    region = np.array(pixels, int).reshape(-1, 2)
    assert np.array_equal(unique_pixels(region), np.unique(region, axis=0))


def test_duplicate_pixels_count_once_and_extra_keys_are_ignored():
    value = [{"coordinates": [[2, 2], [1, 1], [2, 2], [1.0, 1.0]], "id": 3}]
    (region,) = parse_regions(value, (5, 5), "here")
    assert region.tolist() == [[1, 1], [2, 2]]


def test_a_submission_can_say_how_sure_it_is(tmp_path):
    path = tmp_path / "submission.json"
    found = {"a": [np.array([[1, 2]]), np.array([[0, 0]])], "b": []}
    write_submission(path, found, {"a": np.array([0.66666, 1.0]), "b": np.array([])})
    first, second = json.loads(path.read_text())[0]["regions"]
    assert first == {"coordinates": [[1, 2]], "probability": 0.667} and second["probability"] == 1.0
    assert [region.tolist() for region in read_submission(path, "a", (3, 3))] == [[[1, 2]], [[0, 0]]]


def test_submission_has_the_challenge_form(tmp_path):
    path = tmp_path / "submission.json"
    found = {"neurofinder.00.00.test": [np.array([[1, 2], [1, 3]])], "mine": []}
    write_submission(path, found)
    assert json.loads(path.read_text()) == [
        {"dataset": "00.00.test", "regions": [{"coordinates": [[1, 2], [1, 3]]}]},
        {"dataset": "mine", "regions": []},
    ]
    (region,) = read_submission(path, "neurofinder.00.00.test", (2, 4))
    assert region.tolist() == [[1, 2], [1, 3]]
    assert read_submission(path, "mine", (2, 4)) == []
    with pytest.raises(UserError, match="no neurons of other, only of 00.00.test, mine"):
        read_submission(path, "other", (2, 4))
    with pytest.raises(UserError, match=r"submission.json: 00.00.test: neuron 0 has pixel \[1, 3\]"):
        read_submission(path, "00.00.test", (2, 3))
    assert dataset_name("my.neurofinder.00") == "my.neurofinder.00"


def test_a_submission_with_many_or_doubled_recordings(tmp_path):
    path = tmp_path / "submission.json"
    write_submission(path, {f"r{index}": [] for index in range(2000)})
    with pytest.raises(UserError, match="only of r0, r1, r2, r3, r4 ...; run conv2d_predict.py"):
        read_submission(path, "other", (2, 3))
    path.write_text('[{"dataset": "a", "regions": []}, {"dataset": "neurofinder.a", "regions": []}]')
    with pytest.raises(UserError, match=r"submission\.json: has a twice; remove"):
        read_submission(path, "a", (2, 3))


@pytest.mark.parametrize("text", ["[]", "{}", "[1]", '[{"dataset": 3, "regions": []}]', '[{"dataset": "a"}]'])
def test_malformed_submission(tmp_path, text):
    (tmp_path / "submission.json").write_text(text)
    with pytest.raises(UserError, match="submission.json"):
        read_submission(tmp_path / "submission.json", "a", (2, 3))


# Masks


@given(regions_lists)
def test_masks_and_labels_hold_every_pixel_once(regions):
    mask = regions_to_mask(regions, (41, 31))
    pixels = {tuple(pixel) for region in regions for pixel in region.tolist()}
    assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    assert {tuple(pixel) for pixel in np.argwhere(mask).tolist()} == pixels
    assert np.array_equal(regions_to_labels(regions, (41, 31)) > 0, mask > 0)


def test_labels_give_their_regions_back():
    regions = disks((30, 50), [(8, 8), (8, 30), (22, 40)], 6)
    back = labels_to_regions(regions_to_labels(regions, (30, 50)))
    assert all(np.array_equal(a, b) for a, b in zip(back, regions, strict=True))
    assert labels_to_regions(np.zeros((4, 5), int)) == []


@given(regions_lists)
def test_a_separate_mask_has_a_gap_where_neurons_touch_and_only_there(regions):
    shape = (41, 31)
    labels = regions_to_labels(regions, shape)
    expected = np.zeros(shape, np.uint8)
    for r, c in np.argwhere(labels):
        around = labels[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2]
        expected[r, c] = set(around.ravel()) <= {0, labels[r, c]}
    mask = regions_to_separate_mask(regions, shape)
    assert mask.dtype == np.uint8 and np.array_equal(mask, expected)


# Neurons of a map


def test_touching_cells_are_told_apart_and_the_last_one_is_there():
    centers = [(10, 10), (10, 21), (21, 15), (10, 50), (40, 12), (40, 23), (45, 60)]
    truth = disks((56, 72), centers, 6)
    mask = regions_to_mask(truth, (56, 72))
    found = find_regions(mask)
    assert len(found) == len(truth)
    middles = sorted(tuple(np.round(region.mean(axis=0)).astype(int)) for region in found)
    for middle, center in zip(middles, sorted(centers), strict=True):
        assert np.abs(np.subtract(middle, center)).max() <= 1
    assert len(find_regions(mask, "connected")) == 4


def clusters(shape, radius, size, rng):
    """Neurons in clusters of `size`: ellipses of about this radius, each touching one before it."""
    neurons, taken = [], np.zeros(shape, bool)
    for _ in range(60):
        centers, cluster = [], np.zeros(shape, bool)
        for _ in range(400):
            if len(centers) == size or taken.mean() > 0.35:
                break
            if centers:
                angle = rng.uniform(0, 2 * np.pi)
                step = 1.9 * radius * np.array([np.sin(angle), np.cos(angle)])
                center = centers[rng.integers(len(centers))] + step
            else:
                center = rng.uniform(radius, np.array(shape) - 1 - radius)
            if np.any(center < radius) or np.any(center > np.array(shape) - 1 - radius):
                continue
            if any(np.hypot(*(center - other)) < 1.85 * radius for other in centers):
                continue
            one = np.zeros(shape, bool)
            axes = radius * rng.uniform(0.9, 1.1, 2)
            one[ellipse(*center, *axes, shape=shape, rotation=rng.uniform(0, np.pi))] = True
            if not (ndimage.binary_dilation(one, iterations=2) & taken).any():
                neurons.append(np.argwhere(one & ~cluster))
                centers.append(center)
                cluster |= one
        taken |= cluster
    return neurons


@pytest.mark.parametrize("radius", [5, 7, 9])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_pairs_triples_and_crowds_are_told_apart(size, radius):
    shape = (26 * radius, 30 * radius)
    truth = clusters(shape, radius, size, np.random.default_rng(size))
    mask = regions_to_mask(truth, shape)
    area = np.median([len(region) for region in truth])
    assert len(truth) > 60
    assert len(match_overlaps(truth, find_regions(mask, typical_area=area))) >= 0.95 * len(truth)
    assert len(match_overlaps(truth, find_regions(mask, "connected"))) < 0.7 * len(truth)


def test_a_dip_in_the_probability_parts_cells_whose_outline_has_no_waist():
    probability = np.zeros((30, 50), np.float32)
    probability[ellipse(14, 24, 7, 13)] = 0.95
    (whole,) = find_regions(probability, typical_area=150)
    inside = probability[:, 23:26] > 0
    probability[:, 23:26][inside] = 0.7
    left, right = sorted(find_regions(probability, typical_area=150), key=lambda region: region[:, 1].mean())
    assert len(left) + len(right) == len(whole)
    assert left[:, 1].max() < 26 and right[:, 1].min() >= 23


def test_a_blurred_dip_still_parts_cells():
    """Two overlapping discs, one fainter, blurred as the mean over windows does: no more than a shoulder."""
    sharp = np.zeros((60, 60))
    sharp[disk((30, 34), 4.6)] = 0.8
    sharp[disk((30, 26), 4.6)] = 1
    left, right = find_regions(ndimage.gaussian_filter(sharp, 2), threshold=0.45, typical_area=67)
    assert abs(left[:, 1].mean() - 26) < 1 and abs(right[:, 1].mean() - 34) < 1


def test_the_typical_neuron_says_what_a_crumb_is():
    mask = regions_to_mask(
        disks((60, 60), [(12, 12), (40, 40)], 4) + disks((60, 60), [(40, 15)], 9), (60, 60)
    )
    small, large = 45, 249  # pixels of such disks
    assert sorted(len(region) for region in find_regions(mask)) == [small, small, large]
    assert [len(region) for region in find_regions(mask, typical_area=200)] == [large]
    assert len(find_regions(mask, typical_area=200, smallest_area=small)) == 3
    assert len(find_regions(mask, typical_area=100)) == 3


def cells_and_crumbs(cells: int, crumbs: int) -> np.ndarray:
    """Discs of 197 pixels, and squares of 49, in rows apart."""
    probability = np.zeros((20 * (cells // 5 + crumbs // 5 + 1), 110))
    for i in range(cells):
        probability[disk((10 + 20 * (i // 5), 10 + 20 * (i % 5)), 8)] = 0.9
    for i in range(crumbs):
        r, c = 20 * (cells // 5 + i // 5) + 4, 4 + 20 * (i % 5)
        probability[r : r + 7, c : c + 7] = 0.9
    return probability


def test_the_size_of_cells_is_learned_from_the_map():
    """Half of the true size is given, as by recordings of another laboratory; crumbs go all the same."""
    assert len(find_regions(cells_and_crumbs(25, 10), typical_area=100)) == 25
    assert len(find_regions(cells_and_crumbs(25, 10), typical_area=100, smallest_area=10)) == 35
    # Few neurons tell no size, and the crumbs are what was given.
    assert [len(region) for region in find_regions(cells_and_crumbs(5, 5), typical_area=100)].count(49) == 5
    assert len(find_regions(cells_and_crumbs(5, 5), typical_area=200)) == 5


@pytest.mark.parametrize("typical_area", [60, 120, 200, 300, None])
def test_any_size_to_begin_with_leads_to_the_same_cells(typical_area):
    rough = cells_and_crumbs(30, 0) * (1 - 0.3 * np.random.default_rng(0).random((140, 110)))
    expected = find_regions(rough, typical_area=197)
    found = find_regions(rough, typical_area=typical_area)
    assert len(expected) == 30 and list(map(len, found)) == list(map(len, expected))


def test_a_higher_threshold_finds_smaller_and_fewer():
    probability = np.zeros((40, 40), np.float32)
    probability[5:15, 5:15], probability[7:13, 7:13], probability[25:33, 25:33] = 0.6, 0.9, 0.75
    sizes = {t: [len(region) for region in find_regions(probability, threshold=t)] for t in (0.5, 0.65, 0.8)}
    # Beside the bright 36 are 24 pixels of probability 0.6, which at 0.65 are their rim, and at 0.8 are over
    # half of their mean; so are, at 0.65, the 28 beside these.
    assert sizes == {0.5: [100, 64], 0.65: [88, 64], 0.8: [60]}


def blurred_disks(brightness: dict[tuple[int, int], float]) -> np.ndarray:
    """A map (80, 80) of cells of a radius of 6 px, blurred as a network's, each with its probability."""
    probability = np.zeros((80, 80))
    for centre, value in brightness.items():
        probability[disk(centre, 6.5, shape=probability.shape)] = value
    return ndimage.gaussian_filter(probability, 1.5)


def test_a_lower_threshold_adds_faint_cells_and_leaves_the_others_as_they_were():
    bright = {(15, 15): 0.95, (15, 32): 0.95, (40, 40): 0.9}
    faint = {(60, 15): 0.38, (60, 34): 0.36}
    probability = blurred_disks(bright | faint)
    before = find_regions(probability, threshold=0.45, typical_area=130)
    found = find_regions(probability, threshold=0.25, typical_area=130)
    assert len(before) == len(bright) and len(found) == len(bright) + len(faint)
    assert all(np.array_equal(*pair) for pair in zip(before, found, strict=False))
    for centre, region in zip(faint, found[len(bright) :], strict=True):
        assert np.linalg.norm(region.mean(axis=0) - centre) < 1 and 100 < len(region) < 180


@pytest.mark.parametrize("method", METHODS)
def test_several_thresholds_at_once_find_what_each_finds_alone(method):
    probability = blurred_disks({(15, 15): 0.95, (15, 32): 0.8, (60, 15): 0.38, (60, 34): 0.26})
    thresholds = (0.2, 0.3, 0.45, 0.7, 0.3)
    together = list(find_by_threshold(probability, thresholds, method, None, 130))
    assert [len(regions) for regions in together] == [4, 3, 2, 2, 3]
    for threshold, regions in zip(thresholds, together, strict=True):
        alone = find_regions(probability, method, None, threshold, 130)
        assert all(np.array_equal(*pair) for pair in zip(alone, regions, strict=True))


def test_the_skirts_of_bright_cells_are_no_faint_cells():
    probability = ndimage.gaussian_filter(blurred_disks({(25, 25): 1.0, (55, 50): 1.0}), 3)
    assert (probability > 0.15).sum() > 2 * (probability > 0.45).sum()
    assert len(find_regions(probability, threshold=0.15, smallest_area=10, typical_area=130)) == 2


@settings(max_examples=25)
@given(hnp.arrays(np.float32, (24, 20), elements=st.floats(0, 1, width=16)), st.floats(0.05, 0.6))
def test_cells_of_two_thresholds_are_apart_and_in_one_piece(noise, threshold):
    probability = ndimage.gaussian_filter(noise, 1)
    regions = find_regions(probability, threshold=threshold, smallest_area=3, typical_area=20)
    pixels = [tuple(pixel) for region in regions for pixel in region.tolist()]
    assert len(pixels) == len(set(pixels))
    assert all(ndimage.label(regions_to_mask([region], noise.shape))[1] == 1 for region in regions)
    above = find_cells(probability, 3, 0.45, 20)
    kept = add_fainter(above, probability, 3, threshold, 20)[: len(above)]
    assert all(np.array_equal(*pair) for pair in zip(above, kept, strict=True))


def test_connected_is_plain_connected_components():
    mask = np.random.default_rng(0).random((40, 50)) > 0.5
    expected, count = ndimage.label(mask)
    found = find_regions(mask, "connected", smallest_area=1)
    assert len(found) == count
    for region in found:
        assert np.array_equal(region, np.argwhere(expected == expected[tuple(region[0])]))


def test_crumbs_are_dropped():
    mask = regions_to_mask(disks((40, 40), [(12, 12)], 6), (40, 40))
    mask[30, 30:34] = 1
    assert len(find_regions(mask)) == 1
    assert len(find_regions(mask, smallest_area=1)) == 2


def test_the_rounding_is_at_one_half():
    probability = np.full((20, 20), 0.5)
    assert find_regions(probability) == []
    assert len(find_regions(probability + 1e-6)[0]) == 400


@settings(max_examples=50)
@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.floats(0, 1, width=32)
    )
)
@pytest.mark.parametrize("method", ["watershed", "connected"])
@pytest.mark.parametrize("typical_area", [None, 4, 1000])
def test_regions_are_disjoint_whole_and_inside(method, typical_area, probability):
    regions = find_regions(probability, method, smallest_area=1, typical_area=typical_area)
    painted = np.zeros(probability.shape, int)
    for region in regions:
        assert len(region)
        painted[region[:, 0], region[:, 1]] += 1
        alone = np.zeros(probability.shape, bool)
        alone[region[:, 0], region[:, 1]] = True
        assert ndimage.label(alone)[1] == 1
    assert painted.max(initial=0) <= 1
    if method == "connected":
        assert np.array_equal(painted > 0, probability > 0.5)
    else:
        beside = ndimage.binary_dilation(probability > 0.5)  # with what shares a side
        rim = (probability > 0.5) | (beside & (probability > 0.4))
        with mock.patch("neurodetect.regions.FEWEST_FOR_SIZE", np.inf):  # or sizes would be evened
            regions = find_regions(probability, method, smallest_area=1, typical_area=typical_area)
        painted = regions_to_mask(regions, probability.shape)
        assert not (painted > (rim | (ndimage.binary_dilation(rim) & (probability > 0.2)))).any()
        mask = probability > 0.5
        assert sum(map(len, find_regions(mask, smallest_area=1, typical_area=typical_area))) == mask.sum()


@settings(max_examples=50)
@given(hnp.arrays(np.float32, (12, 15), elements=st.floats(0, 1, width=32)), st.integers(0, 2**32 - 1))
def test_cells_grow_by_what_is_over_half_of_their_mean(probability, seed):
    before = np.random.default_rng(seed).integers(0, 5, probability.shape) ** 3 // 27  # 0, 1 and 2
    regions = labels_to_regions(before)
    before = regions_to_labels(regions, probability.shape)
    after = regions_to_labels(grow_faint(regions, probability), probability.shape)
    halves = [np.inf, *(probability[before == n].mean(dtype=float) / 2 for n in range(1, before.max() + 1))]
    for (row, column), label in np.ndenumerate(after):
        own, value = before[row, column], probability[row, column]
        sides = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        near = {before[r, c] for r, c in sides if 0 <= r < 12 and 0 <= c < 15} - {0}
        if own:
            assert label == own
        elif label:
            assert label in near and value > halves[label]
        else:
            assert not near or any(value <= halves[number] for number in near)


@pytest.mark.parametrize("sure", [0.0, 0.5, 0.8, 1.0])
def test_sizes_come_nearer_to_the_usual_one_as_far_as_they_are_unsure(sure):
    shape = (160, 160)
    usual = disks(shape, [(row, column) for row in range(12, 150, 26) for column in range(12, 90, 26)], 5)
    (large,), (small,) = disks(shape, [(30, 120)], 9), disks(shape, [(80, 120)], 3)
    (beside,) = disks(shape, [(80, 127)], 5)
    regions = [*usual, large, small, beside]
    after = even_sizes(regions, np.full(shape, sure))
    for before, evened in zip(regions, after, strict=True):
        expected = len(before) ** sure * len(usual[0]) ** (1 - sure)
        assert abs(len(evened) - expected) <= 8  # pixels that are as far away come together or not at all
        assert np.abs(evened.mean(axis=0) - before.mean(axis=0)).max() < 1.5
    assert {*map(tuple, after[len(usual)].tolist())} <= {*map(tuple, large.tolist())}
    assert regions_to_mask(after, shape).sum() == sum(map(len, after))  # none took another's pixels
    if sure == 1:
        assert all(map(np.array_equal, after, regions))
    few = regions[-19:]
    assert all(map(np.array_equal, even_sizes(few, np.full(shape, sure)), few))


@given(hnp.arrays(bool, (20, 30)), hnp.arrays(np.float32, (60, 90), elements=st.floats(0, 1, width=32)))
@settings(max_examples=30)
def test_evened_cells_are_whole_and_apart(cells, probability):
    pieces = ndimage.label(np.kron(cells, np.ones((3, 3), bool)))[0]
    regions = labels_to_regions(pieces)
    after = even_sizes(regions, probability)
    assert len(after) == len(regions)
    assert regions_to_mask(after, pieces.shape).sum() == sum(map(len, after))
    for region in after:
        assert len(region) and ndimage.label(regions_to_mask([region], pieces.shape))[1] == 1


def test_touching_cells_get_the_gap_back_that_training_masks_have():
    labels = regions_to_labels(disks((30, 50), [(14, 14), (14, 27)], 7), (30, 50))
    inner = regions_to_separate_mask(labels_to_regions(labels), labels.shape) > 0
    assert inner.sum() < (labels > 0).sum()

    def found(gap):
        return regions_to_labels(find_regions(np.where(inner, 0.9, gap * (labels > 0))), labels.shape)

    assert np.array_equal(found(gap=0.45), labels)
    assert np.array_equal(found(gap=0.35), labels * inner)


def test_a_map_with_nan_is_a_bug():
    with pytest.raises(ValueError, match="NaN"):
        find_regions(np.array([[0.2, np.nan]]))
    with pytest.raises(ValueError, match="method"):
        find_regions(np.zeros((2, 2)), "magic")


def test_cells_cut_by_the_border_stay():
    truth = disks((40, 60), [(0, 10), (39, 30), (20, 59)], 7)
    assert len(find_regions(regions_to_mask(truth, (40, 60)))) == 3
    assert split_touching(np.zeros((3, 4), bool)).max() == 0


def test_what_is_written_as_a_submission_can_be_read(tmp_path, monkeypatch):
    path, regions = tmp_path / "submission.json", [np.array([[1, 2]])]
    write_submission(path, {"a": regions})
    with open(path, "a") as file:  # as large as a hundred recordings are
        file.write(" " * 80_000_000)
    assert read_submission(path, "a", (5, 5))[0].tolist() == [[1, 2]]
    monkeypatch.setattr("neurodetect.regions.LARGEST_SUBMISSION", 20)
    with pytest.raises(UserError, match=r"other\.json: would be too large"):
        write_submission(tmp_path / "other.json", {"a": regions})
    assert not (tmp_path / "other.json").exists()
