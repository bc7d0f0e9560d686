from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, assert_refused
from hypothesis import given
from hypothesis import strategies as st

from neurodetect.files import UserError, write_json
from neurodetect.formats.exports import export_imagej, export_labels
from neurodetect.formats.labels import find_truths, read_estimate
from neurodetect.prepared import write_prepared
from neurodetect.regions import regions_as_json, write_regions, write_submission
from neurodetect.scoring import (
    Score,
    better_threshold,
    centers,
    compare_regions,
    evaluate,
    f1_at_iou,
    match_centers,
    match_threshold,
    mean_curve,
    overlaps,
    pixel_error,
    score,
    summarize,
    table,
    threshold_curve,
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


def test_without_a_probability_map_there_is_no_pixel_error():
    truth, estimate = squares((0, 0), (20, 20)), squares((1, 0), (30, 20), (50, 50))
    mask = np.zeros((60, 60))
    row = compare_regions(truth, estimate, 5.0)
    assert row == {k: v for k, v in evaluate(mask, estimate, mask, truth).items() if k != "pixel_error"}
    assert "pixel_error" not in summarize([row])["mean"]
    head, line = table([row], ["one"]).splitlines()
    assert head.split()[:2] == ["recording", "recall"] and line.split()[:2] == ["one", "0.500"]


# python -m neurodetect.scoring


@pytest.fixture
def command(tmp_path):
    """Run `python -m neurodetect.scoring` in `tmp_path`."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "neurodetect.scoring", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


def rows_of(result):
    """The lines of the table by their first word."""
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines if line and not line.startswith("Centres")}


TRUE = squares((0, 0), (20, 20))
FOUND = squares((1, 0), (30, 20), (50, 50))
SCORES = ["0.500", "0.333", "0.400", "0.750", "0.750", "0.400", "2", "3"]  # see the worked example
PERFECT = ["1.000"] * 6 + ["2", "2"]


def test_two_files_score_as_the_program_of_the_challenge_says(oracle, command, tmp_path):
    rng = np.random.default_rng(7)
    write_regions(tmp_path / "a.json", random_regions(rng, 40))
    write_regions(tmp_path / "b.json", random_regions(rng, 50))
    # The package's own `neurofinder evaluate a.json b.json` does this with its default threshold, infinity.
    a, b = oracle.load(str(tmp_path / "a.json")), oracle.load(str(tmp_path / "b.json"))
    recall, precision = oracle.centers(a, b, 5)
    inclusion, exclusion = oracle.shapes(a, b, 5)
    expected = (recall, precision, 2 * recall * precision / (recall + precision), inclusion, exclusion)
    result = command("a.json", "b.json", "--threshold", 5)
    assert rows_of(result)["a"][:5] == [f"{value:.3f}" for value in expected]
    assert "less than 5 px" in result.stdout and not result.stderr


def test_a_submission_against_folders_of_truths(command, tmp_path):
    for name, scale in (("neurofinder.00.00", None), ("mouse.10", 2.0), ("mouse.9", 2.0)):
        write_regions(tmp_path / "recordings" / name / "regions" / "regions.json", TRUE)
        if scale is not None:
            write_json(tmp_path / "recordings" / name / "info.json", {"pixels-per-micron": scale})
        image = np.arange(3600.0).reshape(60, 60)
        write_prepared(tmp_path / "prepared", name, image, TRUE, scale)
    found = {"neurofinder.00.00": FOUND, "mouse.9": TRUE, "other": TRUE}
    # Another tool may keep the prefix that `write_submission` takes away.
    value = [{"dataset": name, "regions": regions_as_json(regions)} for name, regions in found.items()]
    write_json(tmp_path / "submission.json", value)

    for folder in ("recordings", "prepared"):
        result = command(folder, "submission.json")
        rows = rows_of(result)
        assert list(rows) == ["recording", "mouse.9", "mouse.10", "00.00", "mean", "std"]
        assert rows["00.00"] == SCORES and rows["mouse.9"] == PERFECT
        assert rows["mouse.10"] == ["0.000"] * 6 + ["2", "0"]
        assert rows["mean"][0] == "0.500" and rows["std"][0] == "0.500"
        warnings = result.stderr.splitlines()
        assert len(warnings) == 2
        assert "other" in warnings[0] and "left out" in warnings[0]
        assert "mouse.10" in warnings[1] and "nothing found" in warnings[1]
        # 5 µm are 10 px where there are 2 px in a micrometre, and 5 px where nobody knows.
        assert re.search(r"5 px.* in 00.00\.", result.stdout)
        assert re.search(r"10 px.* in mouse.9, mouse.10\.", result.stdout)
        assert rows_of(command(folder, "submission.json", "--threshold", 0.5))["00.00"][0] == "0.000"

    one = "recordings/neurofinder.00.00"
    for truth in (one, f"{one}/regions/regions.json", "prepared/regions_neurofinder.00.00.json"):
        assert rows_of(command(truth, "submission.json"))["00.00"] == SCORES


def test_other_kinds_of_labels_are_compared_too(command, tmp_path):
    export_imagej(tmp_path / "truth.zip", TRUE)
    export_labels(tmp_path / "found.tif", FOUND, (60, 60))
    assert rows_of(command("truth.zip", "found.tif"))["truth"] == SCORES
    write_submission(tmp_path / "submission.json", {"whatever": FOUND})
    assert rows_of(command("truth.zip", "submission.json"))["truth"] == SCORES


def test_an_estimate_with_rows_and_columns_exchanged_is_noticed(command, tmp_path):
    rng = np.random.default_rng(0)
    truth = [np.argwhere(np.ones((4, 4))) + corner for corner in rng.integers(0, (200, 100), (30, 2))]
    estimates = {
        "given": truth[5:] + truth[:2],
        "exchanged": [region[:, ::-1] for region in truth[5:]],
        "elsewhere": [region + (60, -40) for region in truth],
        "few": [region[:, ::-1] for region in truth[:4]],
    }
    for name, estimate in estimates.items():
        shifted = [region - np.minimum(region.min(axis=0), 0) for region in estimate]
        write_regions(tmp_path / f"{name}.json", shifted)
    write_regions(tmp_path / "truth.json", truth)
    for name in estimates:
        words = command("truth.json", f"{name}.json").stderr
        assert ("exchanged.json fit the labels much better" in words) == (name == "exchanged")
        assert words.count("\n") == (name == "exchanged")


def test_what_cannot_be_compared_is_refused_in_one_line(command, tmp_path):
    write_regions(tmp_path / "regions.json", TRUE)
    for name in ("a", "b"):
        write_prepared(tmp_path / "two", name, np.arange(3600.0).reshape(60, 60), TRUE)
    (tmp_path / "empty").mkdir()
    write_submission(tmp_path / "other.json", {"x": TRUE, "y": TRUE})
    entry = {"dataset": "a", "regions": []}
    files = {
        "damaged.json": "[{",
        "twice.json": json.dumps([entry, entry]),
        "mixed.json": json.dumps([entry, {"coordinates": [[1, 2]]}]),
        "bad.json": json.dumps([{"dataset": "a", "regions": [{"coordinates": [[1, -2]]}]}]),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name, words in {
        "nowhere.json": "nowhere.json",
        "damaged.json": "damaged.json.*JSON",
        "twice.json": "twice.json.* a twice",
        "mixed.json": "mixed.json.*dataset",
        "bad.json": "bad.json: a: neuron 0.*-2",
    }.items():
        with pytest.raises(UserError, match=words):
            read_estimate(tmp_path / name)
    with pytest.raises(UserError, match="empty.*no labels"):
        find_truths(tmp_path / "empty")
    assert_refused(command("nowhere", "regions.json"), "nowhere")
    assert_refused(command("two", "regions.json"), "regions.json", "one recording")
    assert_refused(command("two", "other.json"), "other.json", "a, b", "x, y")
    assert_refused(command("two", "other.json", "--threshold", "near"), "--threshold", "near")
    write_json(tmp_path / "two" / "neurofinder.a" / "regions" / "regions.json", [])
    with pytest.raises(UserError, match="two.* a twice"):
        find_truths(tmp_path / "two")


def test_torch_is_not_needed(command, tmp_path):
    write_regions(tmp_path / "regions.json", TRUE)
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    assert rows_of(command("regions.json", "regions.json"))["regions"] == PERFECT


def test_a_curve_is_the_scores_of_each_threshold():
    probability = np.zeros((30, 30))
    probability[2:8, 2:8], probability[20:26, 20:26], probability[2:8, 20:26] = 0.9, 0.6, 0.3
    neurons = {level: np.argwhere(probability == level) for level in (0.9, 0.6, 0.3)}

    thresholds = (0.2, 0.5, 0.7, 0.95)
    found = ([region for level, region in neurons.items() if level > threshold] for threshold in thresholds)
    curve = threshold_curve(found, [neurons[0.9], neurons[0.6]], None, thresholds)
    assert [row["probability"] for row in curve] == [0.2, 0.5, 0.7, 0.95]
    assert [row["recall"] for row in curve] == [1, 1, 0.5, 0]
    assert [row["precision"] for row in curve] == [2 / 3, 1, 1, 0]
    none = threshold_curve([[]] * 4, [neurons[0.9]], None, thresholds)
    assert [row["recall"] for row in mean_curve([curve, none])] == [0.5, 0.5, 0.25, 0]


def test_another_threshold_is_named_only_where_both_scores_together_gain():
    mean = {"combined": 0.5, "f1_iou50": 0.4}
    curve = [
        {"probability": 0.2, "combined": 0.60, "f1_iou50": 0.20},  # more found, but of the wrong shape
        {"probability": 0.3, "combined": 0.56, "f1_iou50": 0.41},
        {"probability": 0.4, "combined": 0.51, "f1_iou50": 0.42},
    ]
    assert better_threshold(curve, mean) == curve[1]
    assert better_threshold(curve[::2], mean) == curve[2]
    assert better_threshold(curve[::2], {"combined": 0.5, "f1_iou50": 0.42}) is None
    assert better_threshold(curve[:1], mean) is None
