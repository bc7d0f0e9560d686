from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from neurodetect.files import UserError
from neurodetect.resume import Checkpoint, UnfinishedRun, differences


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "output.unfinished"


def begin(folder, resume=False, keep=False, **identity):
    return UnfinishedRun(folder, identity, resume=resume, seconds=600, keep=keep)


def test_what_is_done_is_not_done_again_and_all_goes_at_the_end(folder):
    calls = []

    def compute(value):
        calls.append(value)
        return np.full((2, 3), value)

    with pytest.raises(KeyboardInterrupt) as stopped, begin(folder, seed=1) as run:
        assert not run.resumed and run.noted("fold 1") is None
        run.once("a", lambda: compute(7))
        run.note("fold 1", [{"loss": 0.5}])
        raise KeyboardInterrupt
    assert "--resume" in str(stopped.value) and str(folder) in str(stopped.value)
    with begin(folder, resume=True, seed=1) as run:
        assert run.resumed and run.noted("fold 1") == [{"loss": 0.5}]
        assert np.array_equal(run.once("a", lambda: compute(7)), np.full((2, 3), 7))
        run.once("b", lambda: compute(8))
    assert calls == [7, 8]
    assert not folder.exists()


def test_stopped_before_anything_was_done_nothing_is_left(folder):
    for error in (KeyboardInterrupt, UserError):
        with pytest.raises(error) as stopped, begin(folder, seed=1):
            raise error
        assert "--resume" not in str(stopped.value)
        assert not folder.exists()


def test_unfinished_work_is_neither_lost_nor_mixed(folder):
    with begin(folder, keep=True, seed=1, file="0" * 64, gone=3) as run:
        run.once("a", lambda: np.zeros(3))
    with pytest.raises(UserError, match="--resume"):
        begin(folder, seed=1)
    with pytest.raises(
        UserError, match="seed was 1 and is now 2; file has changed; gone is missing; it is new"
    ):
        begin(folder, resume=True, seed=2, file="1" * 64, it=0)
    (folder / "run.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        begin(folder, resume=True, seed=1)


@pytest.mark.parametrize("name", ["thesis.docx", "0123456789abcdef.npy.bak", "training.pt"])
def test_what_others_put_there_is_neither_removed_nor_replaced(folder, name):
    folder.mkdir()
    (folder / name).write_text("years of work")
    for resume in (False, True):
        with pytest.raises(UserError, match=f"{folder}: .*choose another --output"):
            begin(folder, resume=resume, seed=1)
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "years of work"


@pytest.mark.parametrize(
    "content", ['{"name": "marathon"}', "[]", '{"format": 1, "identity": 2, "notes": 3}']
)
def test_a_file_of_another_program_is_not_replaced(folder, content):
    folder.mkdir()
    (folder / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json: is damaged, or not of this version of the program"):
        begin(folder, seed=1)
    assert (folder / "run.json").read_text() == content


def test_what_is_put_there_during_the_run_stays(folder):
    with begin(folder, seed=1) as run:
        run.once("a", lambda: np.zeros(3))
        (folder / "notes.txt").write_text("remember")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_killed_while_its_folder_is_removed_a_run_leaves_nothing_to_go_on_with(folder, monkeypatch):
    with begin(folder, keep=True, seed=1) as run:
        run.once("a", lambda: np.zeros(3))
        run.once("b", lambda: np.ones(3))
    unlink = type(folder).unlink
    removed = []

    def die(path, **options):
        if removed:
            raise KeyboardInterrupt
        removed.append(unlink(path, **options))

    monkeypatch.setattr(type(folder), "unlink", die)
    with pytest.raises(KeyboardInterrupt), begin(folder, resume=True, seed=1):
        pass
    monkeypatch.undo()
    assert (folder / "run.json").exists() and list(folder.glob("*.npy"))
    with begin(folder, seed=2) as run:
        assert not run.resumed
    assert not folder.exists()


def test_a_damaged_array_says_which_folder_to_remove(folder):
    with begin(folder, keep=True) as run:
        run.once("a", lambda: np.zeros(3))
    (array,) = folder.glob("*.npy")
    array.write_bytes(array.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{array.name}: is cut short.*; remove {folder} to start anew"):
        begin(folder, resume=True).once("a", lambda: np.zeros(3))


@pytest.mark.parametrize("name", ["a/../../b", "x" * 300, "new\nline", "ü", "\udcff", "."])
def test_no_name_leads_out_of_the_folder(folder, name):
    with begin(folder, keep=True) as run:
        run.once(name, lambda: np.ones(2))
    assert len(list(folder.iterdir())) == 2
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_checkpoint_is_of_one_training(tmp_path):
    state = {"iteration": 3, "weights": {"a": torch.arange(4.0)}, "history": [{"loss": 0.25}]}
    Checkpoint(tmp_path / "training.pt", "fold 1", 600).save(state)
    assert Checkpoint(tmp_path / "training.pt", "fold 2", 600).load() is None
    loaded = Checkpoint(tmp_path / "training.pt", "fold 1", 600).load()
    assert torch.equal(loaded["weights"].pop("a"), state["weights"].pop("a")) and loaded == state
    assert Checkpoint(tmp_path / "other.pt", "fold 1", 600).load() is None


def test_the_same_state_is_the_same_bytes_under_any_name(tmp_path):
    for name in ("a.pt", "another.pt"):
        Checkpoint(tmp_path / name, "x", 600).save({"weights": torch.ones(3)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_a_checkpoint_runs_no_code(tmp_path):
    path, trace = tmp_path / "training.pt", tmp_path / "trace"
    torch.save({"format": "neurodetect checkpoint 1", "name": "x", "state": Payload(trace)}, path)
    with pytest.raises(UserError, match=r"training\.pt"):
        Checkpoint(path, "x", 600).load()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"training\.pt"):
        Checkpoint(path, "x", 600).load()
    torch.save({"something": "else"}, path)
    with pytest.raises(UserError, match="is not a checkpoint"):
        Checkpoint(path, "x", 600).load()
    assert not trace.exists()


@pytest.mark.parametrize(
    ("before", "now", "phrases"),
    [({"a": 1}, {"a": 1}, []), ({"a": 1}, {"a": 2}, ["a was 1 and is now 2"]), ({}, {"a": 1}, ["a is new"])],
)
def test_differences_in_words(before, now, phrases):
    assert differences(before, now) == phrases


def test_two_runs_do_not_share_a_folder(folder):
    """Both would take what the other has found for their own."""
    with begin(folder, seed=1) as run:
        with pytest.raises(UserError, match="another run is writing there"):
            begin(folder, seed=2)
        with pytest.raises(UserError, match="another run is writing there"):
            begin(folder, resume=True, seed=1)
        run.note("fold 1", [])
    assert not folder.exists()


def test_a_run_that_was_killed_frees_its_folder(folder):
    code = (
        "import os, signal, sys; from neurodetect.resume import UnfinishedRun\n"
        "run = UnfinishedRun(sys.argv[1], {'seed': 1}, resume=False, seconds=1)\n"
        "run.note('fold 1', 5); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, folder]).returncode == -signal.SIGKILL
    with begin(folder, resume=True, seed=1) as run:
        assert run.noted("fold 1") == 5
    assert not folder.exists()
