"""The training loop and its schedule."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from neurodetect.device import arithmetic, is_out_of_memory
from neurodetect.files import UserError
from neurodetect.network import NeuronNet
from neurodetect.patches import PatchSampler
from neurodetect.progress import progress_bar
from neurodetect.resume import Checkpoint, signals_held

LEARNING_RATE = 2e-4
BETAS = (0.9, 0.99)
DECAY = 0.3  #: share of the iterations, the last, over which the learning rate goes down to zero

CHECK_EVERY = 100  #: iterations between two looks at the held-out windows
HELD_OUT_WINDOWS = 200  #: windows of one such look
LOSS_MEMORY = 0.98  #: the running loss forgets half of its past in 34 iterations

ADAM_STATE = {"exp_avg", "exp_avg_sq", "step"}

Result = TypeVar("Result")


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
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    optimizer = make_optimizer(network, device)
    step = Step(network, optimizer, precision)
    check = held_out.sample(HELD_OUT_WINDOWS) if held_out is not None else None
    running = torch.zeros((), device=device)  # running mean of the loss
    history: list[dict[str, float]] = []
    done = 0

    if checkpoint is not None and (state := checkpoint.load()) is not None:
        done, history = state["iteration"], state["history"]
        running.copy_(state["running"])
        sampler.restore(state["sampler"])
        network.load_state_dict(state["network"])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state["adam"]})
    kept_at, kept = done, time.monotonic()

    def keep() -> None:
        checkpoint.save(
            {
                "iteration": done,
                "history": history,
                "running": running,
                "sampler": sampler.state(),
                "network": network.state_dict(),
                "adam": optimizer.state_dict()["state"],
            }
        )

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
                history.append({"iteration": done, "loss": finite_loss(running, done)})
                if check is not None:
                    history[-1]["held_out_error"] = step.window_error(*check)
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
    network.zero_grad(set_to_none=True)  # as large as the weights, and of no more use
    network.eval()
    return history


def make_optimizer(network: NeuronNet, device: torch.device) -> torch.optim.Adam:
    """Adam as the method has it, for a network on a device."""
    on_cuda = device.type == "cuda"
    return torch.optim.Adam(
        network.parameters(),
        lr=torch.tensor(LEARNING_RATE, device=device) if on_cuda else LEARNING_RATE,
        betas=BETAS,
        fused=True,  # with 81 million weights the plain update costs as much as the rest of a step on a CPU
        capturable=on_cuda,
    )


def finite_loss(running: Tensor, done: int) -> float:
    """The running mean of the loss after `done` iterations; a UserError where it is not finite."""
    loss = running.item()
    if not math.isfinite(loss):
        raise UserError(
            f"training failed at iteration {done}: the loss is not finite; "
            "check the training images, or use --precision float32"
        )
    return loss


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
        return self._in_parts(lambda: self._step(windows, targets), windows)

    def window_error(self, windows: Tensor, targets: Tensor) -> float:
        """Share of target pixels that the network labels wrongly in windows. See `window_error`."""
        return self._in_parts(
            lambda: window_error(self.network, windows, targets, self.precision, self.parts), windows
        )

    def _in_parts(self, compute: Callable[[], Result], windows: Tensor) -> Result:
        """What `compute` gives; where memory is short, of twice as many parts, and so on."""
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.parts >= len(windows):
                    raise UserError(
                        f"{windows.device} has too little memory to train this network; "
                        "close other programs on it, or use --device cpu"
                    ) from error
                if self.parts == 1:
                    warnings.warn(
                        f"{windows.device} is short of memory: batches are handled in parts, a little slower",
                        stacklevel=3,
                    )
                self.parts *= 2
                self._graph, self._steps = None, 0
                # Adam takes its memory in the first step; what it got only a part of it would use as it is.
                for parameter, state in list(self.optimizer.state.items()):
                    if not state.keys() >= ADAM_STATE:
                        del self.optimizer.state[parameter]

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


def window_error(
    network: NeuronNet, windows: Tensor, targets: Tensor, precision: str, parts: int = 1
) -> float:
    """Share of target pixels that the network labels wrongly in windows, looked at in parts."""
    wrong = torch.zeros((), dtype=torch.int64, device=windows.device)
    with torch.inference_mode(), arithmetic(windows.device, precision):
        for some, wanted in zip(windows.chunk(parts), targets.chunk(parts), strict=True):
            labels = network(some.to(memory_format=torch.channels_last)) > 0
            wrong += (labels != (wanted > 0.5)).sum()
    return wrong.item() / targets.numel()


def postfix(loss: float, history: list[dict[str, float]]) -> str:
    """What stands behind the progress bar."""
    error = history[-1].get("held_out_error") if history else None
    return f"loss {loss:.3f}" + ("" if error is None else f", held-out error {error:.1%}")
