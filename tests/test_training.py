from __future__ import annotations

import copy
import io
import platform
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neurodetect.detection import TrainingSettings, split_folds, train_network
from neurodetect.device import arithmetic, choose_device, choose_precision
from neurodetect.files import UserError
from neurodetect.network import NeuronNet, TiedNet
from neurodetect.patches import PatchSampler
from neurodetect.prepared import Prepared
from neurodetect.projection import clip_bright, mean_projection, standardize
from neurodetect.regions import regions_to_mask
from neurodetect.resume import Checkpoint
from neurodetect.sliding_window import probability_map
from neurodetect.synthetic import simulate_frames, simulate_regions
from neurodetect.training import (
    BETAS,
    LEARNING_RATE,
    LEARNING_RATES,
    Step,
    make_optimizer,
    rate_share,
    set_learning_rates,
    train,
    train_step,
    window_error,
)
from neurodetect.weights import load_network, save_network, save_whole

CPU, MPS = torch.device("cpu"), torch.device("mps")
SHAPE = (64, 80)


def simulated(seed: int) -> Prepared:
    rng = np.random.default_rng(seed)
    regions = simulate_regions(SHAPE, 14, rng)
    image = clip_bright(mean_projection(simulate_frames(regions, SHAPE, 20, rng)))
    return Prepared(f"simulated{seed}", image, regions_to_mask(regions, SHAPE), regions, None)


def how(**options) -> TrainingSettings:
    usual = {"recipe": "standard", "background": "keep", "seed": 0, "device": "cpu", "precision": "float32"}
    return TrainingSettings(**(usual | options))


@pytest.fixture(scope="module")
def recordings():
    return [simulated(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def trained(recordings):
    """A network after a few iterations on two recordings, and its history on the third."""
    return train_network(recordings[:2], how(iterations=40, batch_size=16), held_out=recordings[2:])


def test_training_lowers_the_error_on_a_recording_it_has_not_seen(network, recordings, trained):
    trained_network, history = trained
    held_out = recordings[2]
    windows, targets = PatchSampler([standardize(held_out.image)], [held_out.mask], seed=9).sample(100)
    before = window_error(network, windows, targets, "float32")
    after = window_error(trained_network, windows, targets, "float32")
    # Better than the untrained network, and than calling everything background.
    assert after < 0.6 * before
    assert after < 0.75 * targets.mean().item()
    assert history[-1]["iteration"] == 40
    assert history[-1]["held_out_error"] == pytest.approx(after, abs=0.05)
    assert history[-1]["loss"] < np.log(2)


def test_a_training_that_learns_nothing_is_said(recordings, monkeypatch):
    """Of images in which the labelled neurons are not; of those in which they are nothing is said."""
    monkeypatch.setattr("neurodetect.training.LONG_ENOUGH", 40)
    noise = np.random.default_rng(0).random(SHAPE)
    with pytest.warns(UserWarning, match="has learned next to nothing"):
        train_network([recordings[0]._replace(image=noise)], how(iterations=40, batch_size=16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_network(recordings[:2], how(iterations=40, batch_size=16))


def test_the_same_seed_gives_the_same_weights(network, recordings):
    sampler_arguments = [standardize(recordings[0].image)], [recordings[0].mask]
    first, second = copy.deepcopy(network), copy.deepcopy(network)
    histories = [train(net, PatchSampler(*sampler_arguments, seed=4), 3, 10) for net in (first, second)]
    assert histories[0] == histories[1]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.dense.weight, network.dense.weight)


def test_progress_shows_the_loss_and_the_held_out_error(network, recordings, monkeypatch, capsys):
    monkeypatch.setattr("neurodetect.progress.DELAY", 0)
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask])
    train(copy.deepcopy(network), sampler, 2, 10, held_out=sampler, description="fold 1 of 2, training")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fold 1 of 2, training: 100%")
    assert "loss 0." in last and "held-out error" in last


def test_a_step_is_adam_on_the_mean_binary_cross_entropy(network, recordings):
    """Against Adam as its paper has it (Kingma & Ba 2015), in float64, for the last layer's bias."""
    net = copy.deepcopy(network)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask], seed=1)
    bias, mean, variance = np.zeros(400), np.zeros(400), np.zeros(400)
    for step in (1, 2, 3):
        windows, targets = sampler.sample(10)
        with torch.inference_mode():
            probability = torch.sigmoid(net(windows)).double().numpy()
        labels = targets.double().numpy()
        loss = train_step(net, optimizer, windows, targets, "float32")
        expected = -np.mean(labels * np.log(probability) + (1 - labels) * np.log(1 - probability))
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        gradient = (probability - labels).sum(axis=0) / labels.size
        mean = 0.9 * mean + 0.1 * gradient
        variance = 0.99 * variance + 0.01 * gradient**2
        bias -= 2e-4 * (mean / (1 - 0.9**step)) / (np.sqrt(variance / (1 - 0.99**step)) + 1e-8)
        np.testing.assert_allclose(net.output.bias.detach().numpy(), bias, atol=2e-6)


def test_bfloat16_learns_the_same(network, recordings):
    arguments = [standardize(recordings[0].image)], [recordings[0].mask]
    losses = {}
    for precision in ("float32", "bfloat16"):
        net = copy.deepcopy(network)
        history = train(net, PatchSampler(*arguments, seed=2), 5, 10, precision=precision)
        losses[precision] = history[-1]["loss"]
        assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


@given(st.integers(1, 500))
def test_learning_rates_rise_and_go_to_zero(iterations):
    shares = np.array([rate_share(done, iterations) for done in range(iterations)])
    top = shares.argmax()
    assert 0 < shares.min() and shares.max() == 1 and top <= 0.1 * iterations
    assert (np.diff(shares[: top + 1]) > 0).all() and (np.diff(shares[top + 1 :]) < 0).all()
    if iterations >= 100:
        assert shares[0] < 0.11 and shares[-1] < 0.001
        assert shares[round(0.55 * iterations)] == pytest.approx(0.5, abs=0.02)


def test_the_rates_of_both_recipes(recordings, monkeypatch):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    rates = []
    monkeypatch.setattr(
        "neurodetect.training.train_step",
        lambda net, optimizer, *_: rates.append([g["lr"] for g in optimizer.param_groups]) or torch.zeros(()),
    )
    train_network(recordings[:1], how(iterations=10, batch_size=4, recipe="2016"))
    assert np.unique(rates).tolist() == [LEARNING_RATE]
    for background, share in (("normalize", 1), ("keep", 0.3)):
        rates.clear()
        train_network(recordings[:1], how(iterations=10, batch_size=4, background=background))
        assert rates[1] == [share * LEARNING_RATES[kind] for kind in ("conv", "dense", "output")]
        assert rates[-1] == pytest.approx([0.03 * rate for rate in rates[1]], rel=0.01)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other C library has this")
def test_memory_that_is_freed_is_kept_for_the_training_and_then_given_back():
    script = """
import torch
from neurodetect.device import freed_memory_kept

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

before = resident()
with freed_memory_kept():
    torch.ones(2**26)
    kept = resident() - before
print(kept, resident() - before)
torch.ones(2**26)
print(resident() - before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    kept, after, later = map(float, result.stdout.split())
    assert kept > 250 and after < 50 and later < 50  # MB; a tensor has 256


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_goes_on_from_its_checkpoint_as_if_never_stopped(
    recordings, tmp_path, monkeypatch, precision
):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    monkeypatch.setattr("neurodetect.training.CHECK_EVERY", 2)
    arguments = [standardize(recordings[0].image)], [recordings[0].mask]

    def run(iterations, **checkpoint):
        net = NeuronNet(torch.Generator().manual_seed(0))
        sampler, held_out = PatchSampler(*arguments, seed=4), PatchSampler(*arguments, seed=5)
        history = train(net, sampler, iterations, 6, precision=precision, held_out=held_out, **checkpoint)
        return history, list(net.parameters())

    expected_history, expected = run(5)
    for iterations in (3, 4, 5, 5):
        history, parameters = run(iterations, checkpoint=Checkpoint(tmp_path / "training.pt", "x", 600))
    # The two short runs looked at their last iteration too.
    assert [entry for entry in history if entry["iteration"] != 3] == expected_history
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))


def test_stopped_training_never_passes_for_trained(recordings, monkeypatch):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask])
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))  # a handler that goes on
    monkeypatch.setattr(
        sampler, "sample", lambda count: (signal.raise_signal(signal.SIGTERM), sample(count))[1]
    )
    sample = PatchSampler.sample.__get__(sampler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(NeuronNet(), sampler, 3, 4)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came


def test_a_batch_that_does_not_fit_in_memory_is_handled_in_parts(network, recordings, monkeypatch):
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask], seed=1)
    windows, targets = sampler.sample(10)
    nets = [copy.deepcopy(network) for _ in range(2)]
    steps = [
        Step(net, torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True), "float32")
        for net in nets
    ]
    losses = [steps[0](windows, targets)]
    features = NeuronNet.features

    def small_memory(self, some):
        if len(some) > 3:
            raise torch.OutOfMemoryError
        return features(self, some)

    monkeypatch.setattr(NeuronNet, "features", small_memory)
    with pytest.warns(UserWarning, match="short of memory") as warned:
        losses.append(steps[1](windows, targets))
    assert len(warned) == 1 and steps[1].parts == 4
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    for whole, parts in zip(*(net.parameters() for net in nets), strict=True):
        # A gradient that is nearly zero may round to either side, and Adam's first step is its sign.
        assert ((whole - parts).abs() > 1e-6).float().mean() < 1e-3
    monkeypatch.setattr(
        NeuronNet, "features", lambda self, some: small_memory(self, some.expand(9, -1, -1, -1))
    )
    with pytest.raises(UserError, match="too little memory"):
        steps[1](windows[:1], targets[:1])


@pytest.mark.parametrize("fails_at", [1, 2, 4, 5])
def test_memory_that_is_short_in_adams_first_step(recordings, monkeypatch, fails_at):
    """Whichever of the two means of a weight's gradients cannot be had, the step is that of enough memory."""
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask], seed=1)
    windows, targets = sampler.sample(10)
    nets = [NeuronNet(torch.Generator().manual_seed(0)) for _ in range(2)]
    steps = [Step(net, make_optimizer(net, CPU), "float32") for net in nets]
    losses = [steps[0](windows, targets)]
    zeros_like, calls = torch.zeros_like, []

    def short(*arguments, **options):
        calls.append(1)
        if len(calls) == fails_at:
            raise torch.OutOfMemoryError
        return zeros_like(*arguments, **options)

    monkeypatch.setattr(torch, "zeros_like", short)
    with pytest.warns(UserWarning, match="short of memory"):
        losses.append(steps[1](windows, targets))
    assert len(calls) > fails_at and steps[1].parts == 2
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    for whole, parts in zip(*(net.parameters() for net in nets), strict=True):
        assert ((whole - parts).abs() > 1e-6).float().mean() < 1e-3


def test_memory_that_is_short_for_the_held_out_windows(recordings, monkeypatch):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask], seed=1)
    net = NeuronNet(torch.Generator().manual_seed(0))
    windows, targets = sampler.sample(200)
    expected = window_error(net, windows, targets, "float32")
    features = NeuronNet.features

    def small_memory(self, some):
        if len(some) > 50:
            torch.empty(2**50)  # on a CPU this is no OutOfMemoryError
        return features(self, some)

    monkeypatch.setattr(NeuronNet, "features", small_memory)
    step = Step(net, make_optimizer(net, CPU), "float32")
    with pytest.warns(UserWarning, match="short of memory"):
        assert step.window_error(windows, targets) == pytest.approx(expected, abs=1e-4)
    assert step.parts == 4


def test_no_gradients_are_kept_when_the_training_is_over(recordings, monkeypatch):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    net = NeuronNet()
    train(net, PatchSampler([standardize(recordings[0].image)], [recordings[0].mask]), 1, 4)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_loss_that_is_not_finite_ends_the_training(network, recordings):
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.output.bias.fill_(float("nan"))
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask])
    with pytest.raises(UserError, match="not finite"):
        train(broken, sampler, 1, 10)


@pytest.mark.parametrize(("count", "folds", "sizes"), [(10, 5, [2] * 5), (7, 3, [2, 2, 3]), (3, 5, [1] * 3)])
def test_every_recording_is_held_out_once(count, folds, sizes):
    dealt = split_folds(count, folds, seed=1)
    assert sorted(map(len, dealt)) == sizes
    assert sorted(index for fold in dealt for index in fold) == list(range(count))
    assert dealt == split_folds(count, folds, seed=1)


def test_folds_are_dealt_by_the_seed_and_need_two_recordings():
    assert len({str(split_folds(10, 5, seed)) for seed in range(5)}) > 1
    with pytest.raises(UserError, match="two labelled"):
        split_folds(1, 5, 0)


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=20), st.integers(2, 6))
def test_what_belongs_together_is_held_out_together(groups, folds):
    if len(set(groups)) == 1:
        with pytest.raises(UserError, match=f"all {len(groups)} recordings are of one group, {groups[0]}"):
            split_folds(len(groups), folds, 0, groups)
        return
    dealt = split_folds(len(groups), folds, 0, groups)
    assert sorted(index for fold in dealt for index in fold) == list(range(len(groups)))
    assert len(dealt) == min(folds, len(set(groups)))
    assert all(sum(group in {groups[i] for i in fold} for fold in dealt) == 1 for group in set(groups))


# Weights on disk


@pytest.fixture(scope="module")
def weights(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    save_network(path, trained[0], {"seed": 0, "recordings": ["a"]})
    return path


def test_weights_survive_writing_and_reading(trained, weights):
    network, settings = load_network(weights)
    assert settings == {"seed": 0, "recordings": ["a"]}
    for name, value in trained[0].state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    windows = torch.randn(2, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network(windows), trained[0](windows), atol=1e-6)


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def small_networks_weights():
    return {"conv1.weight": torch.zeros(50, 1, 3, 3)}


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        {"weights": small_networks_weights()},
        {"format": "neurodetect weights 1", "settings": {}, "weights": small_networks_weights()},
        {"format": "neurodetect weights 1", "settings": {}, "weights": 7},
        {"format": "neurodetect weights 1"},
    ],
)
def test_other_files_of_pytorch_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt"):
        load_network(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(50).to_sparse(),
        torch.zeros(50, dtype=torch.complex64),
        torch.zeros(50, dtype=torch.int64),
        [0.0] * 50,
    ],
    ids=["sparse", "complex", "whole numbers", "list"],
)
def test_weights_of_another_kind_are_refused(tmp_path, monkeypatch, weight):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    weights = {**NeuronNet().state_dict(), "conv1.bias": weight}
    torch.save({"format": "neurodetect weights 1", "weights": weights, "settings": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: holds weights that are no plain float32"):
        load_network(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "settings",
    [
        [1],
        {"loss": torch.zeros(3)},
        {"loss": float("nan")},
        {"seed": 1 + 2j},
        {"neuron_area": 3},
        {"thresholds": 0.3},
        {"thresholds": {"mouse3": 3.0}},
        {"thresholds": {"mouse3": "0.3"}},
        {"recordings": "all"},
        {"background": 4},
        {"recipe": ["2016"]},
        {(1, 2): 3},
    ],
    ids=str,
)
def test_settings_of_another_kind_are_refused(tmp_path, monkeypatch, settings):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    content = {"format": "neurodetect weights 1", "weights": NeuronNet().state_dict(), "settings": settings}
    torch.save(content, tmp_path / "other.pt")
    # PyTorch 2.5 reads no complex number at all.
    unread = "|is damaged or is not a weights file" if settings == {"seed": 1 + 2j} else ""
    with pytest.raises(UserError, match=rf"other\.pt: (holds settings that no training has{unread})"):
        load_network(tmp_path / "other.pt")


def test_files_that_are_no_weights_are_refused(tmp_path, weights):
    with pytest.raises(UserError, match="No such file"):
        load_network(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("these are no weights")
    with pytest.raises(UserError, match=r"text\.pt: is not a weights file"):
        load_network(tmp_path / "text.pt")
    with open(weights, "rb") as file:
        (tmp_path / "cut.pt").write_bytes(file.read(1_000_000))
    with pytest.raises(UserError, match=r"cut\.pt"):
        load_network(tmp_path / "cut.pt")


def test_memory_too_short_for_a_file_is_not_called_damage(tmp_path, monkeypatch):
    path = tmp_path / "training.pt"
    Checkpoint(path, "x", 600).save({"iteration": 1})
    monkeypatch.setattr(torch, "load", lambda *_, **__: torch.empty(2**50))
    with pytest.raises(UserError, match=r"training\.pt: there is too little memory") as error:
        Checkpoint(path, "x", 600).load()
    assert "remove" not in str(error.value)  # hours of work


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, zip_format):
    trace = tmp_path / "trace"
    torch.save({"format": Payload(trace)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(UserError, match=r"a\.pt"):
        load_network(tmp_path / "a.pt")
    assert not trace.exists()


# Where and how precisely


def test_device_and_precision():
    assert choose_device("cpu") == CPU
    assert choose_precision("float32", CPU) == "float32"
    assert choose_precision("bfloat16", CPU) == "bfloat16"
    assert choose_precision("auto", CPU) in ("float32", "bfloat16")
    with pytest.raises(ValueError, match="float16"):
        choose_precision("float16", CPU)


def test_convolutions_are_repeatable_and_float32_forward_and_backward(recordings, monkeypatch):
    """What cuDNN is told, seen where it looks: at each convolution and at each gradient of one."""
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    seen = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), options=None):
            if "convolution" in str(operation):
                seen.append((str(operation), cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32))
            return operation(*arguments, **(options or {}))

    net = NeuronNet()
    windows, targets = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask]).sample(4)
    with Look():
        train_step(net, make_optimizer(net, CPU), windows, targets, "float32", parts=2)
        window_error(net, windows, targets, "float32")
        probability_map(net, np.zeros((3, 3)), 20)
    assert {name.split(".")[1] for name, *_ in seen} == {"convolution", "convolution_backward"}
    assert {tuple(flags) for _, *flags in seen} == {(True, False, False)}
    assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == before


def test_a_training_starts_from_the_weights_that_the_seed_gives(recordings, monkeypatch):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    monkeypatch.setattr("neurodetect.detection.train", lambda *_, **__: [])
    for recipe, kind in ("standard", TiedNet), ("2016", NeuronNet):
        net, _ = train_network(recordings[:1], how(iterations=1, batch_size=2, seed=5, recipe=recipe))
        expected = kind(torch.Generator().manual_seed(5))
        assert type(net) is kind
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters(), strict=True))


@pytest.mark.cuda
def test_weights_start_orthogonal_on_cuda(recordings, monkeypatch):
    monkeypatch.setattr("neurodetect.detection.train", lambda *_, **__: [])
    nets = [train_network(recordings[:1], how(iterations=1, batch_size=2, device="cuda"))[0] for _ in "ab"]
    assert torch.equal(nets[0].dense.weight, nets[1].dense.weight)
    weight = nets[0].dense.weight.detach().cpu()
    assert torch.allclose(weight @ weight.T, torch.eye(len(weight)), atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_bits_on_cuda(recordings, precision):
    """And nothing in it is refused by PyTorch's list of operations that may not."""
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(2):
            settings = how(iterations=8, batch_size=20, device="cuda", precision=precision)
            net, history = train_network(recordings[:2], settings, held_out=recordings[2:])
            image = standardize(recordings[2].image)
            results.append((net, history, probability_map(net, image, 5, precision=precision)))
    finally:
        torch.use_deterministic_algorithms(False)
    (first, history, found), (second, *again) = results
    assert history == again[0] and (found == again[1]).all()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_says_so():
    assert choose_device("auto") == CPU
    with pytest.raises(UserError, match="--device cuda: .* no such device here; choose from auto, cpu"):
        choose_device("cuda")


def test_devices_are_those_that_pytorch_has_here(monkeypatch):
    def have(cuda, xpu, mps):
        for kind, count in (("cuda", cuda), ("xpu", xpu)):
            monkeypatch.setattr(getattr(torch, kind), "is_available", lambda count=count: count > 0)
            monkeypatch.setattr(getattr(torch, kind), "device_count", lambda count=count: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    have(cuda=2, xpu=0, mps=False)
    assert choose_device("auto") == torch.device("cuda") and choose_device("cuda:1").index == 1
    with pytest.raises(UserError, match="--device cuda:2: .* choose from auto, cpu, cuda, cuda:0, cuda:1$"):
        choose_device("cuda:2")
    have(cuda=0, xpu=1, mps=True)
    assert choose_device("auto") == CPU
    for name in ("mps", "xpu", "xpu:0"):
        device = choose_device(name)
        assert device == torch.device(name)
        assert choose_precision("auto", device) == choose_precision("float32", device) == "float32"
        with pytest.raises(UserError, match="--precision bfloat16"):
            choose_precision("bfloat16", device)
        with warnings.catch_warnings(), arithmetic(device, "float32"):
            warnings.simplefilter("error")


def test_adam_of_devices_without_a_fused_one_takes_the_same_step(recordings, monkeypatch):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask], seed=1)
    nets = [NeuronNet(torch.Generator().manual_seed(0)) for _ in range(2)]
    fused, plain = (
        make_optimizer(net, torch.device(name), "standard")
        for net, name in zip(nets, ("cpu", "mps"), strict=True)
    )
    assert fused.defaults["fused"] and not plain.defaults["fused"]
    for optimizer, net in zip((fused, plain), nets, strict=True):
        Step(net, optimizer, "float32")(*sampler.sample(8))
        sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask], seed=1)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_nothing_is_computed_in_float64(recordings, monkeypatch):
    """Apple's GPUs have none."""
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    seen = set()

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), options=None):
            result = operation(*arguments, **(options or {}))
            seen.update(x.dtype for x in tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    monkeypatch.setattr(
        "neurodetect.training.make_optimizer", lambda net, _, how: make_optimizer(net, MPS, how)
    )
    net = NeuronNet()
    image = recordings[0].image
    with Look():
        sampler = PatchSampler([standardize(image)], [recordings[0].mask], transpose=True)
        train(net, sampler, 2, 4, recipe="standard", held_out=sampler)
        probability_map(net, standardize(image), 20, precision="float32")
    assert torch.float32 in seen and torch.float64 not in seen


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_on_a_gpu_follows_the_cpu(network, recordings, precision):
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask], seed=1)
    windows, targets = sampler.sample(8)
    losses = []
    for device in ("cpu", "cuda"):
        net = copy.deepcopy(network).to(device)
        optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)
        for _ in range(3):
            loss = train_step(net, optimizer, windows.to(device), targets.to(device), precision)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


class PlayedCuda:
    """What `Step` asks of torch.cuda, on a CPU: a recording computes nothing, a replay what was recorded.

    `free` and `needed` are the bytes that the device would say.
    """

    def __init__(self, monkeypatch, free=100, needed=10):
        self.log, self.free, self.needed = [], free, needed
        self.recording = None
        monkeypatch.setattr("neurodetect.training.has_graphs", lambda device: True)
        monkeypatch.setattr("neurodetect.training.train_step", self.train_step)
        monkeypatch.setattr("neurodetect.training.torch.cuda.Stream", self.Stream)
        for name in ("stream", "device", "graph", "CUDAGraph", "current_stream", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + self.needed)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, 1000))

    def train_step(self, *arguments):
        if self.recording is None:
            self.log.append("plain")
            return train_step(*arguments)
        self.recording.arguments, self.recording.loss = arguments, torch.zeros(())
        return self.recording.loss

    class Stream:
        made = 0

        def __init__(self, device):
            type(self).made += 1

        def wait_stream(self, other):
            pass

    class CUDAGraph:
        def replay(self):
            self.log.append("replay")
            self.loss.copy_(train_step(*self.arguments))

    def stream(self, stream):
        return nullcontext()

    device = stream

    @contextmanager
    def graph(self, graph, stream):
        assert isinstance(stream, self.Stream)
        self.log.append("record")
        graph.log, self.recording = self.log, graph
        yield
        self.recording = None

    def current_stream(self, device):
        return SimpleNamespace(wait_stream=lambda other: None)

    def empty_cache(self):
        pass


def assert_replayed_as_plain(network, recordings, device, precision, parts=1):
    """Each step of `Step` against the plain step from the same weights and the same state of Adam."""
    plain, replayed = (copy.deepcopy(network).to(device) for _ in range(2))
    optimizers = [make_optimizer(net, torch.device(device), "standard") for net in (plain, replayed)]
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask], device, seed=1)
    step = Step(replayed, optimizers[1], precision)
    for done in range(Step.WARM_UP + 4):
        for optimizer in optimizers:
            set_learning_rates(optimizer, rate_share(done, 20))
        windows, targets = sampler.sample(8)
        arguments = optimizers[0], windows, targets, precision, parts
        expected = train_step(plain, *arguments).item()
        assert step(windows, targets).item() == pytest.approx(expected, rel=1e-3)
        for a, b in zip(plain.parameters(), replayed.parameters(), strict=True):
            # A gradient that is nearly zero may round to either side, and Adam's first steps are its sign.
            assert ((a - b).abs() > 1e-6).float().mean() < 1e-3
            with torch.no_grad():
                b.copy_(a)
            for key, value in optimizers[0].state[a].items():
                optimizers[1].state[b][key].copy_(value)
    return step


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replayed_step_is_the_step_on_cuda(network, recordings, precision):
    assert assert_replayed_as_plain(network, recordings, "cuda", precision)._graph is not None


def test_a_step_is_recorded_once_on_one_stream_and_replayed(recordings, monkeypatch):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    played = PlayedCuda(monkeypatch)
    made = played.Stream.made
    net = NeuronNet(torch.Generator().manual_seed(0))
    step = assert_replayed_as_plain(net, recordings, "cpu", "float32")
    assert played.log == ["plain"] * Step.WARM_UP + ["record"] + ["replay"] * 4
    assert played.Stream.made == made + 1
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask])
    assert step(*sampler.sample(8)) is step(*sampler.sample(8))  # as its docstring says


def test_nothing_is_recorded_where_memory_could_run_out_in_the_middle(recordings, monkeypatch):
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    played = PlayedCuda(monkeypatch, free=6, needed=10)
    net = NeuronNet(torch.Generator().manual_seed(0))
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask])
    step = Step(net, make_optimizer(net, CPU), "float32")
    for _ in range(Step.WARM_UP):
        step(*sampler.sample(8))
    with pytest.warns(UserWarning, match="short of memory"):
        step(*sampler.sample(8))
    assert step.parts == 2
    played.needed = 5  # halves take less; 6 bytes are not enough with what rounding up may take
    for _ in range(Step.WARM_UP):
        step(*sampler.sample(8))
    assert step.parts == 4
    played.needed = 4
    for _ in range(Step.WARM_UP + 1):
        step(*sampler.sample(8))
    plain = ["plain"] * Step.WARM_UP
    assert played.log == [*plain, *plain, *plain, "record", "replay", "replay"]


def test_the_loss_is_read_every_hundred_iterations_where_steps_are_replayed(recordings, monkeypatch, capsys):
    """On a GPU nothing else may wait for a number: every one that is read holds up the steps to come."""
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 100)
    monkeypatch.setattr("neurodetect.progress.DELAY", 0)
    PlayedCuda(monkeypatch)
    losses = iter(range(1, 251))
    monkeypatch.setattr(Step, "__call__", lambda *_: torch.tensor(float(next(losses))))
    read, item = [], torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: read.append(item(self)) or read[-1])
    sampler = PatchSampler([standardize(recordings[0].image)], [recordings[0].mask])
    history = train(NeuronNet(), sampler, 250, 2, recipe="standard", description="training")
    assert [entry["iteration"] for entry in history] == [100, 200, 250]
    assert read == [entry["loss"] for entry in history]
    assert f"loss {read[-1]:.3f}" in capsys.readouterr().err.splitlines()[-1]


def test_a_network_can_be_made_without_memory():
    with torch.device("meta"):
        assert NeuronNet().dense.weight.is_meta


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_pytorch_in_the_middle_of_a_file_is_told_as_it_is(tmp_path, monkeypatch, trouble):
    class Stopped(io.FileIO):
        def write(self, content):
            if self.tell() > 1000:
                raise trouble
            return super().write(content)

    monkeypatch.setattr("neurodetect.weights.open", lambda path, mode: Stopped(path, mode), raising=False)
    with pytest.raises(KeyboardInterrupt if isinstance(trouble, KeyboardInterrupt) else UserError):
        save_whole(tmp_path / "model.pt", {"weights": torch.zeros(10**5)})
    assert list(tmp_path.iterdir()) == []
