from __future__ import annotations

import json
import os

import numpy as np
import pytest
import tifffile
from conftest import assert_refused
from PIL import Image

SHAPE = (20, 32)
LABELS = [{"coordinates": [[4, 20], [4, 21], [5, 20]]}, {"coordinates": [[12, 7]]}]


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 1000, (4, *SHAPE)).astype(np.uint16)


@pytest.fixture
def recording(tmp_path, frames):
    folder = tmp_path / "neurofinder.07.00"
    (folder / "images").mkdir(parents=True)
    (folder / "regions").mkdir()
    for index, frame in enumerate(frames):
        tifffile.imwrite(folder / "images" / f"image{index}.tiff", frame)
    (folder / "regions" / "regions.json").write_text(json.dumps(LABELS))
    (folder / "info.json").write_text(json.dumps({"rate-hz": 4, "pixels-per-micron": 0.8}))
    return folder


def gif(path):
    """Number of frames, width and height, duration of a frame in ms."""
    with Image.open(path) as movie:
        return movie.n_frames, movie.size, movie.info["duration"]


def test_labelled_recordings_have_two_panels_and_others_one(tmp_path, recording, run_command):
    assert run_command("play_animation.py", recording, "--save", tmp_path / "two.gif").returncode == 0
    (recording / "regions" / "regions.json").unlink()
    result = run_command("play_animation.py", recording, "--save", tmp_path / "one.gif")
    assert result.returncode == 0 and "4 frames of 4" in result.stdout
    count, (width, height), duration = gif(tmp_path / "two.gif")
    assert (count, duration) == (4, 250)
    assert gif(tmp_path / "one.gif")[1][1] == height
    assert 1.9 < width / gif(tmp_path / "one.gif")[1][0] < 2.1


def test_a_stack_some_of_its_frames_and_their_speed(tmp_path, frames, run_command):
    tifffile.imwrite(tmp_path / "stack.tif", frames, photometric="minisblack")
    result = run_command(
        "play_animation.py", tmp_path / "stack.tif", "--save", tmp_path / "movie.gif",
        "--frames", "2:3", "--speed", "0.1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    count, _, duration = gif(tmp_path / "movie.gif")
    assert (count, duration) == (2, 330)  # 30 frames a second, slowed down ten times


def test_a_submission_takes_the_place_of_the_labels(tmp_path, recording, run_command):
    submission = tmp_path / "submission.json"
    entries = [{"dataset": "00.01", "regions": []}, {"dataset": "07.00", "regions": LABELS[:1]}]
    submission.write_text(json.dumps(entries))
    options = ("--submission", submission, "--save", tmp_path / "found.gif")
    result = run_command("play_animation.py", recording, *options)
    assert result.returncode == 0, result.stderr
    run_command("play_animation.py", recording, "--save", tmp_path / "labelled.gif")
    pictures = [np.asarray(Image.open(tmp_path / n).convert("RGB")) for n in ("found.gif", "labelled.gif")]
    orange = [(p[..., 0].astype(int) - p[..., 2] > 100).sum() for p in pictures]
    assert pictures[0].shape == pictures[1].shape
    assert 0 < orange[0] < orange[1]  # one neuron of the two

    labels = recording / "regions" / "RoiSet.zip"  # which of the two counts does not matter here
    labels.write_bytes(b"")
    assert run_command("play_animation.py", recording, *options).returncode == 0
    labels.unlink()

    submission.write_text(json.dumps(entries[:1]))
    assert_refused(run_command("play_animation.py", recording, *options), "07.00", "only of 00.01")
    entries[1]["regions"] = [{"coordinates": [[4, SHAPE[1]]]}]
    submission.write_text(json.dumps(entries))
    assert_refused(run_command("play_animation.py", recording, *options), "07.00", "neuron 0", "[4, 32]")


def test_mistakes_are_one_line(tmp_path, recording, run_command, monkeypatch):
    def refused(*arguments):
        return run_command("play_animation.py", *arguments)

    save = ("--save", tmp_path / "movie.gif")
    assert_refused(refused(tmp_path / "nowhere", *save), "nowhere", "check the path")
    assert_refused(refused(recording, "--save", tmp_path / "movie.avi"), "movie.avi", ".gif or .mp4")
    assert_refused(refused(recording, *save, "--frames", "9:12"), "frames 1 to 4")
    assert_refused(refused(recording, *save, "--frames", "3"), "FIRST:LAST")
    assert_refused(refused(recording, *save, "--frames", "0:3"), "FIRST:LAST")
    assert_refused(refused(recording, *save, "--speed", "0"), "--speed")
    monkeypatch.setenv("MPLBACKEND", "agg")
    assert_refused(refused(recording), "display", "--save")
    assert not (tmp_path / "movie.gif").exists()


@pytest.mark.skipif(os.name == "nt", reason="stands in for ffmpeg with a shell script")
@pytest.mark.parametrize("reads", ["cat > /dev/null", "true"])
def test_a_failing_ffmpeg_is_one_line(tmp_path, recording, run_command, monkeypatch, reads):
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{reads}\necho 'Unknown encoder h264' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    result = run_command("play_animation.py", recording, "--save", tmp_path / "movie.mp4")
    *progress, message = result.stderr.strip().splitlines()  # a bar comes before it on a slow machine
    assert not any("ffmpeg" in line for line in progress)
    assert result.returncode == 2 and "Unknown encoder h264" in message and ".gif" in message
    assert not list(tmp_path.glob("*.mp4"))


def test_help_names_every_option(run_command):
    result = run_command("play_animation.py", "--help")
    assert result.returncode == 0
    options = ("RECORDING", "--submission", "--frames", "--speed", "--save", "default", "example")
    for word in (*options, "space", "arrows", "+ and -", "brightness", "slider"):
        assert word in result.stdout
