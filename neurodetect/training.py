"""The training loop, where and how precisely it computes, and the weights on disk."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurodetect.checkpoint import Checkpoint, load_safely, save_whole, signals_held
from neurodetect.files import UserError
from neurodetect.network import NeuronNet
from neurodetect.patches import PatchSampler
from neurodetect.progress import progress_bar
from neurodetect.projection import Prepared, scale
from neurodetect.regions import regions_to_separate_mask

LEARNING_RATE = 2e-4
BETAS = (0.9, 0.99)
DECAY = 0.3  #: share of the iterations, the last, over which the learning rate goes down to zero

CHECK_EVERY = 100  #: iterations between two looks at the held-out windows
HELD_OUT_WINDOWS = 200  #: windows of one such look
LOSS_MEMORY = 0.98  #: the running loss forgets half of its past in 34 iterations

ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")

WEIGHTS_FORMAT = "neurodetect weights 1"


# Where and how precisely


def choose_device(device: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda".

    Raises
    ------
    UserError
        "cuda" where PyTorch sees no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision for "auto", "float32" or "bfloat16": "auto" is bfloat16 where that is faster."""
    if precision in ("float32", "bfloat16"):
        return precision
    if precision != "auto":
        raise ValueError(f"unknown precision {precision!r}, use auto, float32 or bfloat16")
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        # Older PyTorch and other processors do not say; float32 is always right.
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        fast = bool(supported())
    return "bfloat16" if fast else "float32"


@contextmanager
def arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Context in which the network computes in this precision; weights stay float32.

    float32 means it: where CUDA's convolutions would round to TensorFloat-32, with three digits, they don't.
    """
    rounded = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = rounded


# The loop


def split_folds(count: int, folds: int, seed: int) -> list[list[int]]:
    """Deal recordings into folds at random: the held-out recordings of each fold.

    Parameters
    ----------
    count : int
        Number of recordings.
    folds : int
        Number of folds; with fewer recordings each is a fold of its own.
    seed : int

    Returns
    -------
    list of list of int
        Every recording is in one fold; sizes differ by one at most.

    Raises
    ------
    UserError
        There are fewer than two recordings.
    """
    if count < 2:
        raise UserError("cross-validation holds recordings out and needs two labelled ones at least")
    from sklearn.model_selection import KFold  # takes a second that only cross-validation should pay

    splitter = KFold(min(folds, count), shuffle=True, random_state=seed)
    return [held_out.tolist() for _, held_out in splitter.split(range(count))]


def train_network(
    recordings: Sequence[Prepared],
    iterations: int,
    batch_size: int,
    *,
    seed: int,
    device: torch.device,
    precision: str,
    recipe: str = "now",
    background: str = "keep",
    held_out: Sequence[Prepared] = (),
    checkpoint: Checkpoint | None = None,
    description: str | None = None,
) -> tuple[NeuronNet, list[dict[str, float]]]:
    """A new network, trained on labelled recordings.

    Parameters
    ----------
    recordings, held_out : sequence of Prepared
        Labelled recordings to train on, and others to look at in between.
    seed : int
        Of the initial weights and of the windows drawn.
    device : torch.device
    recipe : {"now", "2016"}
        "2016" draws windows with flips only and keeps the learning rate. "now" draws them in eight
        orientations, from masks in which touching neurons are apart, and lets the learning rate go down
        to zero.
    background : {"keep", "subtract"}
        See `projection.scale`.
    iterations, batch_size, precision, checkpoint, description
        See `train`.

    Returns
    -------
    NeuronNet, list of dict
        The network on the device, and the history that `train` returns.

    Raises
    ------
    UserError
        There is no neuron, or nothing but neurons, in the recordings; the loss is no longer finite.
    """
    modern = recipe == "now"

    def sampler(of: Sequence[Prepared], masks: list[np.ndarray], **how: Any) -> PatchSampler:
        return PatchSampler([scale(r.image, background) for r in of], masks, device, **how)

    masks = [regions_to_separate_mask(r.regions, r.image.shape) if modern else r.mask for r in recordings]
    windows = sampler(recordings, masks, seed=seed, transpose=modern)
    check = None
    # Held-out recordings without a neuron have no balanced batch; the table at the end still has them.
    if any(r.mask.any() for r in held_out) and not all(r.mask.all() for r in held_out):
        check = sampler(held_out, [r.mask for r in held_out], seed=seed + 1)
    network = NeuronNet(torch.Generator().manual_seed(seed)).to(device)
    history = train(
        network,
        windows,
        iterations,
        batch_size,
        precision=precision,
        decay=DECAY if modern else 0.0,
        held_out=check,
        checkpoint=checkpoint,
        description=description,
    )
    return network, history


def train(
    network: NeuronNet,
    sampler: PatchSampler,
    iterations: int,
    batch_size: int,
    *,
    precision: str = "float32",
    decay: float = 0.0,
    held_out: PatchSampler | None = None,
    checkpoint: Checkpoint | None = None,
    description: str | None = None,
) -> list[dict[str, float]]:
    """Train the network in place with Adam on binary cross-entropy.

    Parameters
    ----------
    network : NeuronNet
        On the sampler's device.
    sampler : PatchSampler
        Source of training windows.
    iterations, batch_size : int
        How many batches of how many windows.
    precision : {"float32", "bfloat16"}
        bfloat16 computes activations and products in it; weights and sums stay float32.
    decay : float
        Share of the iterations, the last, over which the learning rate goes down to zero in a line: the
        weights then settle instead of wandering.
    held_out : PatchSampler, optional
        Recordings that are not trained on: one balanced batch of them is looked at every 100 iterations.
    checkpoint : Checkpoint, optional
        Where to go on from, if there is anything, and where the state is kept: every so many seconds, at
        the end, and on Ctrl-C and SIGTERM. On a CPU the weights are then, bit for bit, those of a run in
        one go.
    description : str, optional
        Label of a progress bar with the running loss and the held-out error.

    Returns
    -------
    list of dict
        Every 100 iterations and at the end: "iteration", the running mean "loss", and with `held_out`
        the "held_out_error", the share of wrong pixels.

    Raises
    ------
    UserError
        The loss is no longer finite, or not even one window fits in the device's memory.
    """
    device = sampler.device
    network.to(memory_format=torch.channels_last)
    network.train()
    # Fused: with 81 million weights the plain update costs as much as the rest of a step on a CPU.
    on_cuda = device.type == "cuda"
    optimizer = torch.optim.Adam(
        network.parameters(),
        lr=torch.tensor(LEARNING_RATE, device=device) if on_cuda else LEARNING_RATE,
        betas=BETAS,
        fused=True,
        capturable=on_cuda,
    )
    check = held_out.sample(HELD_OUT_WINDOWS) if held_out is not None else None
    running = torch.zeros((), device=device)  # running mean of the loss
    history: list[dict[str, float]] = []
    done = 0

    if checkpoint is not None and (state := checkpoint.load()) is not None:
        done, history = state["iteration"], state["history"]
        running.copy_(state["running"])
        sampler.restore(state["sampler"])
        restore(network, optimizer, state)
        del state  # a mapped file
    kept_at, kept = done, time.monotonic()

    def keep() -> None:
        checkpoint.save(
            {
                "iteration": done,
                "history": history,
                "running": running,
                "sampler": sampler.state(),
                **tensors(network, optimizer),
            }
        )

    step = Step(network, optimizer, precision)
    with (
        progress_bar(
            description=description or "",
            total=iterations,
            initial=done,
            unit="batch",
            show=description is not None,
        ) as bar,
        signals_held() as stop,
    ):
        while done < iterations and not stop():
            set_learning_rate(optimizer, learning_rate(done, iterations, decay))
            loss = step(*sampler.sample(batch_size))
            done += 1
            # The first iterations count evenly, so that the running mean needs no warming up.
            running.lerp_(loss, max(1 - LOSS_MEMORY, 1 / done))
            if done % CHECK_EVERY == 0 or done == iterations:
                history.append({"iteration": done, "loss": running.item()})
                if not math.isfinite(history[-1]["loss"]):
                    raise UserError(
                        f"training failed at iteration {done}: the loss is not finite; "
                        "check the training images, or use --precision float32"
                    )
                if check is not None:
                    history[-1]["held_out_error"] = window_error(network, *check, precision)
            if done % 10 == 0 and device.type == "cpu":
                bar.set_postfix_str(postfix(running.item(), history), refresh=False)
            bar.update()
            if checkpoint is not None and time.monotonic() - kept >= checkpoint.seconds:
                keep()
                kept_at, kept = done, time.monotonic()
        if history:
            bar.set_postfix_str(postfix(history[-1]["loss"], history), refresh=False)
        if checkpoint is not None and done > kept_at:
            keep()
    if done < iterations:
        raise KeyboardInterrupt  # whoever handled the signal went on, but there is no trained network
    network.eval()
    return history


def learning_rate(done: int, iterations: int, decay: float) -> float:
    """Learning rate after `done` of `iterations`: over the last share `decay` it falls to zero."""
    left = (iterations - done) / iterations
    return LEARNING_RATE * (min(1.0, left / decay) if decay else 1.0)


def set_learning_rate(optimizer: torch.optim.Adam, value: float) -> None:
    """Give the optimizer this learning rate, in place where it is a tensor, so that a CUDA graph sees it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


class Step:
    """One step of Adam after another; on CUDA recorded once as a graph, and replayed.

    Replayed, a step is one command to the device instead of some two hundred, which take longer to give
    than to carry out. Where a batch does not fit in the device's memory its gradient is summed over halves,
    quarters and so on: the same up to rounding.

    Parameters
    ----------
    network : NeuronNet
    optimizer : torch.optim.Adam
        Of its parameters; on CUDA `capturable`.
    precision : {"float32", "bfloat16"}
    """

    WARM_UP = 3  #: steps before a graph is recorded, in which libraries and Adam allocate what they keep

    def __init__(self, network: NeuronNet, optimizer: torch.optim.Adam, precision: str) -> None:
        self.network, self.optimizer, self.precision = network, optimizer, precision
        self.parts = 1
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, windows: Tensor, targets: Tensor) -> Tensor:
        """Take a step on a batch; returns its loss, detached, on the device."""
        while True:
            try:
                return self._step(windows, targets)
            except torch.OutOfMemoryError as error:
                if self.parts >= len(windows):
                    raise UserError(
                        f"{windows.device} has too little memory to train this network; "
                        "close other programs on it, or use --device cpu"
                    ) from error
                if self.parts == 1:
                    warnings.warn(
                        f"{windows.device} is short of memory: batches are handled in parts, a little slower",
                        stacklevel=2,
                    )
                self.parts *= 2
                self._graph, self._steps = None, 0

    def _step(self, windows: Tensor, targets: Tensor) -> Tensor:
        if windows.device.type != "cuda":
            return train_step(self.network, self.optimizer, windows, targets, self.precision, self.parts)
        if self._graph is None and self._steps < self.WARM_UP:
            self._steps += 1
            # A graph is recorded on a stream of its own; so what is kept must not belong to another one.
            side = torch.cuda.Stream(windows.device)
            side.wait_stream(torch.cuda.current_stream(windows.device))
            with torch.cuda.stream(side):
                loss = train_step(self.network, self.optimizer, windows, targets, self.precision, self.parts)
            torch.cuda.current_stream(windows.device).wait_stream(side)
            return loss
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            self._windows, self._targets = windows.clone(), targets.clone()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                self._loss = train_step(
                    self.network, self.optimizer, self._windows, self._targets, self.precision, self.parts
                )
            self._graph = graph
        self._windows.copy_(windows)
        self._targets.copy_(targets)
        self._graph.replay()
        return self._loss


def train_step(
    network: NeuronNet,
    optimizer: torch.optim.Optimizer,
    windows: Tensor,
    targets: Tensor,
    precision: str,
    parts: int = 1,
) -> Tensor:
    """One step of Adam on one batch, handled in parts; returns its loss, detached, on the device."""
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=windows.device)
    for some, wanted in zip(windows.chunk(parts), targets.chunk(parts), strict=True):
        with arithmetic(windows.device, precision):
            logits = network(some.to(memory_format=torch.channels_last))
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted)
        loss = loss * (len(some) / len(windows))
        loss.backward()
        total += loss.detach()
    optimizer.step()
    return total


def tensors(network: NeuronNet, optimizer: torch.optim.Adam) -> dict[str, dict[str, Tensor]]:
    """What a training has learnt, for `restore`: weights, Adam's means of gradients and step counts."""
    parameters = dict(network.named_parameters())
    return {
        "weights": {name: parameter.detach() for name, parameter in parameters.items()},
        **{
            key: {name: optimizer.state[parameter][key] for name, parameter in parameters.items()}
            for key in ADAM_STATE
        },
    }


def restore(network: NeuronNet, optimizer: torch.optim.Adam, state: dict[str, dict[str, Tensor]]) -> None:
    """Put back what `tensors` gave."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(state["weights"][name])
            # Like the parameter in memory order too: the fused update goes through them side by side.
            optimizer.state[parameter] = {
                key: state[key][name].to(parameter.device, copy=True)
                if state[key][name].ndim == 0
                else torch.empty_like(parameter).copy_(state[key][name])
                for key in ADAM_STATE
            }


def window_error(network: NeuronNet, windows: Tensor, targets: Tensor, precision: str) -> float:
    """Share of target pixels that the network labels wrongly in these windows."""
    with torch.inference_mode(), arithmetic(windows.device, precision):
        labels = network(windows.to(memory_format=torch.channels_last)) > 0
    return (labels != (targets > 0.5)).float().mean().item()


def postfix(loss: float, history: list[dict[str, float]]) -> str:
    """What stands behind the progress bar."""
    error = history[-1].get("held_out_error") if history else None
    return f"loss {loss:.3f}" + ("" if error is None else f", held-out error {error:.1%}")


# Weights on disk


def save_network(path: str | Path, network: NeuronNet, settings: dict[str, Any]) -> None:
    """Write the weights, and the settings they were trained with, whole or not at all.

    Parameters
    ----------
    path : str or Path
        The file, about 325 MB.
    network : NeuronNet
    settings : dict
        Numbers, strings and lists of them.
    """
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    save_whole(path, {"format": WEIGHTS_FORMAT, "weights": weights, "settings": settings})


def load_network(path: str | Path) -> tuple[NeuronNet, dict[str, Any]]:
    """Read a network, on the CPU, and its settings from a file of `save_network`.

    Raises
    ------
    UserError
        The file is missing, truncated, no weights of this network, or would run code.
    """
    advice = "use a file that conv2d_predict.py --save-model wrote"
    content = load_safely(path, "a weights file", advice)
    expected = {"format": str, "weights": dict, "settings": dict}
    if (
        not isinstance(content, dict)
        or not all(isinstance(content.get(key), kind) for key, kind in expected.items())
        or content["format"] != WEIGHTS_FORMAT
    ):
        raise UserError(f"{path}: holds something else than weights of neurodetect; {advice}")
    with torch.device("meta"):  # neither memory nor random numbers for weights about to be replaced
        network = NeuronNet()
    try:
        network.load_state_dict(content["weights"], assign=True)
    except RuntimeError as error:
        raise UserError(f"{path}: holds the weights of another network; {advice}") from error
    if not all(torch.isfinite(value).all() for value in network.parameters()):
        raise UserError(f"{path}: holds weights that are not finite numbers; train again")
    return network.eval(), content["settings"]
