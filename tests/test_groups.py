"""What is learned of each group of recordings, and that it is used for those alone."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from neurodetect import detection, groups
from neurodetect.detection import DetectionSettings, TrainingSettings, find_in_map, predict_map, train_network
from neurodetect.files import UserError
from neurodetect.groups import alike, fine_tune, kin, learn_thresholds, settle
from neurodetect.network import SHARED, NeuronNet, TiedNet
from neurodetect.patches import PatchSampler
from neurodetect.prepared import Prepared, write_prepared
from neurodetect.regions import regions_to_mask
from neurodetect.resume import Checkpoint
from neurodetect.weights import load_network, save_network

UNSETTLED = DetectionSettings(4, "watershed", None, None, "normalize", "cpu", "float32")


def blobs(levels, seed):
    """A map of discs, one for each level, and the discs' pixels."""
    rng, probability, regions = np.random.default_rng(seed), np.zeros((90, 90), np.float32), []
    for cell, level in zip(rng.permutation(36), levels, strict=False):
        center = 7 + 15 * np.array(divmod(int(cell), 6))
        pixels = np.argwhere(np.hypot(*(np.indices(probability.shape) - center[:, None, None])) <= 5)
        probability[tuple(pixels.T)] = level
        regions.append(pixels)
    return probability, regions


def laboratory(name, marked, seed, faint=0.33):
    """A recording with twenty bright cells and ten faint ones, which are labelled if `marked`; its map."""
    probability, regions = blobs([0.8] * 20 + [faint] * 10, seed)
    labelled = regions[:20] + (regions[20:] if marked else [])
    mask = regions_to_mask(labelled, probability.shape)
    return Prepared(name, probability, mask, labelled, None), probability


def test_each_laboratory_gets_the_threshold_of_its_own_labels():
    """Where faint cells are labelled a lower one finds them, where they are not it would find false ones."""
    pairs = [laboratory(name, name[0] == "a", seed) for seed, name in enumerate(["a.1", "b.1", "a.2", "b.2"])]
    maps, strides = {recording.name: probability for recording, probability in pairs}, set()

    def predict(recording, settings):
        strides.add(settings.stride)
        return maps[recording.name]

    recordings = [recording for recording, _ in pairs]
    learned = learn_thresholds(predict, recordings, UNSETTLED)
    assert learned.keys() == {"a"} and 0.2 <= learned["a"] < 0.33 and strides == {groups.LEARNED_STRIDE}
    for name, found in ("neurofinder.a.9", 30), ("b.9", 20), ("c.9", 20):
        recording, probability = laboratory(name, True, 9)
        assert len(find_in_map(recording, probability, settle(UNSETTLED, name, learned), {})) == found
    # What is not labelled, and fairly probable, needs a higher one.
    strict = [laboratory(name, False, seed, 0.52) for seed, name in enumerate(["d.1", "d.2"])]
    maps.update((recording.name, probability) for recording, probability in strict)
    (threshold,) = learn_thresholds(predict, [recording for recording, _ in strict], UNSETTLED).values()
    assert 0.5 < threshold <= 0.6
    # One recording tells too little; a threshold that is given, and plain components, are not touched.
    for few in (recordings[:1], [recordings[0], *recordings[1::2]], []):
        assert learn_thresholds(predict, few, UNSETTLED) == {}
    for fixed in replace(UNSETTLED, threshold=0.45), replace(UNSETTLED, regions="connected", threshold=0.5):
        assert learn_thresholds(predict, recordings, fixed) == {} and settle(fixed, "a.9", learned) == fixed
    # Names of which no two begin alike say nothing: then all are of one laboratory.
    alone = [recording._replace(name=f"a{number}") for number, recording in enumerate(recordings[::2])]
    maps.update((new.name, maps[old.name]) for new, old in zip(alone, recordings[::2], strict=True))
    assert learn_thresholds(predict, alone, UNSETTLED) == {groups.ALL_ALIKE: learned["a"]}
    assert settle(UNSETTLED, "anything", {groups.ALL_ALIKE: 0.3}).threshold == 0.3


def test_a_large_group_is_looked_at_in_part(monkeypatch):
    seen = []
    monkeypatch.setattr(
        detection, "find_by_threshold", lambda _, thresholds, *__, **___: [[]] * len(thresholds)
    )
    recordings = [random_recording(f"a_{number:02}", 0) for number in range(20)]
    assert learn_thresholds(lambda recording, _: seen.append(recording.name), recordings, UNSETTLED) == {}
    assert seen == [f"a_{number:02}" for number in range(0, 20, 3)]


# Layers of a group's own

TRAINING = TrainingSettings(250, 100, "standard", "normalize", 0, "cpu", "float32")


class Stand:
    """Stands for a network with one small weight."""

    def __init__(self, weight):
        self.weight, self.own = weight, {}

    def small_weights(self):
        return {"bias": torch.tensor([self.weight])}


@pytest.fixture
def trained(monkeypatch):
    """What small layers were trained on, in order; each training makes a weight of 10 of it."""
    trainings = []

    def train(on, settings, *, start, checkpoint, description):
        assert start.own == {} and description is checkpoint is None and start.weight == 2.0
        assert settings == replace(TRAINING, iterations=25)
        trainings.append([recording.name for recording in on])
        return Stand(10.0), []

    monkeypatch.setattr(groups, "train_network", train)
    return trainings


def test_a_group_gets_layers_a_part_of_the_way_to_those_trained_on_it_alone(trained):
    recordings = [random_recording(name, 0) for name in ("a.1", "b.1", "a.2", "c.1", "b.2")]
    network = Stand(2.0)
    fine_tune(network, recordings, alike(recordings), TRAINING)
    assert trained == [["a.1", "a.2"], ["b.1", "b.2"]] and network.own.keys() == {"a", "b"}
    assert all(own["bias"].item() == pytest.approx(2 + 0.35 * 8) for own in network.own.values())


@pytest.mark.parametrize(
    ("new", "share"), [("neurofinder.04.00.test", 0.7), ("04.02", 0.35), ("04.0", 0.35), ("y", 0.7)]
)
def test_a_recording_named_after_one_that_was_trained_on_is_taken_for_like_it(trained, new, share):
    names = ("neurofinder.04.00", "04.01", "x.1", "y.rows0-50.columns0-60")
    recordings = [random_recording(name, 0) for name in names]
    network = Stand(2.0)
    fine_tune(network, recordings, kin([new], recordings), TRAINING)
    (own,) = network.own.values()
    assert own["bias"].item() == pytest.approx(2 + share * 8)


def test_layers_are_trained_only_where_there_is_something_to_learn(trained):
    a, b, c = (random_recording(name, 0) for name in ("a.1", "b.1", "a.2"))
    # Without a neuron where the network looks there are no balanced batches.
    empty = b._replace(name="d.1", mask=0 * b.mask, regions=[])
    hidden = b._replace(name="d.2", valid=b.mask == 0)
    network = Stand(2.0)
    fine_tune(network, [a, b, c], {"a": [a, c]}, replace(TRAINING, recipe="2016"))
    fine_tune(network, [a, c, empty], {"a": [a, c], "d": [empty]}, TRAINING)  # a is all that it knows
    fine_tune(network, [a, c], {groups.ALL_ALIKE: [a, c]}, TRAINING)
    assert trained == [] and network.own == {}
    fine_tune(network, [a, b, empty, hidden], {"a": [a, empty], "d": [empty, hidden]}, TRAINING)
    assert trained == [["a.1"]] and network.own.keys() == {"a"}


def test_layers_are_gone_on_with_where_a_run_was_stopped(small, tmp_path, monkeypatch):
    recordings = [random_recording(name, seed) for seed, name in enumerate(("a.1", "a.2", "b.1", "b.2"))]
    training = replace(TRAINING, iterations=40, batch_size=4)
    fine_tune(small, recordings, alike(recordings), training)
    expected, small.own = small.own, {}

    sample, drawn = PatchSampler.sample, []
    stop_at = 6  # in the middle of the second of two times four batches

    def counted(sampler, count):
        drawn.append(count)
        if len(drawn) == stop_at:
            signal.raise_signal(signal.SIGINT)
        return sample(sampler, count)

    def checkpoints(name):
        return Checkpoint(tmp_path / f"{name}.pt", name, 600)

    monkeypatch.setattr(PatchSampler, "sample", counted)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(small, recordings, alike(recordings), training, checkpoints=checkpoints)
    assert small.own == {} and sorted(path.stem for path in tmp_path.iterdir()) == [
        "fine-tuning a",
        "fine-tuning b",
    ]
    fine_tune(small, recordings, alike(recordings), training, checkpoints=checkpoints)
    assert len(drawn) == 8
    for group, weights in expected.items():
        assert all(torch.equal(weight, small.own[group][name]) for name, weight in weights.items())
    dense = small.dense.weight
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 13 * sum(
        p.numel() for p in small.parameters() if p is not dense
    )


def test_of_a_new_recording_the_most_alike_ones_are_those_that_share_most_of_its_name():
    names = ["04.00", "04.01", "neurofinder.02.00", "02.01", "mouse1_monday", "mouse10_monday"]
    recordings = [random_recording(name, 0) for name in names]
    for name, group, of in (
        ("neurofinder.04.00.test", "04.00", ["04.00"]),
        ("04.02.test", "04", ["04.00", "04.01"]),
        ("02.00.test", "02.00", ["neurofinder.02.00"]),
        ("mouse1-friday", "mouse1", ["mouse1_monday"]),
        ("mouse1", "mouse1", ["mouse1_monday"]),
    ):
        assert {g: [r.name for r in of] for g, of in kin([name], recordings).items()} == {group: of}
    assert kin(["mouse", "03.00", "4.00", "_", ""], recordings) == {}
    more = [*recordings, *(random_recording(name, 0) for name in ("04.02", "04.01.b", "05.00.a", "05.00.b"))]
    for name, group, count in (("04.00.test", "04", 4), ("04.01.c", "04", 4), ("05.00.c", "05.00", 2)):
        assert {g: len(of) for g, of in kin([name], more).items()} == {group: count}
    assert kin(names, recordings) == {}  # what was learned from is not new


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    return NeuronNet(torch.Generator().manual_seed(0)).eval()


def random_recording(name, seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((50, 60), np.uint8)
    mask[20:30, 15:35] = 1
    image = (rng.random(mask.shape) + mask).astype(np.float32)
    return Prepared(name, image, mask, [np.argwhere(mask)], None)


def test_only_small_layers_learn(small):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    small.own = {"a": small.small_weights()}
    settings = replace(TRAINING, iterations=2, batch_size=4)
    tuned, _ = train_network([random_recording("a.1", 0)], settings, start=small)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == before.keys() - {SHARED} == tuned.small_weights().keys() and tuned.own == {}


def test_dense_layers_that_are_tied_stay_so(small):
    settings = replace(TRAINING, iterations=2, batch_size=4)
    recordings = [random_recording(name, seed) for seed, name in enumerate(("a.1", "b.1"))]
    network, _ = train_network(recordings, settings)
    fine_tune(network, recordings, {"a": recordings[:1]}, settings)
    of_a = network.for_group("a")
    further, _ = train_network(recordings[:1], settings, start=network)
    assert type(network) is type(of_a) is type(further) is TiedNet
    assert torch.equal(further.dense.weight, network.dense.weight)
    assert not torch.equal(further.output.weight, of_a.output.weight)
    by_2016, _ = train_network(recordings[:1], replace(settings, recipe="2016"), start=network)
    assert type(by_2016) is NeuronNet and torch.equal(by_2016.dense.weight, of_a.untied().dense.weight)
    untied, _ = train_network(recordings, settings, start=by_2016)
    assert type(untied) is NeuronNet


def test_a_training_on_one_group_starts_from_the_layers_that_it_has(small):
    small.own = {"a": {name: value + 1 for name, value in small.small_weights().items()}}
    settings = replace(TRAINING, iterations=1, batch_size=4)
    for names, begins_at in (("a.1", "a.2"), 1), (("a.1", "b.1"), 0), (("b.1",), 0), (("ab.1",), 0):
        tuned, _ = train_network([random_recording(name, 0) for name in names], settings, start=small)
        for name, value in tuned.small_weights().items():
            torch.testing.assert_close(value, small.state_dict()[name] + begins_at, atol=2e-3, rtol=2e-3)


def test_a_recording_is_found_by_the_layers_of_its_group(small):
    generator = torch.Generator().manual_seed(1)
    other = NeuronNet(generator)
    other.load_state_dict({**other.state_dict(), SHARED: small.dense.weight.detach()})
    small.own = {"b": other.small_weights()}
    assert small.for_group("a") is small
    own = small.for_group("b")
    assert own.dense.weight.data_ptr() == small.dense.weight.data_ptr() and not own.training
    settings = replace(UNSETTLED, stride=10)
    maps = {}
    for name in ("neurofinder.b.7", "a.7"):
        recording = random_recording(name, 7)
        maps[name] = predict_map(small, recording, settings)
        expected = predict_map(other if "b" in name else small.for_group("a"), recording, settings)
        np.testing.assert_array_equal(maps[name], expected)
    assert not np.allclose(*maps.values())


@pytest.mark.parametrize("kind", [NeuronNet, TiedNet])
def test_own_layers_are_kept_with_the_weights(small, tmp_path, kind):
    path = tmp_path / "model.pt"
    small = kind(torch.Generator().manual_seed(0))
    own = {name: value + 1 for name, value in small.small_weights().items()}
    small.own = {"b": own}
    save_network(path, small, {})
    read, _ = load_network(path)
    assert type(read) is type(read.for_group("b")) is kind
    assert read.own.keys() == {"b"} and all(torch.equal(read.own["b"][name], own[name]) for name in own)
    for wrong, words in (
        ({"b": 3}, "plain float32"),
        ({3: own}, "groups of recordings"),
        (7, "groups of recordings"),
        ({"b": {**own, "output.bias": torch.full_like(own["output.bias"], torch.nan)}}, "not finite"),
        ({"b": {**own, "output.bias": own["output.bias"][:3]}}, "another network"),
        ({"b": {"output.bias": own["output.bias"]}}, "another network"),
        ({"b": {**own, "output.bias": own["output.bias"].double()}}, "plain float32"),
    ):
        torch.save({**torch.load(path, weights_only=True), "own": wrong}, tmp_path / "other.pt")
        with pytest.raises(UserError, match=rf"other\.pt: holds .*{words}"):
            load_network(tmp_path / "other.pt")


def test_a_model_finds_later_what_it_found_when_it_was_trained(command, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "LEARNED_STRIDE", 20)
    for seed, name in enumerate("train/a.1 train/a.2 train/b.1 train/c.1 test/a.9 test/b.9 test/d.9".split()):
        recording = random_recording(name, seed)
        labels = recording.regions if "train" in name else None
        write_prepared(tmp_path / name[:-4], name[-3:], recording.image, labels, None)
    options = ("--iterations", 3, "--batch-size", 4, "--stride", 20, "--device", "cpu", "--seed", 0)
    result = command("conv2d_predict.py", "train", "test", *options)
    assert result.returncode == 0 and "Fine-tuned for a, b\n" in result.stdout, result.stderr
    first = (tmp_path / "submission.json").read_bytes()
    again = command("conv2d_predict.py", "test", "--model", "model.pt", *options[4:])
    assert again.returncode == 0 and "Fine-tuned for a, b\n" in again.stdout
    assert (tmp_path / "submission.json").read_bytes() == first
    # Held out, a recording is found by what was learned of its like, and nothing else is learned for it.
    result = command("conv2d_crossvalidation.py", "train", *options[:-2], "--folds", 4)
    assert result.returncode == 0, result.stderr
    folds = json.loads((tmp_path / "crossvalidation.json").read_text())["folds"]
    assert all(fold["fine_tuned_for"] == (["a"] if "a" in fold["held_out"][0] else []) for fold in folds)
