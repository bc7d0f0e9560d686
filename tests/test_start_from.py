"""Training that starts from a trained network: what it begins with, what is known of it, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import assert_refused

from neurodetect import console
from neurodetect.network import SHARED
from neurodetect.synthetic import write_recording
from neurodetect.training import LEARNING_RATES
from neurodetect.weights import load_network, trainings, was_trained_on

QUICK = ("--iterations", 2, "--batch-size", 4, "--stride", 20, "--device", "cpu", "--precision", "float32")


@pytest.fixture
def lab(command, tmp_path):
    """Prepared recordings in `first`, a network trained on them, and others in `second` and `test`."""
    for number, folder in enumerate(("first", "first", "second", "second", "test")):
        write_recording(tmp_path, f"mouse{number}", shape=(44, 58), n_frames=6, seed=number)
        assert command("preprocessing.py", f"mouse{number}", folder).returncode == 0
    assert command("conv2d_predict.py", "first", "test", *QUICK, "--save-model", "old.pt").returncode == 0
    return tmp_path


def test_training_begins_with_the_weights_and_remembers_where_they_come_from(lab, command):
    run = ("conv2d_predict.py", "second", "test", *QUICK[2:], "--iterations", 1, "--start-from", "old.pt")
    result = command(*run, "--save-model", "new.pt", "--output", "new.json")
    assert result.returncode == 0, result.stderr
    (old, _), (new, settings) = load_network("old.pt"), load_network("new.pt")
    moved = 0.0
    for name, before in old.named_parameters():
        kind = name.split(".")[0].rstrip("123456")
        # Adam's first step is of the size of the rate for every weight, whatever its gradient.
        rate = 0.0 if name == SHARED else LEARNING_RATES[kind]
        step = (dict(new.named_parameters())[name] - before).abs()
        assert (step <= rate + 1e-6 * (name != SHARED)).all(), name
        moved = max(moved, step.max().item())
    assert moved > 0
    assert settings["recordings"] == ["mouse2", "mouse3"]
    assert settings["started from"]["recordings"] == ["mouse0", "mouse1"]
    assert len(list(trainings(settings))) == 2
    for name in ("mouse0", "neurofinder.mouse0", "mouse3", "mouse1.rows0-20.columns0-30"):
        assert was_trained_on(settings, name, "")
    assert not was_trained_on(settings, "mouse4", "")
    assert was_trained_on(settings, "other", settings["started from"]["inputs"]["X_mouse0.npy"])
    log = json.loads((lab / "new.log.json").read_text())
    assert log["trained on"] == settings and "old.pt" in log["inputs"]["model"]
    again = command(*run, "--save-model", "again.pt", "--output", "new.json")
    assert again.returncode == 0 and (lab / "again.pt").read_bytes() == (lab / "new.pt").read_bytes()


def test_what_was_trained_on_earlier_is_marked_when_it_is_predicted(lab, command):
    run = ("conv2d_predict.py", *QUICK, "--start-from", "old.pt", "--save-model", "new.pt")
    result = command(*run, "second", "first")
    assert result.returncode == 0, result.stderr
    assert "mouse0 was trained on" in result.stderr and "mouse1 was trained on" in result.stderr


def test_cross_validation_holds_nothing_out_that_the_weights_know(lab, command):
    run = ("conv2d_crossvalidation.py", *QUICK, "--start-from", "old.pt")
    assert_refused(command(*run, "first"), "mouse0", "was trained on", "old.pt", "leave it out")
    # The same image under another name is no new recording.
    for file in (lab / "first").iterdir():
        if "mouse0" in file.name:
            shutil.copy(file, lab / "second" / file.name.replace("mouse0", "renamed"))
    assert_refused(command(*run, "second"), "renamed", "was trained on")
    for file in (lab / "second").glob("*renamed*"):
        file.unlink()
    result = command(*run, "second")
    assert result.returncode == 0, result.stderr
    scores = json.loads((lab / "crossvalidation.json").read_text())
    assert [row["name"] for row in scores["recordings"]] == ["mouse2", "mouse3"]
    assert scores["started from"]["recordings"] == ["mouse0", "mouse1"]


def test_each_fold_starts_from_the_weights_anew(lab, command):
    """The second fold's network is that of a run which trains on the same recording alone."""
    run = ("--start-from", "old.pt", *QUICK)
    assert command("conv2d_crossvalidation.py", "second", *run).returncode == 0
    folds = json.loads((lab / "crossvalidation.json").read_text())["folds"]
    for fold in folds:
        (held_out,) = fold["held_out"]
        other = "mouse2" if held_out == "mouse3" else "mouse3"
        assert command("preprocessing.py", other, f"only_{other}").returncode == 0
        result = command("conv2d_predict.py", f"only_{other}", "test", *run, "--save-model", "one.pt")
        assert result.returncode == 0, result.stderr
        assert load_network("one.pt")[1]["loss"] == fold["history"][-1]["loss"]


def test_a_run_is_resumed_with_the_weights_that_it_began_with_only(lab, command, monkeypatch):
    from neurodetect import detection

    run = ("conv2d_predict.py", "second", "test", *QUICK, "--start-from", "old.pt", "--save-model", "new.pt")
    with monkeypatch.context() as patch:
        patch.setattr(detection, "detect", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command(*run).returncode == 130
    shutil.copy("new.pt", "kept.pt")
    shutil.move("old.pt", "moved.pt")
    shutil.copy("new.pt", "old.pt")
    assert_refused(command(*run, "--resume"), "old.pt", "has changed")
    shutil.move("moved.pt", "old.pt")
    result = command(*run, "--resume")
    assert result.returncode == 0, result.stderr
    assert (lab / "new.pt").read_bytes() == (lab / "kept.pt").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "old.pt", "--start-from", "old.pt"), ("nothing is trained",)),
        (("--start-from", "old.pt", "--save-model", "./old.pt"), ("would be replaced", "--save-model")),
        (("--start-from", "missing.pt"), ("missing.pt", "cannot be read")),
    ],
)
def test_mistakes(command, tmp_path, options, words):
    write_recording(tmp_path, "mouse", shape=(44, 58), n_frames=3)
    assert command("preprocessing.py", "mouse", "train").returncode == 0
    folders = ("train",) if "--model" in options else ("train", "train")
    assert_refused(command("conv2d_predict.py", *folders, *QUICK, *options), *words)


def test_background_and_iterations_are_those_that_suit_the_weights(monkeypatch, capsys):
    def settings(*options, weights=None):
        monkeypatch.setattr("sys.argv", ["conv2d_crossvalidation.py", "train", *options])
        return console.read_settings(console.crossvalidation_options("."), weights)[0]

    new, old = settings(), settings("--start-from", "a.pt", weights={"background": "subtract"})
    assert old.iterations < new.iterations and settings("--iterations", "7").iterations == 7
    assert settings("--recipe", "2016").iterations == 10_000  # as the entry was described
    assert (new.background, old.background) == ("normalize", "subtract")
    assert not capsys.readouterr().err
    other = settings("--start-from", "a.pt", "--background", "keep", weights={"background": "subtract"})
    assert other.background == "subtract" and "which counts" in capsys.readouterr().err


def test_weights_with_a_malformed_past_are_refused(command, tmp_path):
    write_recording(tmp_path, "mouse", shape=(44, 58), n_frames=3)
    assert command("preprocessing.py", "mouse", "train").returncode == 0
    assert command("conv2d_predict.py", "train", "train", *QUICK, "--save-model", "a.pt").returncode == 0
    content = torch.load("a.pt", weights_only=True)
    for past in ("text", {"recordings": 3}, {"inputs": []}, {"started from": {"inputs": 1}}):
        content["settings"]["started from"] = past
        torch.save(content, "a.pt")
        refused = command("conv2d_predict.py", "train", "--model", "a.pt", "--stride", 20)
        assert_refused(refused, "a.pt", "settings that no training has")
