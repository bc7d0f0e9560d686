from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurodetect.scoring import (
    Score,
    centers,
    evaluate,
    f1_at_iou,
    match_centers,
    match_threshold,
    overlaps,
    pixel_error,
    score,
    summarize,
    table,
)


def squares(*corners, side=4):
    return [np.argwhere(np.ones((side, side))) + corner for corner in corners]


def random_regions(rng, count, size=60):
    """Crowded, overlapping rectangles of random sizes at random places."""
    return [np.argwhere(np.ones(rng.integers(2, 9, 2))) + rng.integers(0, size, 2) for _ in range(count)]


@pytest.fixture(scope="module")
def oracle():
    np.NaN = np.nan  # the package was written for numpy 1
    return pytest.importorskip("neurofinder", reason="the oracle is in tests/requirements.txt")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("threshold", [2.0, 5.0, 12.0])
def test_scores_are_those_of_the_neurofinder_package(oracle, seed, threshold):
    from regional import many

    rng = np.random.default_rng(seed)
    truth = random_regions(rng, int(rng.integers(1, 60)))
    estimate = random_regions(rng, int(rng.integers(1, 60)))
    a, b = many([r.tolist() for r in truth]), many([r.tolist() for r in estimate])
    recall, precision = oracle.centers(a, b, threshold)
    inclusion, exclusion = oracle.shapes(a, b, threshold)
    combined = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    expected = (recall, precision, combined, inclusion, exclusion)
    np.testing.assert_allclose(score(truth, estimate, threshold), expected, atol=1e-12)


def test_a_worked_example():
    # Two neurons of 16 px; one is found 1 px lower, the other is 10 px away, and one is invented.
    truth = squares((0, 0), (20, 20))
    estimate = squares((1, 0), (30, 20), (50, 50))
    assert score(truth, estimate) == Score(1 / 2, 1 / 3, 2 / 5, 12 / 16, 12 / 16)
    assert f1_at_iou(truth, estimate) == 2 * 1 / (2 + 3)  # 12 / 20 = 0.6 of the first overlap
    assert f1_at_iou(truth, estimate, 0.61) == 0


def test_matching_is_greedy_in_the_order_of_the_truth():
    truth = squares((0, 0), (0, 3))
    estimate = squares((0, 2), (0, 7))
    # The first true neuron takes the estimate that the second needs ...
    assert match_centers(truth, estimate, 4.5) == [(0, 0), (1, 1)]
    assert match_centers(truth, estimate, 3.5) == [(0, 0)]
    # ... and in another order both find one.
    assert match_centers(truth[::-1], estimate, 3.5) == [
        (0, 0),
    ]
    assert match_centers(squares((0, 0), (0, 4)), squares((0, 3), (0, -3)), 4.0) == [(0, 0)]
    assert match_centers(squares((0, 4), (0, 0)), squares((0, 3), (0, -3)), 4.0) == [(0, 0), (1, 1)]


def test_the_threshold_is_exclusive():
    truth, estimate = squares((0, 0)), squares((3, 4))
    assert score(truth, estimate, 5.0).combined == 0
    assert score(truth, estimate, 5.001).combined == 1


def test_an_empty_side_scores_zero():
    some = squares((0, 0))
    for truth, estimate in itertools.product([[], some], repeat=2):
        expected = 1.0 if truth and estimate else 0.0
        assert score(truth, estimate) == Score(*[expected] * 5)
        assert f1_at_iou(truth, estimate) == expected
        assert match_centers(truth, estimate) == ([(0, 0)] if expected else [])


def test_duplicate_pixels_count_once():
    (region,) = squares((5, 5))
    doubled = np.concatenate([region, region[:4]])
    assert score([doubled], [region]) == Score(1, 1, 1, 1, 1)
    assert f1_at_iou([doubled], [region]) == 1
    assert np.array_equal(centers([doubled]), centers([region]))


@given(st.integers(0, 2**32 - 1))
def test_overlaps_against_sets_of_pixels(seed):
    rng = np.random.default_rng(seed)
    truth, estimate = random_regions(rng, 6, 15), random_regions(rng, 5, 15)
    for (i, a), (j, b) in itertools.product(enumerate(truth), enumerate(estimate)):
        one, other = set(map(tuple, a)), set(map(tuple, b))
        assert overlaps(truth, estimate)[i, j] == pytest.approx(len(one & other) / len(one | other))


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
def test_f1_takes_the_best_assignment(seed, iou):
    rng = np.random.default_rng(seed)
    truth, estimate = random_regions(rng, 4, 8), random_regions(rng, 5, 8)
    allowed = overlaps(truth, estimate) >= iou
    best = max(
        sum(allowed[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(5), 4)
    )
    assert f1_at_iou(truth, estimate, iou) == pytest.approx(2 * best / 9)


@pytest.mark.parametrize(
    ("pixels_per_micron", "expected"), [(None, 5.0), (1.15, 6.0), (0.8, 4.0), (1.0, 5.0), (0.01, 1.0)]
)
def test_the_challenge_matches_within_five_micrometres(pixels_per_micron, expected):
    assert match_threshold(pixels_per_micron) == expected


def test_pixel_error_is_the_share_of_wrong_labels():
    assert pixel_error(np.array([[0.9, 0.5], [0.51, 0.1]]), np.array([[1, 1], [0, 0]])) == 0.5


def test_the_table_has_every_recording_and_the_spread():
    truth, estimate = squares((0, 0), (20, 20)), squares((1, 0), (30, 20), (50, 50))
    mask = np.zeros((60, 60))
    rows = [evaluate(mask, estimate, mask, truth), evaluate(mask, truth, mask, truth, 2.0)]
    assert rows[1]["threshold"] == 10 and rows[1]["combined"] == 1
    summary = summarize(rows)
    assert summary["mean"]["combined"] == pytest.approx((0.4 + 1) / 2)
    assert summary["std"]["combined"] == pytest.approx(0.6 / np.sqrt(2))
    lines = table(rows, ["one", "another"]).splitlines()
    assert [line.split()[0] for line in lines] == ["recording", "one", "another", "mean", "std"]
    assert lines[1].split()[1:] == ["0.000", "0.500", "0.333", "0.400", "0.750", "0.750", "0.400", "2", "3"]
    assert len(table(rows[:1], ["one"]).splitlines()) == 2
    assert summarize(rows[:1])["std"]["combined"] == 0
