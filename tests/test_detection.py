from __future__ import annotations

import json

import numpy as np
import torch

from neurodetect import detection
from neurodetect.detection import (
    TrainingSettings,
    expected_area,
    neuron_area,
    train_network,
)
from neurodetect.network import NeuronNet
from neurodetect.patches import PatchSampler
from neurodetect.prepared import Prepared, write_prepared
from neurodetect.projection import standardize
from neurodetect.regions import move_regions, regions_to_mask, regions_to_separate_mask
from neurodetect.synthetic import simulate_regions
from neurodetect.weights import save_network


def labelled_with(areas, pixels_per_micron):
    image = np.zeros((2, 2), np.float32)
    return Prepared("a", image, image, [np.zeros((area, 2), int) for area in areas], pixels_per_micron)


def test_missing_pixels_are_neither_seen_nor_drawn(monkeypatch):
    """What training gets of a recording with a missing border, against samplers of its own making."""
    given = []
    monkeypatch.setattr(detection, "NeuronNet", lambda generator: torch.nn.Identity())
    monkeypatch.setattr(
        detection, "train", lambda _, windows, *a, held_out, **k: given.extend([windows, held_out])
    )
    image = np.random.default_rng(0).random((60, 50)).astype(np.float32)
    regions, valid = [np.array([[2, 3], [2, 4]]), np.array([[40, 20]])], np.ones(image.shape, bool)
    valid[:30] = False
    image[~valid] = np.median(image[valid])
    mask = regions_to_mask(regions, image.shape)
    recording = Prepared("a", image, mask, regions, None, valid)
    settings = TrainingSettings(1, 2, "2016", "keep", 5, "cpu", "float32")
    train_network([recording], settings, held_out=[recording])
    seen = (image - image[30:].mean()) / image[30:].std()
    for sampler, seed in zip(given, (5, 6), strict=True):
        windows, _ = sampler.sample(60)
        expected, _ = PatchSampler([seen], [mask], seed=seed, valid=[valid]).sample(60)
        torch.testing.assert_close(windows, expected)
    # Its only neuron pixels are missing: nothing to look at in between.
    bare = recording._replace(mask=mask * ~valid, regions=regions[:1])
    train_network([recording], settings, held_out=[bare])
    assert given[-1] is None


def test_windows_have_the_labels_where_the_cells_are(monkeypatch):
    """Labels counted from 1 are moved for training, but not by the recipe of 2016, nor others'."""
    given = []
    monkeypatch.setattr(detection, "NeuronNet", lambda generator: torch.nn.Identity())
    monkeypatch.setattr(detection, "train", lambda _, windows, *a, **k: given.append(windows))
    rng = np.random.default_rng(0)
    regions = simulate_regions((110, 100), 25, rng)
    image = (regions_to_mask(regions, (110, 100)) + rng.normal(0, 0.2, (110, 100))).astype(np.float32)
    counted_from_1 = move_regions(regions, (1, 1), image.shape)
    for recipe, labels, expected in (
        ("standard", counted_from_1, move_regions(counted_from_1, (-1, -1), image.shape)),
        ("standard", regions, regions),
        ("2016", counted_from_1, counted_from_1),
    ):
        recording = Prepared("a", image, regions_to_mask(labels, image.shape), labels, None)
        train_network([recording], TrainingSettings(1, 2, recipe, "keep", 5, "cpu", "float32"))
        standard = recipe == "standard"
        mask = (regions_to_separate_mask if standard else regions_to_mask)(expected, image.shape)
        same = PatchSampler([standardize(image)], [mask], seed=5, transpose=standard)
        for mine, theirs in zip(given.pop().sample(60), same.sample(60), strict=True):
            torch.testing.assert_close(mine, theirs)


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


def test_learned_thresholds_are_kept_with_the_weights_and_yield_to_the_option(command, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.1", "b.1"):
        write_prepared(tmp_path / "test", name, rng.random((60, 50)).astype(np.float32))
    network = NeuronNet(torch.Generator().manual_seed(0))
    network.output.weight.data *= 10  # as it starts, it is sure of nothing
    save_network(tmp_path / "model.pt", network, {"thresholds": {"a": 0.55}})
    found = {}
    for options in ((), ("--threshold", 0.55), ("--threshold", 0.45)):
        result = command("conv2d_predict.py", "test", "--model", "model.pt", "--stride", 10, *options)
        assert result.returncode == 0, result.stderr
        assert ("0.55 for a" in result.stdout) == (not options)
        content = json.loads((tmp_path / "submission.json").read_text())
        found[options] = {entry["dataset"]: entry["regions"] for entry in content}
    learned, high, usual = found.values()
    assert learned == {"a.1": high["a.1"], "b.1": usual["b.1"]}
    assert all(high[name] != usual[name] for name in high)
