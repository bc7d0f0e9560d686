"""Commands that processes share, linked by gloo on the CPU: started by torchrun, or quicker, as it does."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.distributed import TCPStore

from neurodetect import detection, files, network, processes, resume, sliding_window, training
from neurodetect.network import NeuronNet
from neurodetect.patches import PatchSampler
from neurodetect.prepared import write_prepared
from neurodetect.projection import clip_bright, mean_projection
from neurodetect.synthetic import simulate_frames, simulate_regions
from neurodetect.weights import save_network

SHAPE = (42, 46)
HIDDEN_UNITS = 100  #: the weights are 16 MB instead of 325
RUNNING = ("--stride", "20", "--device", "cpu", "--seed", "3")
TRAINING = ("--iterations", "6", "--batch-size", "4", *RUNNING)
FOLDS = ("conv2d_crossvalidation.py", "train", "--folds", "3", *TRAINING)
LOG = "log.{}.txt"  #: of a process: what it says, what it writes into the unfinished run, its exit code

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start processes quickly")


def run_script(script: str, arguments: tuple[str, ...], kill_at: dict[int, int], faulty: int | None) -> int:
    """Run one of the scripts in this process with a small network; its exit code.

    It kills itself after it has written so many files of the unfinished run, if `kill_at` has its rank; and
    the process `faulty` is one that cannot draw what it found.
    """
    torch.set_num_threads(1)
    network.HIDDEN_UNITS = HIDDEN_UNITS
    training.HELD_OUT_WINDOWS = 10
    sys.argv = [str(ROOT / script), *arguments]
    written = 0

    def logged(write):
        def write_and_log(path, *content, **options):
            nonlocal written
            write(path, *content, **options)
            if Path(path).parent.suffix == ".unfinished" and Path(path).name != resume.RUN_FILE:
                written += 1
                with open(LOG.format(processes.RANK), "a") as log:
                    log.write(f"wrote {Path(path).name}\n")
                if written == kill_at.get(processes.RANK):
                    os.kill(os.getpid(), signal.SIGKILL)

        return write_and_log

    for name in ("write_array", "write_json", "save_whole"):
        setattr(resume, name, logged(getattr(resume, name)))
    if processes.RANK == faulty:

        def fail(*_):
            raise files.UserError("test/X_d.npy: is not to be drawn here; draw it elsewhere")

        detection.assess = fail
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code
    raise AssertionError("a script ends with its exit code")


# Processes as torchrun starts them, forked from one that has loaded the heavy modules


def child(function, arguments, rank: int, size: int, port: int, folder: Path) -> None:
    os.chdir(folder)
    sys.stdout = sys.stderr = open(LOG.format(rank), "a", buffering=1)
    ranks = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    names = {"TORCHELASTIC_RUN_ID": "test", **ranks, **place}
    os.environ.update({name: str(value) for name, value in names.items()})
    importlib.reload(processes)
    torch.set_num_threads(1)
    code = function(*arguments)
    sys.stderr.flush()
    os._exit(code or 0)


def together(size: int, folder: Path, function, *arguments) -> list[int]:
    """The exit codes of so many processes that run a function together in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    context = get_context("forkserver")
    context.set_forkserver_preload(["test_processes", "sklearn.model_selection", "neurodetect.view.report"])
    started = [
        context.Process(target=child, args=(function, arguments, rank, size, port, folder))
        for rank in range(size)
    ]
    for process in started:
        process.start()
    ends = time.monotonic() + 120
    while any(process.is_alive() for process in started) and time.monotonic() < ends:
        time.sleep(0.05)
        # As torchrun does: when one has failed the others are told to end; here they may do it by themselves.
        if any(process.exitcode for process in started):
            for process in started:
                process.join(1)
            for process in started:
                process.terminate()
            for process in started:
                process.join(30)
                process.kill()
    hanging = [process for process in started if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging
    del store
    return [process.exitcode for process in started]


def said(folder: Path) -> list[str]:
    """What processes said, but not what they wrote."""
    lines = [line for log in sorted(folder.glob(LOG.format("*"))) for line in log.read_text().splitlines()]
    return [line for line in lines if not line.startswith("wrote ")]


def written(folder: Path) -> list[str]:
    """What they wrote into the unfinished run, in name order."""
    lines = [line for log in sorted(folder.glob(LOG.format("*"))) for line in log.read_text().splitlines()]
    return sorted(line.split()[1] for line in lines if line.startswith("wrote "))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def simulate(folder: Path) -> None:
    for seed, name in enumerate(("train/a", "train/a.2", "train/c", "test/c", "test/d", "test/e")):
        rng = np.random.default_rng(seed)
        regions = simulate_regions(SHAPE, 5, rng)
        image = clip_bright(mean_projection(simulate_frames(regions, SHAPE, 10, rng)))
        write_prepared(folder / Path(name).parent, Path(name).name, image, regions, 1.0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Prepared recordings, weights, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("lab")
    simulate(folder)
    before, network.HIDDEN_UNITS = network.HIDDEN_UNITS, HIDDEN_UNITS
    save_network(folder / "model.pt", NeuronNet(torch.Generator().manual_seed(5)), {"neuron_area": {}})
    network.HIDDEN_UNITS = before
    assert together(1, folder, run_script, *prediction("one"), {}, None) == [0], said(folder)
    assert together(1, folder, run_script, FOLDS[0], (*FOLDS[1:], *to("folds")), {}, None) == [0]
    return folder


def to(place: str) -> tuple[str, str]:
    return "--output", f"{place}/result.json"


def prediction(place: str, *more: str) -> tuple[str, tuple[str, ...]]:
    return "conv2d_predict.py", (
        "test",
        "--model",
        "model.pt",
        *RUNNING,
        *to(place),
        "--keep-checkpoint",
        *more,
    )


def clear_logs(folder: Path) -> None:
    for log in folder.glob(LOG.format("*")):
        log.unlink()


@pytest.fixture
def quiet_lab(lab):
    clear_logs(lab)
    return lab


# The same result


def torchrun(folder: Path, count: int, *command: str, options: tuple[str, ...] = (), **environment: str):
    """Run a script by torchrun, the network small."""
    start = ("--standalone", "--nproc-per-node", str(count), *options, str(Path(__file__)))
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *start, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_dealt_recordings_by_torchrun_give_the_same_bytes(quiet_lab):
    script, arguments = prediction("two")
    result = torchrun(quiet_lab, 2, script, *arguments)
    assert result.returncode == 0, result.stderr
    assert contents(quiet_lab / "two") == contents(quiet_lab / "one")
    assert contents(quiet_lab / "two/result.unfinished").keys() > {"run.json"}
    assert contents(quiet_lab / "two/result.unfinished") == contents(quiet_lab / "one/result.unfinished")
    # The first process spoke, of all the recordings; the other one of none.
    assert [result.stdout.count(f"\n{name}: ") for name in "cde"] == [1, 1, 1], result.stdout
    assert result.stdout.count("Wrote ") == 1


def test_four_processes_share_the_windows_of_one_of_three_recordings(quiet_lab):
    assert together(4, quiet_lab, run_script, *prediction("four"), {}, None) == [0] * 4, said(quiet_lab)
    expected, maps = (quiet_lab / f"{place}/result.unfinished" for place in ("one", "four"))
    names = sorted(path.name for path in expected.glob("*.npy"))
    assert names == sorted(path.name for path in maps.glob("*.npy")) and len(names) == 3
    for name in names:
        np.testing.assert_allclose(np.load(maps / name), np.load(expected / name), rtol=0, atol=1e-6)
    same = [(maps / name).read_bytes() == (expected / name).read_bytes() for name in names]
    assert sum(same) >= 2
    assert written(quiet_lab) == names  # one process of those that share writes


def shared_map(seed: int, stride: int, side: int) -> None:
    """In each process: the map of an odd image, its blocks shared, against that of this process alone."""
    processes.start(torch.device("cpu"))
    network.HIDDEN_UNITS = HIDDEN_UNITS
    net = NeuronNet(torch.Generator().manual_seed(seed)).eval()
    image = np.random.default_rng(seed).normal(size=(31, 67)).astype(np.float32)
    how = {"stride": stride, "precision": "float32", "block_side": side}
    shared = sliding_window.probability_map(net, image, **how, team=processes.split(1))
    np.testing.assert_allclose(shared, sliding_window.probability_map(net, image, **how), rtol=0, atol=1e-6)
    np.save(f"map{processes.RANK}.npy", shared)
    processes.finish()


@pytest.mark.parametrize(("stride", "side"), [(7, 48), (10, 2)])
def test_blocks_that_three_processes_share(tmp_path, stride, side):
    assert together(3, tmp_path, shared_map, 2, stride, side) == [0, 0, 0], said(tmp_path)
    assert len({(tmp_path / f"map{rank}.npy").read_bytes() for rank in range(3)}) == 1


def shared_training(iterations: int, recipe: str, started: bool) -> None:
    """In each process: a training whose batches are shared, against one of this process alone."""
    processes.start(torch.device("cpu"))
    network.HIDDEN_UNITS = HIDDEN_UNITS
    training.HELD_OUT_WINDOWS = 10
    image = np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32)
    results = []
    for team in (processes.split(1), processes.ALONE):
        net = NeuronNet(torch.Generator().manual_seed(1))
        net.dense.weight.requires_grad_(not started)
        sampler = PatchSampler([image], [image > 1], seed=2)
        history = training.train(net, sampler, iterations, 7, recipe=recipe, held_out=sampler, team=team)
        results.append((net, sampler.state(), history))
    (shared, state, history), (alone, state_alone, history_alone) = results
    assert torch.equal(state, state_alone)
    assert history[-1]["loss"] == pytest.approx(history_alone[-1]["loss"], rel=1e-5)
    start = NeuronNet(torch.Generator().manual_seed(1))
    for first, one, other in zip(start.parameters(), shared.parameters(), alone.parameters(), strict=True):
        # Adam's steps have the gradient's sign, also where it is nothing but rounding.
        assert (one - other).norm() < 0.01 * (other - first).norm() + 1e-7
    np.save(f"weights{processes.RANK}.npy", np.concatenate([p.detach().ravel() for p in shared.parameters()]))
    processes.finish()


@pytest.mark.parametrize(("recipe", "started"), [("2016", False), ("standard", False), ("standard", True)])
def test_a_training_that_two_processes_share_is_that_of_one(tmp_path, recipe, started):
    assert together(2, tmp_path, shared_training, 4, recipe, started) == [0, 0], said(tmp_path)
    first, second = (np.load(tmp_path / f"weights{rank}.npy") for rank in range(2))
    assert np.array_equal(first, second)


def shared_gradient() -> None:
    """In each process: the gradient of a shared batch, against autograd's of the whole batch."""
    processes.start(torch.device("cpu"))
    network.HIDDEN_UNITS = HIDDEN_UNITS
    net = NeuronNet(torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    windows = torch.randn(7, 1, 40, 40, generator=torch.Generator().manual_seed(3))
    targets = (windows[:, 0, 10:30, 10:30] > 0).flatten(1).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(net(windows), targets)
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    still = torch.optim.SGD(net.parameters(), lr=0)
    for parts in (1, 2):
        loss = training.train_step(
            net, still, windows, targets, "float32", parts=parts, team=processes.split(1)
        )
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            assert torch.allclose(
                parameter.grad, gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item()
            )
    processes.finish()


def test_the_gradient_of_uneven_shares_is_that_of_the_batch(tmp_path):
    assert together(3, tmp_path, shared_gradient) == [0, 0, 0], said(tmp_path)


def shared_folds(arguments: tuple[str, ...]) -> int:
    detection.SMALLEST_SHARE = 2
    return run_script(FOLDS[0], arguments, {}, None)


def test_pairs_of_processes_share_folds(lab, tmp_path):
    """Batches of four, shared by two: all is the same but for rounding."""
    (tmp_path / "train").symlink_to(lab / "train")
    folds = ("train", "--folds", "2", *TRAINING, "--precision", "float32")
    assert together(1, tmp_path, shared_folds, (*folds, *to("one"))) == [0], said(tmp_path)
    assert together(4, tmp_path, shared_folds, (*folds, *to("four"))) == [0] * 4, said(tmp_path)
    one, four = (json.loads((tmp_path / place / "result.json").read_text()) for place in ("one", "four"))
    assert [row["name"] for row in one["recordings"]] == [row["name"] for row in four["recordings"]]
    assert one["settings"] == four["settings"] and len(one["folds"]) == len(four["folds"])
    for fold, other in zip(one["folds"], four["folds"], strict=True):
        assert fold["held_out"] == other["held_out"]
        assert fold["history"][-1]["loss"] == pytest.approx(other["history"][-1]["loss"], rel=1e-3)


# Stopped, killed, wrong


def test_killed_processes_and_what_goes_on(quiet_lab, tmp_path):
    """One is killed and the run resumed by hand; then another, and torchrun starts both again."""
    (tmp_path / "train").symlink_to(quiet_lab / "train")
    command = (*FOLDS, *to("folds"), "--checkpoint-every", "0")
    killed = torchrun(tmp_path, 2, *command, KILL_AT="1:4")
    assert killed.returncode != 0
    (line,) = (line for line in killed.stderr.splitlines() if line.startswith(FOLDS[0]))
    assert "stopped" in line and "add --resume" in line
    assert together(2, tmp_path, run_script, command[0], (*command[1:], "-q"), {}, None) == [2, 2]
    (line,) = said(tmp_path)
    assert "holds a run that was stopped; add --resume" in line
    unfinished = tmp_path / "folds/result.unfinished"
    assert any(path.suffix == ".pt" for path in unfinished.iterdir())
    resumed = torchrun(tmp_path, 2, *command, "--resume", options=("--max-restarts", "1"), KILL_AT="0:2")
    assert resumed.returncode == 0, resumed.stderr
    assert contents(tmp_path / "folds") == contents(quiet_lab / "folds")
    assert not unfinished.exists()
    # Nothing that was finished was done again: each map and each fold's note was written once.
    finished = [name for name in written(tmp_path) if not name.endswith(".pt")]
    assert len(finished) == len(set(finished)) == 6


@pytest.mark.parametrize(("size", "code"), [(1, -signal.SIGABRT), (2, 3)])
def test_what_goes_wrong_on_python_s_way_out_is_no_failure_of_several_processes(size, code):
    program = (
        "import atexit, os; from neurodetect import console, processes; "
        f"processes.SIZE = {size}; atexit.register(os.abort); print('all is written'); console.leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    if size > 1:
        assert done.stdout == "all is written\n"


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_mistake_is_one_line_of_one_process(quiet_lab, faulty):
    codes = together(3, quiet_lab, run_script, *prediction(f"bad{faulty}", "--quiet"), {}, faulty)
    assert codes == [2, 2, 2]
    assert said(quiet_lab) == ["conv2d_predict.py: test/X_d.npy: is not to be drawn here; draw it elsewhere"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("conv2d_predict.py", ("test",)), "see conv2d_predict.py --help"),
        (("conv2d_predict.py", ("nowhere", "--model", "model.pt")), "nowhere: there is no such file"),
        (("preprocessing.py", ("test", "out")), "start it without torchrun"),
    ],
)
def test_the_same_mistake_in_all_processes_is_one_line(quiet_lab, command, words):
    assert together(2, quiet_lab, run_script, *command, {}, None) == [2, 2]
    (line,) = (line for line in said(quiet_lab) if not line.startswith("Weights of"))
    assert words in line


def test_help_is_given_once(quiet_lab):
    assert together(2, quiet_lab, run_script, "conv2d_predict.py", ("--help",), {}, None) == [0, 0]
    assert sum(line.startswith("usage:") for line in said(quiet_lab)) == 1


def other_data(script: str, arguments: tuple[str, ...]) -> int:
    """In each process: the script, where the second one sees a folder of its own."""
    if processes.RANK == 1:
        os.chdir("elsewhere")
    return run_script(script, arguments, {}, None)


def test_processes_that_see_other_files_are_refused(quiet_lab):
    elsewhere = quiet_lab / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    simulate(elsewhere)
    (elsewhere / "model.pt").write_bytes((quiet_lab / "model.pt").read_bytes())
    assert together(2, quiet_lab, other_data, *prediction("three", "--quiet")) == [2, 2]
    (line,) = said(quiet_lab)
    assert "result.unfinished: all processes have to see this folder" in line
    clear_logs(quiet_lab)
    (elsewhere / "model.pt").rename(elsewhere / "other.pt")  # one fails before they are connected
    assert together(2, quiet_lab, other_data, *prediction("none", "--quiet")) == [2, 2]
    (line,) = said(quiet_lab)
    assert "model.pt: cannot be read" in line
    (elsewhere / "other.pt").rename(elsewhere / "model.pt")
    clear_logs(quiet_lab)
    image = np.load(elsewhere / "test/X_c.npy")
    np.save(elsewhere / "test/X_c.npy", image[::-1])
    (elsewhere / "test/info_c.json").unlink()
    (elsewhere / "test/y_c.npy").unlink()
    assert together(2, quiet_lab, other_data, *prediction("other", "--quiet")) == [2, 2]
    (line,) = said(quiet_lab)
    assert "test file X_c.npy has changed" in line and "all processes have to see the same files" in line


def interrupted(arguments: tuple[str, ...]) -> int:
    """In each process: the script; the second one gets Ctrl-C in its training."""
    sample = PatchSampler.sample
    drawn = 0

    def draw(self, count):
        nonlocal drawn
        drawn += 1
        if processes.RANK == 1 and drawn == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return sample(self, count)

    PatchSampler.sample = draw
    signal.signal(signal.SIGINT, signal.default_int_handler)
    detection.SMALLEST_SHARE = 2
    return run_script("conv2d_predict.py", arguments, {}, None)


def test_those_that_share_a_training_stop_together_and_keep_it(quiet_lab):
    arguments = (
        "train",
        "test",
        *TRAINING,
        *to("interrupted"),
        "--save-model",
        "interrupted/model.pt",
        "--quiet",
    )
    assert together(2, quiet_lab, interrupted, arguments) in ([130, 130], [1, 1])
    (line,) = said(quiet_lab)
    assert "stopped" in line and "add --resume" in line
    assert len(written(quiet_lab)) == 1 and written(quiet_lab)[0].endswith(".pt")
    clear_logs(quiet_lab)
    assert together(2, quiet_lab, shared_prediction, (*arguments, "--resume")) == [0, 0], said(quiet_lab)
    whole = tuple(argument.replace("interrupted", "whole") for argument in arguments)
    assert together(2, quiet_lab, shared_prediction, whole) == [0, 0], said(quiet_lab)
    assert contents(quiet_lab / "interrupted").keys() == contents(quiet_lab / "whole").keys()
    for name in ("model.pt", "result.json"):
        assert contents(quiet_lab / "interrupted")[name] == contents(quiet_lab / "whole")[name]
    log = json.loads((quiet_lab / "whole/result.log.json").read_text())
    assert log["settings"]["fine-tuned for"] == ["a"]


def shared_prediction(arguments: tuple[str, ...]) -> int:
    detection.SMALLEST_SHARE = 2
    return run_script("conv2d_predict.py", arguments, {}, None)


# Without torchrun


def test_one_process_is_the_first_of_one():
    code = "import sys; from neurodetect import processes as p; print(p.SIZE, p.RANK, 'torch' in sys.modules)"
    plain = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**plain, "RANK": "3", "WORLD_SIZE": "8"},  # of some other program
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["1", "0", "False"], result.stderr


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 8])
def test_teams_are_of_neighbours_and_differ_by_one_at_most(monkeypatch, size, pieces):
    monkeypatch.setattr(processes, "SIZE", size)
    monkeypatch.setattr(processes, "_group", lambda ranks: ranks)
    monkeypatch.setattr(processes, "wait", lambda: None)
    teams = []
    for rank in range(size):
        monkeypatch.setattr(processes, "RANK", rank)
        teams.append(processes.split(pieces))
    numbers = [team.number for team in teams]
    assert numbers == sorted(numbers) and set(numbers) == set(range(min(pieces, size)))
    sizes = [numbers.count(number) for number in set(numbers)]
    assert max(sizes) - min(sizes) <= 1
    for rank, team in enumerate(teams):
        assert team.size == numbers.count(team.number)
        assert team.leaders[team.number] + team.rank == rank
        assert list(team.leaders) == [numbers.index(number) for number in sorted(set(numbers))]


if __name__ == "__main__":  # what torchrun starts here
    kills = dict([map(int, os.environ["KILL_AT"].split(":"))]) if "KILL_AT" in os.environ else {}
    if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        kills = {}
    sys.exit(run_script(sys.argv[1], tuple(sys.argv[2:]), kills, None))
