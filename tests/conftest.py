"""Fixtures that several test files share."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from neurodetect import console  # noqa: F401  tells CUDA's libraries to be repeatable before they are loaded
from neurodetect import network as network_module
from neurodetect.network import NeuronNet

ROOT = Path(__file__).resolve().parent.parent

# No test is about seconds, of which a busy machine takes many.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def network() -> NeuronNet:
    """A new network as the method starts it; orthogonal weights take seconds, so all tests share one."""
    return NeuronNet(torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess]:
    """Run one of the scripts as a user does: `run_command("preprocessing.py", recording, folder)`."""

    def run(script: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280)

    return run


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a script in a folder as `run_command` does, but in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(network_module, "HIDDEN_UNITS", 100)  # the weights are 16 MB instead of 325
    before = signal.getsignal(signal.SIGTERM)

    def run(script, *arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
            runpy.run_path(sys.argv[0], run_name="__main__")
        return subprocess.CompletedProcess(sys.argv, end.value.code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """The command ended with exit code 2 and one line on standard error that has these words."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], result.stderr


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=30, help="kills of tests/test_faults.py (default: 30)")


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do not have
    if hasattr(config, "workerinput"):  # of `-n`: several such processes with a thread a core each are slow
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that are run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="this machine has no CUDA device"))
