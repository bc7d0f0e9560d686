"""The commands as a user runs them, in processes of their own, on small simulated recordings."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, assert_refused

from neurodetect import demo
from neurodetect.files import UserError
from neurodetect.regions import parse_regions, read_regions, regions_to_mask
from neurodetect.scoring import better_threshold
from neurodetect.synthetic import write_recording

SHAPE = (44, 58)
TRAINING = ("neurofinder.00.10", "neurofinder.00.2")
QUICK = ("--iterations", 3, "--batch-size", 10, "--stride", 10, "--device", "cpu")


@pytest.fixture(scope="module")
def lab(tmp_path_factory, run_command):
    """A folder with recordings, prepared: two labelled ones to train on, two to test on."""
    folder = tmp_path_factory.mktemp("lab")
    for seed, name in enumerate((*TRAINING, "neurofinder.00.00.test")):
        write_recording(folder, name, shape=SHAPE, n_frames=12, seed=seed, labelled=name in TRAINING)
    # A stack of another size: one test recording without a folder, labels or info.
    tifffile.imwrite(
        folder / "stack.tif",
        np.random.default_rng(0).integers(0, 4000, (5, 37, 41), np.uint16),
        photometric="minisblack",
    )
    train = run_command("preprocessing.py", *TRAINING, "train", cwd=folder)
    assert train.returncode == 0, train.stderr
    test = run_command("preprocessing.py", "neurofinder.00.00.test", "stack.tif", "test", cwd=folder)
    assert test.returncode == 0, test.stderr
    return folder


@pytest.fixture(scope="module")
def predicted(lab, run_command):
    """What conv2d_predict.py said after training and predicting in the lab."""
    result = run_command("conv2d_predict.py", "train", "test", *QUICK, cwd=lab)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_signal_that_comes_while_python_tidies_up_is_not_lost():
    code = """
import os, signal, time
from neurodetect import console
class Tidied:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
def main():
    Tidied()
    time.sleep(60)
console.run(main)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert result.returncode == 128 + signal.SIGTERM
    assert result.stderr == "-c: stopped\n"


def test_preprocessing_against_numpy_on_the_whole_stack(lab):
    for name in TRAINING:
        files = [lab / name / "images" / f"image{index:05d}.tiff" for index in range(12)]
        mean = np.mean([tifffile.imread(file) for file in files], axis=0, dtype=np.float64)
        expected = np.minimum(mean, mean.mean() + 3 * mean.std())
        image, mask = np.load(lab / f"train/X_{name}.npy"), np.load(lab / f"train/y_{name}.npy")
        assert image.dtype == np.float32 and image.shape == SHAPE
        np.testing.assert_allclose(image, expected, rtol=1e-6)
        regions = json.loads((lab / name / "regions/regions.json").read_text())
        painted = np.zeros(SHAPE, np.uint8)
        for region in regions:
            for row, column in region["coordinates"]:
                painted[row, column] = 1
        assert mask.dtype == np.uint8 and np.array_equal(mask, painted)
        prepared = read_regions(lab / f"train/regions_{name}.json", SHAPE)
        assert len(prepared) == len(regions)
        assert (lab / f"train/X_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (lab / "test").iterdir()} == {
        *("X_neurofinder.00.00.test.npy", "X_neurofinder.00.00.test.png"),
        *("X_stack.npy", "X_stack.png", "info_neurofinder.00.00.test.json"),
    }


def test_the_same_recordings_give_the_same_files(lab, run_command, tmp_path):
    result = run_command("preprocessing.py", *(lab / name for name in TRAINING), tmp_path)
    assert result.returncode == 0, result.stderr
    before, again = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (lab / "train", tmp_path)
    )
    assert again == before


def test_cross_validation_holds_groups_out(lab, command):
    groups = {name: f"animal {number}" for number, name in enumerate(TRAINING)}
    (lab / "groups.json").write_text(json.dumps(groups))
    output = ("--output", lab / "groups" / "scores.json")
    result = command(
        "conv2d_crossvalidation.py", lab / "train", "--groups", lab / "groups.json", *QUICK, *output
    )
    assert result.returncode == 0, result.stderr
    assert all(f"\nmean animal {number} " in result.stdout for number in range(len(TRAINING)))
    content = json.loads((lab / "groups" / "scores.json").read_text())
    assert content["settings"]["groups"] == groups and len(content["folds"]) == len(TRAINING)
    for row in content["recordings"]:
        assert content["group_means"][groups[row["name"]]]["combined"] == row["combined"]
    result = command("conv2d_crossvalidation.py", lab / "train", "--groups", "prefix", *QUICK, *output)
    assert result.returncode == 2 and "are of one group" in result.stderr


def test_cross_validation(lab, command):
    output = ("--output", lab / "crossvalidation.json")
    result = command("conv2d_crossvalidation.py", lab / "train", "--folds", 2, *QUICK, *output)
    assert result.returncode == 0, result.stderr
    content = json.loads((lab / "crossvalidation.json").read_text())
    # Natural order: 2 before 10.
    assert [row["name"] for row in content["recordings"]] == list(TRAINING[::-1])
    held_out = [name for fold in content["folds"] for name in fold["held_out"]]
    assert sorted(held_out) == sorted(TRAINING) and len(content["folds"]) == 2
    for fold in content["folds"]:
        assert fold["history"][-1]["iteration"] == 3
        assert 0 <= fold["history"][-1]["held_out_error"] <= 1
    for row in content["recordings"]:
        truth = read_regions(lab / row["name"] / "regions/regions.json", SHAPE)
        assert row["true"] == len(truth)
        assert all(0 <= row[key] <= 1 for key in ("pixel_error", "recall", "precision", "combined"))
        assert all(0 <= row[key] <= 1 for key in ("inclusion", "exclusion", "f1_iou50"))
        assert (lab / f"crossvalidation_{row['name']}.png").read_bytes().startswith(b"\x89PNG")
    combined = [row["combined"] for row in content["recordings"]]
    assert content["mean"]["combined"] == pytest.approx(np.mean(combined))
    assert content["std"]["combined"] == pytest.approx(np.std(combined, ddof=1))
    assert content["settings"]["iterations"] == 3 and content["settings"]["versions"]["torch"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (lab / "train").iterdir()}
    assert "groups" not in content["settings"] and "group_means" not in content
    assert content["inputs"] == {name: value for name, value in digests.items() if not name.endswith(".png")}
    curve = content["thresholds"]
    assert [row["probability"] for row in curve] == pytest.approx(np.linspace(0.1, 0.9, 17))
    (used,) = (row for row in curve if row["probability"] == 0.45)
    assert used["combined"] == pytest.approx(content["mean"]["combined"])
    better = better_threshold(curve, content["mean"])
    advice = f"--threshold {better['probability']:g}" if better else "TEST_FOLDER\n"
    assert result.stdout.count("--threshold") == (2 if better else 0) and advice in result.stdout
    for kind in ("training", "scores", "thresholds"):
        assert (lab / f"crossvalidation.{kind}.png").read_bytes().startswith(b"\x89PNG")
    page = (lab / "crossvalidation.report.html").read_text(encoding="utf-8")
    assert all(name in page for name in TRAINING) and "held out in fold 2" in page
    assert not list(lab.glob("*.unfinished"))
    lines = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    table = lines[lines.index("recording") :]
    assert table[1:5] == [*TRAINING[::-1], "mean", "std"]


def test_prediction(lab, predicted):
    submission = json.loads((lab / "submission.json").read_text())
    assert [entry["dataset"] for entry in submission] == ["00.00.test", "stack"]
    for entry, shape in zip(submission, (SHAPE, (37, 41)), strict=True):
        regions = parse_regions(entry["regions"], shape, entry["dataset"])
        mask = np.zeros(shape, int)
        for region in regions:
            mask[region[:, 0], region[:, 1]] += 1
        assert mask.max(initial=0) <= 1
        # Pixels above 0.45, and those beside them of over half of their mean.
        assert all(0.45 / 2 < region["probability"] <= 1 for region in entry["regions"])
    for name in ("neurofinder.00.00.test", "stack"):
        assert (lab / f"submission_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "recall" not in predicted.stdout  # no labels, no score
    assert "Next: " in predicted.stdout
    log = json.loads((lab / "submission.log.json").read_text())
    assert log["settings"]["seed"] == 0 and log["trained on"]["recordings"] == list(TRAINING[::-1])
    image = lab / "train" / f"X_{TRAINING[0]}.npy"
    assert log["inputs"]["training"][image.name] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert "stack" in (lab / "submission.report.html").read_text(encoding="utf-8")
    assert not list(lab.glob("*.unfinished"))


def test_neurons_for_other_programs(lab, predicted, run_command, tmp_path):
    # A network of three steps is sure of nothing; at a low threshold it finds something to be written.
    low = ("--threshold", 0.05, "--smallest-area", 1)
    weights = ("--model", lab / "model.pt", "--stride", 10, "--device", "cpu", *low)
    result = run_command(
        *("conv2d_predict.py", lab / "test", *weights, "--export", "labels,csv,imagej,suite2p", "--quiet"),
        cwd=tmp_path,
    )
    assert result.returncode == 0 and result.stdout == "", result.stderr
    (entry,) = (e for e in json.loads((tmp_path / "submission.json").read_text()) if e["dataset"] == "stack")
    assert entry["regions"]
    labels = tifffile.imread(tmp_path / "submission_stack_labels.tif")
    assert labels.max() == len(entry["regions"])
    for number, region in enumerate(entry["regions"], start=1):
        assert np.argwhere(labels == number).tolist() == region["coordinates"]
    rows = (tmp_path / "submission_stack.csv").read_text().splitlines()
    assert len(rows) == 1 + len(entry["regions"])
    for row, region in zip(csv.DictReader(rows), entry["regions"], strict=True):
        assert float(row["probability"]) == pytest.approx(region["probability"], abs=1e-3)
        assert 0.02 < region["probability"] <= 1  # less than the threshold at the edge of an evened neuron
    assert (tmp_path / "submission_stack_rois.zip").exists()
    assert (tmp_path / "submission_stack_suite2p" / "stat.npy").exists()
    verbose = run_command("conv2d_predict.py", lab / "test", *weights, "--verbose", cwd=tmp_path)
    assert verbose.returncode == 0 and "torch: " in verbose.stdout and verbose.stdout.startswith("[")


def test_saved_weights_and_the_same_seed_give_the_same_submission(lab, predicted, run_command, tmp_path):
    again = run_command(
        "conv2d_predict.py", lab / "train", lab / "test", *QUICK, "--save-model", "again.pt", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    expected = (lab / "submission.json").read_bytes()
    assert (tmp_path / "submission.json").read_bytes() == expected
    loaded = run_command(
        "conv2d_predict.py",
        *(lab / "test", "--model", lab / "model.pt", "--output", "loaded.json", "--stride", 10),
        *("--device", "cpu"),
        cwd=tmp_path,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert (tmp_path / "loaded.json").read_bytes() == expected


def test_labelled_test_data_is_scored_and_training_data_is_not_mistaken_for_it(
    lab, predicted, run_command, tmp_path
):
    result = run_command(
        "conv2d_predict.py", lab / "train", "--model", lab / "model.pt", *QUICK, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "combined" in result.stdout and "mean" in result.stdout
    for name in TRAINING:
        assert f"{name} was trained on" in result.stderr


def test_the_movie_of_a_submission(lab, predicted, run_command, tmp_path):
    result = run_command(
        "play_animation.py",
        *(lab / "neurofinder.00.00.test", "--submission", lab / "submission.json"),
        *("--save", tmp_path / "movie.gif"),
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "movie.gif").read_bytes().startswith(b"GIF8")


# What a user can get wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["preprocessing.py", "nowhere", "out"], ["nowhere", "no such file"]),
        (["preprocessing.py", ".", "out"], ["no frames"]),
        (["preprocessing.py", "empty", "out"], ["empty", "no frames"]),
        (["preprocessing.py", "constant", "out"], ["constant"]),
        (["preprocessing.py", TRAINING[0], f"./{TRAINING[0]}", "out"], [TRAINING[0], "rename"]),
        (["preprocessing.py", TRAINING[0], "a_file"], ["a_file"]),
        (["preprocessing.py", TRAINING[0]], ["required"]),
        (["conv2d_crossvalidation.py", "nowhere"], ["nowhere"]),
        (["conv2d_crossvalidation.py", "empty"], ["empty", "X_", "preprocessing.py"]),
        (["conv2d_crossvalidation.py", "test"], ["labels"]),
        (["conv2d_crossvalidation.py", "train", "--folds", "1"], ["--folds", "at least 2"]),
        (["conv2d_crossvalidation.py", "train", "--iterations", "-5"], ["--iterations", "-5"]),
        (["conv2d_crossvalidation.py", "train", "--stride", "0"], ["--stride"]),
        (["conv2d_crossvalidation.py", "train", "--stride", "21"], ["--stride", "20"]),
        (["conv2d_predict.py", "test", "train"], ["labels"]),
        (["conv2d_predict.py", "train", "empty"], ["empty"]),
        (["conv2d_predict.py", "test"], ["--model"]),
        (["conv2d_predict.py", "train", "test", "--export", "csv,excel"], ["excel", "imagej"]),
        (["conv2d_predict.py", "test", "--model", "nowhere.pt"], ["nowhere.pt"]),
        (["conv2d_predict.py", "test", "--model", "a_file"], ["a_file", "weights"]),
        (["conv2d_predict.py", "train", "test", "--output", "a_file/s.json"], ["a_file"]),
        (["play_animation.py", "nowhere", "--save", "a.gif"], ["nowhere"]),
    ],
)
def test_mistakes_end_in_one_line_and_write_nothing(lab, command, tmp_path, arguments, words):
    for name in ("train", "test", *TRAINING):
        (tmp_path / name).symlink_to(lab / name)
    (tmp_path / "a_file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "constant").mkdir()
    tifffile.imwrite(tmp_path / "constant" / "frame.tif", np.full((8, 9), 7, np.uint8))
    before = sorted(tmp_path.rglob("*"))
    assert_refused(command(*arguments), *words)
    # The folder of the output may have been made to see whether it can be; nothing is in it.
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "out"] == before


def test_a_labelled_recording_among_unlabelled_ones_is_enough(lab, run_command, tmp_path):
    for path in (lab / "train").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / f"y_{TRAINING[0]}.npy").unlink()
    result = run_command("conv2d_crossvalidation.py", tmp_path, *QUICK)
    warning, refusal = result.stderr.strip().splitlines()
    assert TRAINING[0] in warning and "no labels" in warning
    assert result.returncode == 2 and "two labelled" in refusal


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to whole consoles only")
def test_ctrl_c_ends_in_one_line_and_130(lab, tmp_path):
    command = [sys.executable, str(ROOT / "conv2d_predict.py"), str(lab / "train"), str(lab / "test")]
    # A shell that starts the tests in the background has them ignore Ctrl-C, and so all that they start.
    with subprocess.Popen(
        [*command, "--device", "cpu"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline().startswith("Training on 2 recordings")
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("conv2d_predict.py: stopped")
    assert "Traceback" not in errors
    # Nothing, or what --resume goes on from, if the training had begun.
    left = [path for path in tmp_path.rglob("*") if path.suffix != ".pt"]
    assert {path.name for path in left} <= {"submission.unfinished", "run.json"}


@pytest.mark.parametrize(
    "script", ["preprocessing.py", "conv2d_crossvalidation.py", "conv2d_predict.py", "play_animation.py"]
)
def test_help_explains_every_option_with_an_example(run_command, script):
    result = run_command(script, "--help")
    assert result.returncode == 0 and result.stderr == ""
    options = result.stdout.split("options:")[1]
    assert "example" in options and f"python {script}" in options
    # Heavy imports wait until the arguments are read.
    check = f"import sys, runpy; sys.argv = [{script!r}, '--help']\n"
    check += f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
    check += "except SystemExit: print([m for m in ('torch', 'matplotlib', 'skimage') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert loaded.stdout.splitlines()[-1] == "[]"


def test_no_command_needs_a_display(lab, run_command, monkeypatch, tmp_path):
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MPLBACKEND", "")
    if sys.platform.startswith("linux"):
        assert_refused(run_command("preprocessing.py", lab / TRAINING[0], tmp_path, "--show"), "display")
        assert_refused(run_command("play_animation.py", lab / TRAINING[0]), "--save")
    assert run_command("preprocessing.py", lab / TRAINING[0], tmp_path).returncode == 0


def test_the_demo_is_what_the_readme_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "python -m neurodetect.demo" in readme
    result = subprocess.run(
        [sys.executable, "-m", "neurodetect.demo", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0 and "FOLDER" in result.stdout


def test_the_demo_passes_the_device_on(monkeypatch, tmp_path):
    written, commands = [], []
    monkeypatch.setattr("neurodetect.synthetic.write_recording", lambda *_, **__: written.append(1))
    monkeypatch.setattr(demo, "run", lambda folder, *command: commands.append(command))
    monkeypatch.setattr(sys, "argv", ["demo", str(tmp_path), "--device", "cpu"])
    demo.main()
    with_device = {c[0] for c in commands if " ".join(c).count("--device cpu") == 1}
    assert with_device == {"conv2d_crossvalidation.py", "conv2d_predict.py"}
    for done in (written, commands):
        done.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["demo", str(tmp_path), "--device", "cuda"])
    with pytest.raises(UserError, match="--device cuda"):
        demo.main()
    assert not written and not commands


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_an_unwritable_folder_is_refused_before_the_work(lab, run_command, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    assert_refused(run_command("preprocessing.py", lab / TRAINING[0], tmp_path / "out"), "out")


def test_masks_are_those_of_the_prepared_regions(lab):
    for name in TRAINING:
        regions = read_regions(lab / "train" / f"regions_{name}.json", SHAPE)
        assert np.array_equal(regions_to_mask(regions, SHAPE), np.load(lab / "train" / f"y_{name}.npy"))
        assert Path(lab / "train" / f"info_{name}.json").exists()


def test_nothing_said_fails_for_its_encoding_or_for_want_of_a_terminal(lab, tmp_path):
    """Help has a µ, which an ASCII terminal lacks; who starts a command may close its output."""
    script = [sys.executable, "-m", "neurodetect.scoring"]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    said = subprocess.run([*script, "--help"], capture_output=True, env=plain)
    assert said.returncode == 0 and b"\\xb5m" in said.stdout
    words = [sys.executable, ROOT / "preprocessing.py", lab / "stack.tif", tmp_path / "out"]
    assert subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *map(str, words)]).returncode == 0
    assert (tmp_path / "out" / "X_stack.npy").exists()
