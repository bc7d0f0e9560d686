"""Commands killed at random moments and resumed end with the files of a run in one go, byte for byte."""

from __future__ import annotations

import os
import random
import runpy
import shutil
import signal
import sys
import time
import traceback
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import sklearn.model_selection  # noqa: F401  loaded here, the commands need not load it again and again
import torch
from conftest import ROOT

from neurodetect import console, network, training
from neurodetect.prepared import write_prepared
from neurodetect.projection import clip_bright, mean_projection
from neurodetect.synthetic import simulate_frames, simulate_regions
from neurodetect.view import figures  # noqa: F401

SHAPE = (42, 46)
TRAINING = ("--iterations", "8", "--batch-size", "4", "--stride", "20", "--device", "cpu", "--seed", "3")
COMMANDS = {
    "conv2d_crossvalidation.py": ("train", "--folds", "2"),
    "conv2d_predict.py": ("train", "test"),
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS_EACH = 6  #: a run is killed up to so many times before it may end

torch.optim.Adam([torch.zeros(1)])  # loads a good part of PyTorch

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start commands quickly")


def child(folder: Path, script: str, arguments: tuple[str, ...]) -> None:
    """Run a command as a user's shell would, in a process that has loaded the heavy modules already."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open("log.txt", "a", buffering=1)
    torch.set_num_threads(1)
    network.HIDDEN_UNITS = 100  # the weights are 16 MB instead of 325
    training.HELD_OUT_WINDOWS = 10
    sys.argv = [str(ROOT / script), *arguments]
    main = runpy.run_path(sys.argv[0])["main"]
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.run(main)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def run(folder: Path, script: str, *arguments: str, kill: tuple[float, int] | None = None) -> int:
    """The command's exit code, negative for a signal; `kill` is after how many seconds, with which signal."""
    process = get_context("fork").Process(target=child, args=(folder, script, arguments))
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C before the command begins is not its affair
    process.start()
    signal.signal(signal.SIGINT, ours)
    if kill is not None:
        process.join(kill[0])
        if process.is_alive():
            os.kill(process.pid, kill[1])
    process.join(120)
    assert process.exitcode is not None, "the command hangs"
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the log, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "log.txt"
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    for seed, name in enumerate(("train/a", "train/b", "test/c", "test/d", "train/a.2")):
        rng = np.random.default_rng(seed)
        regions = simulate_regions(SHAPE, 5, rng)
        image = clip_bright(mean_projection(simulate_frames(regions, SHAPE, 10, rng)))
        write_prepared(folder / Path(name).parent, Path(name).name, image, regions, 1.0)
    return folder


@pytest.mark.parametrize("script", COMMANDS)
def test_a_run_that_is_killed_and_resumed_is_the_run_in_one_go(prepared, tmp_path, script, request):
    arguments = (*COMMANDS[script], *TRAINING)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(prepared, whole)
    began = time.monotonic()
    assert run(whole, script, *arguments) == 0, (whole / "log.txt").read_text()
    duration = time.monotonic() - began
    expected = contents(whole)
    assert ("Fine-tuned for a" in (whole / "log.txt").read_text()) == (script == "conv2d_predict.py")

    chance = random.Random(0)
    kills = resumed = 0
    while kills < request.config.getoption("--kills") / len(COMMANDS):
        shutil.rmtree(killed, ignore_errors=True)
        shutil.copytree(prepared, killed)
        for _ in range(KILLS_EACH):
            kill = chance.uniform(0, 0.6 * duration), chance.choice(SIGNALS)
            code = run(killed, script, *arguments, "--resume", "--checkpoint-every", "0", kill=kill)
            log = (killed / "log.txt").read_text() if (killed / "log.txt").exists() else ""
            if code == 0:
                break
            assert code in (-kill[1], 128 + kill[1]), log
            assert "Traceback" not in log, log
            kills += 1
            resumed += any(path.suffix in (".pt", ".npy") for path in killed.glob("*.unfinished/*"))
        assert run(killed, script, *arguments, "--resume") == 0, (killed / "log.txt").read_text()
        assert contents(killed) == expected
    assert resumed > kills / 4  # otherwise nothing was tested
    print(f"{script}: {kills} kills, {resumed} of them with work to resume")


def test_what_is_resumed_has_to_be_the_same_run(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    predict = ("conv2d_predict.py", "train", "test", *TRAINING)
    assert run(tmp_path, *predict, "--keep-checkpoint") == 0
    unfinished = tmp_path / "submission.unfinished"
    assert {path.suffix for path in unfinished.iterdir()} == {".json", ".pt", ".npy"}
    before = contents(tmp_path)

    def refused(*arguments: str) -> str:
        (tmp_path / "log.txt").unlink()
        assert run(tmp_path, *predict, *arguments) == 2
        assert contents(tmp_path) == before
        (line,) = (tmp_path / "log.txt").read_text().splitlines()
        return line

    assert "add --resume" in refused()
    assert "iterations was 8 and is now 9" in refused("--resume", "--iterations", "9")
    assert "seed was 3 and is now 4" in refused("--resume", "--seed", "4")
    (tmp_path / "train" / "info_a.json").unlink()  # it would refuse an image that was changed
    image = tmp_path / "train" / "X_a.npy"
    pixels = bytearray(image.read_bytes())
    pixels[-5] ^= 1
    image.write_bytes(pixels)
    before = contents(tmp_path)
    assert "training file X_a.npy has changed" in refused("--resume")


def test_resuming_with_nothing_to_resume_begins(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    assert run(tmp_path, "conv2d_predict.py", "train", "test", *TRAINING, "--resume") == 0
    assert not (tmp_path / "submission.unfinished").exists()
