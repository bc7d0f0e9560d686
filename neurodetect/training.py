"""The training loop and its schedule."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from neurodetect.device import arithmetic, freed_memory_kept, has_graphs, is_out_of_memory, repeatable
from neurodetect.files import UserError
from neurodetect.network import TARGET, NeuronNet
from neurodetect.patches import PatchSampler
from neurodetect.processes import ALONE, Team
from neurodetect.progress import progress_bar
from neurodetect.signals import signals_held

if TYPE_CHECKING:
    from neurodetect.resume import Checkpoint

LEARNING_RATE = 2e-4  #: of the recipe of 2016, for all weights and to the end
BETAS = (0.9, 0.99)
# The standard recipe's highest rates, of tied dense layers (see `network.TiedNet`). A unit that sees 12,100
# values moves much further in a step of Adam's, whose weights all move as far, than a map that sees 450.
LEARNING_RATES = {"conv": 2e-3, "dense": 4e-4, "output": 2e-3}
# Of them, where brightness and contrast are as they were: of images of several laboratories a network learned
# nothing at full rates, and in two of four trainings at half of them.
SHARE_OF_RATES = {"keep": 0.3, "subtract": 1.0, "normalize": 1.0}
RISE = 0.1  #: share of the iterations, the first, over which the standard recipe's rates rise from zero
# Of a training that starts from random weights. Held out, recordings of four laboratories gained nothing from
# 1,500 iterations to 3,000 of the standard recipe.
ITERATIONS = {"standard": 2_500, "2016": 10_000}
# Of a training that starts from trained weights. From one field 300 find no more in others of its laboratory.
TRAINED_ITERATIONS = 100

CHECK_EVERY = 100  #: iterations between two looks at the held-out windows
HELD_OUT_WINDOWS = 200  #: windows of one such look
LOSS_MEMORY = 0.98  #: the running loss forgets half of its past in 34 iterations
NOTHING_LEARNED = 0.9  #: of the loss without a look at the image: a training that ends above it has failed
LONG_ENOUGH = 500  #: iterations after which that can be told

Result = TypeVar("Result")


def train(
    network: NeuronNet,
    sampler: PatchSampler,
    iterations: int,
    batch_size: int,
    *,
    precision: str = "float32",
    recipe: str = "2016",
    rates: float = 1.0,
    held_out: PatchSampler | None = None,
    checkpoint: Checkpoint | None = None,
    description: str | None = None,
    team: Team = ALONE,
) -> list[dict[str, float]]:
    """Train the network in place with Adam on binary cross-entropy.

    Parameters
    ----------
    network : NeuronNet
        On the sampler's device; of its weights those that require a gradient are trained.
    sampler : PatchSampler
        Source of training windows.
    iterations, batch_size : int
        How many batches of how many windows.
    precision : {"float32", "bfloat16"}
        bfloat16 computes activations and products in it; weights and sums stay float32.
    recipe : {"2016", "standard"}
        "2016" keeps one learning rate. "standard" has higher ones that rise and fall to zero, see
        `rate_share`.
    rates : float
        Times the standard recipe's, see SHARE_OF_RATES.
    held_out : PatchSampler, optional
        Recordings that are not trained on: one balanced batch of them is looked at every 100 iterations.
    checkpoint : Checkpoint, optional
        Where to go on from, if there is anything, and where the state is kept: every so many seconds, at
        the end, and on Ctrl-C and SIGTERM. On a CPU the weights are then, bit for bit, those of a run in
        one go.
    description : str, optional
        Label of a progress bar with the running loss and the held-out error.
    team : Team
        Processes that share every batch, with networks and samplers alike; no more than a batch has windows.
        The result is that of one process up to rounding. The leader keeps the checkpoint.

    Returns
    -------
    list of dict
        Every 100 iterations and at the end: "iteration", the running mean "loss", and with `held_out`
        the "held_out_error", the share of wrong pixels.

    Warns
    -----
    UserWarning
        After 500 iterations or more the loss is hardly less than that of who says of each pixel of a window
        how often it is neuron, whatever the image.

    Raises
    ------
    UserError
        The loss is no longer finite; not even one window fits in the device's memory; or processes find
        different checkpoints.
    """
    device = sampler.device
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    optimizer = make_optimizer(network, device, recipe)
    step = Step(network, optimizer, precision, team)
    check = held_out.sample(HELD_OUT_WINDOWS) if held_out is not None else None
    running = torch.zeros((), device=device)  # running mean of the loss
    often = torch.zeros(TARGET**2, device=device)  # how often each pixel of a window is neuron, of late
    history: list[dict[str, float]] = []
    done = 0

    if checkpoint is not None and (state := checkpoint.load()) is not None:
        done, history = state["iteration"], state["history"]
        running.copy_(state["running"])
        sampler.restore(state["sampler"])
        network.load_state_dict({**network.state_dict(), **state["network"]})
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state["adam"]})
    if done != team.word(done):
        raise UserError(f"{checkpoint.path}: all processes have to see this file; choose a shared disk")
    begun, kept_at, kept = done, done, time.monotonic()

    def keep() -> None:
        if not team.leads:
            return
        checkpoint.save(
            {
                "iteration": done,
                "history": history,
                "running": running,
                "sampler": sampler.state(),
                "network": {name: w.detach() for name, w in network.named_parameters() if w.requires_grad},
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
        freed_memory_kept(),
    ):
        if history:
            bar.set_postfix_str(postfix(history[-1]["loss"], history), refresh=False)
        while done < iterations and not team.any(stop()):  # one that stops alone would leave others waiting
            if recipe == "standard":
                set_learning_rates(optimizer, rates * rate_share(done, iterations))
            windows, targets = sampler.sample(batch_size)
            loss = step(windows, targets)
            done += 1
            # The first iterations count evenly, so that the running means need no warming up.
            running.lerp_(loss, max(1 - LOSS_MEMORY, 1 / done))
            often.lerp_(targets.mean(0), max(1 - LOSS_MEMORY, 1 / (done - begun)))
            if done % CHECK_EVERY == 0 or done == iterations:
                history.append({"iteration": done, "loss": finite_loss(running, done)})
                if check is not None:
                    history[-1]["held_out_error"] = step.window_error(*check)
                bar.set_postfix_str(postfix(history[-1]["loss"], history), refresh=False)
            elif done % 10 == 0 and not has_graphs(device):  # where reading it would hold up the next steps
                bar.set_postfix_str(postfix(running.item(), history), refresh=False)
            bar.update()
            if checkpoint is not None and time.monotonic() - kept >= checkpoint.seconds:
                keep()
                kept_at, kept = done, time.monotonic()
        if checkpoint is not None and done > kept_at:
            keep()
    if done < iterations:
        raise KeyboardInterrupt  # whoever handled the signal went on, but there is no trained network
    if done > begun and iterations >= LONG_ENOUGH:
        blind = nn.functional.binary_cross_entropy(often, often).item()
        if history[-1]["loss"] > NOTHING_LEARNED * blind:
            warnings.warn(
                f"the network has learned next to nothing: its loss is {history[-1]['loss']:.3f}, and "
                f"{blind:.3f} without a look at the images; are the labels those of the images? If they are, "
                "leave --background and --recipe as they are by default, or try another --seed",
                stacklevel=2,
            )
    network.zero_grad(set_to_none=True)  # as large as the weights, and of no more use
    network.eval()
    return history


def make_optimizer(network: NeuronNet, device: torch.device, recipe: str = "2016") -> torch.optim.Optimizer:
    """Adam for a network on a device; each group's "highest" learning rate is a number.

    The standard recipe has rates of its own for the three kinds of layers.
    """
    replayed = has_graphs(device)
    kinds: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            kinds.setdefault(name.split(".")[0].rstrip("123456"), []).append(parameter)
    groups = []
    for kind, parameters in kinds.items():
        highest = LEARNING_RATES[kind] if recipe == "standard" else LEARNING_RATE
        groups.append(
            {
                "params": parameters,
                "lr": torch.tensor(highest, device=device) if replayed else highest,
                "highest": highest,
            }
        )
    return torch.optim.Adam(
        groups,
        betas=BETAS,
        # With 81 million weights the plain update costs as much as the rest of a step on a CPU. Not every
        # version of PyTorch has the other one for every device.
        fused=device.type in ("cpu", "cuda") or None,
        capturable=replayed,
    )


def allocate(optimizer: torch.optim.Optimizer) -> None:
    """Give Adam the memory that it would take in its first step, layer by layer.

    Short of memory in the middle of that step, it would have changed some layers' weights and not others'.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    # Unless fused, Adam computes with this number where Python does.
                    "step": torch.zeros((), device=parameter.device if group["fused"] else "cpu"),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def finite_loss(running: Tensor, done: int) -> float:
    """The running mean of the loss after `done` iterations; a UserError where it is not finite."""
    loss = running.item()
    if not math.isfinite(loss):
        raise UserError(
            f"training failed at iteration {done}: the loss is not finite; "
            "check the training images, or use --precision float32"
        )
    return loss


def rate_share(done: int, iterations: int) -> float:
    """Share of its highest learning rate that each weight has after `done` of `iterations`.

    A line up over the first RISE of them, then half a cosine down to zero: Adam's first steps are all of
    full size and in one direction, and at the end the weights shall settle instead of wandering.

    Examples
    --------
    >>> [round(rate_share(done, 100), 2) for done in (0, 9, 10, 55, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    first = RISE * iterations
    if done < first:
        return min(1.0, (done + 1) / first)
    return (1 + math.cos(math.pi * (done - first) / (iterations - first))) / 2


def set_learning_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give all groups this share of their highest rate, in place where it is a tensor, so that a CUDA graph
    sees it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(share * group["highest"])
        else:
            group["lr"] = share * group["highest"]


class Step:
    """One step of Adam after another; on CUDA recorded once as a graph, and replayed.

    Replayed, a step is one command to the device instead of some two hundred, which take longer to give
    than to carry out. Where a batch does not fit in the device's memory its gradient is summed over halves,
    quarters and so on: the same up to rounding.

    Parameters
    ----------
    network : NeuronNet
    optimizer : torch.optim.Optimizer
        Of its parameters, see `make_optimizer`.
    precision : {"float32", "bfloat16"}
    team : Team
        Processes that take the same steps together, each with its share of the batch; without a graph.
    """

    WARM_UP = 3  #: steps before a graph is recorded, in which libraries and Adam allocate what they keep
    SPARE = 1.25  #: times the memory that such a step took has to be free for the recording

    def __init__(
        self,
        network: NeuronNet,
        optimizer: torch.optim.Optimizer,
        precision: str,
        team: Team = ALONE,
    ) -> None:
        self.network, self.optimizer, self.precision, self.team = network, optimizer, precision, team
        self.parts = 1
        self._steps = 0
        self._side: torch.cuda.Stream | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, windows: Tensor, targets: Tensor) -> Tensor:
        """Take a step on a batch; returns its loss, detached, on the device.

        Replayed, the loss is in a buffer that the next step overwrites: copy what shall stay. Batches have to
        be all of one size.
        """
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
                self._forget()

    def _step(self, windows: Tensor, targets: Tensor) -> Tensor:
        allocate(self.optimizer)
        if not has_graphs(windows.device) or self.team.size > 1:
            return self._plain(windows, targets)
        if self._graph is None:
            if self._steps < self.WARM_UP:
                return self._warm_up(windows, targets)
            self._record(windows, targets)
        self._windows.copy_(windows)
        self._targets.copy_(targets)
        self._graph.replay()
        return self._loss

    def _warm_up(self, windows: Tensor, targets: Tensor) -> Tensor:
        """A plain step, on the stream that the recording will be on: memory that a step leaves to the next
        belongs to a stream."""
        device = windows.device
        if self._side is None:
            self._side = torch.cuda.Stream(device)
        if self._steps == 0:
            torch.cuda.reset_peak_memory_stats(device)
        self._side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._side):
            loss = self._plain(windows, targets)
        torch.cuda.current_stream(device).wait_stream(self._side)
        self._steps += 1
        return loss

    def _record(self, windows: Tensor, targets: Tensor) -> None:
        """Record a step, if there is memory for it: short of it in the middle, CUDA could not go on."""
        device = windows.device
        self._windows, self._targets = windows.clone(), targets.clone()
        self.optimizer.zero_grad(set_to_none=True)
        needed = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        if free < self.SPARE * needed:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {free} bytes free to record {needed}")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=self._side):
            self._loss = self._plain(self._windows, self._targets)
        self._graph = graph

    def _forget(self) -> None:
        """Give back the memory of a recording, in which gradients and loss lie, and begin anew."""
        self.optimizer.zero_grad(set_to_none=True)
        self._graph = self._loss = self._windows = self._targets = None
        self._steps = 0

    def _plain(self, windows: Tensor, targets: Tensor) -> Tensor:
        return train_step(
            self.network,
            self.optimizer,
            windows,
            targets,
            self.precision,
            self.parts,
            self.team,
        )


def train_step(
    network: NeuronNet,
    optimizer: torch.optim.Optimizer,
    windows: Tensor,
    targets: Tensor,
    precision: str,
    parts: int = 1,
    team: Team = ALONE,
) -> Tensor:
    """One step of Adam on one batch, handled in parts; returns its loss, detached, on the device.

    A team's processes handle a share each of the same batch, and exchange the sums of their gradients: 324 MB
    of the recipe of 2016, against the 1.5 GFLOP that a window takes, 2 MB of the standard one.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=windows.device)
    own_windows, own_targets = (windows, targets) if team.size == 1 else map(team.part, (windows, targets))
    with repeatable():
        for some, wanted in zip(own_windows.chunk(parts), own_targets.chunk(parts), strict=True):
            with arithmetic(windows.device, precision):
                logits = network(some.to(memory_format=torch.channels_last))
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted)
            loss = loss * (len(some) / len(windows))
            loss.backward()
            total += loss.detach()
    team.add_up(total, *(parameter.grad for parameter in network.parameters() if parameter.requires_grad))
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
