"""The training loop, where and how precisely it computes, and the weights on disk."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurodetect.files import UserError, reason, write_whole
from neurodetect.network import NeuronNet
from neurodetect.patches import PatchSampler
from neurodetect.progress import progress_bar
from neurodetect.projection import Prepared, standardize

LEARNING_RATE = 2e-4
BETAS = (0.9, 0.99)

CHECK_EVERY = 100  #: iterations between two looks at the held-out windows
HELD_OUT_WINDOWS = 200  #: windows of one such look
LOSS_MEMORY = 0.98  #: the running loss forgets half of its past in 34 iterations

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


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Context in which the network computes in this precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


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
    held_out: Sequence[Prepared] = (),
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
    iterations, batch_size, precision, description
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

    def sampler(of: Sequence[Prepared], seed: int) -> PatchSampler:
        return PatchSampler([standardize(r.image) for r in of], [r.mask for r in of], device, seed)

    windows = sampler(recordings, seed)
    check = None
    # Held-out recordings without a neuron have no balanced batch; the table at the end still has them.
    if any(r.mask.any() for r in held_out) and not all(r.mask.all() for r in held_out):
        check = sampler(held_out, seed + 1)
    network = NeuronNet(torch.Generator().manual_seed(seed)).to(device)
    history = train(
        network, windows, iterations, batch_size, precision=precision, held_out=check, description=description
    )
    return network, history


def train(
    network: NeuronNet,
    sampler: PatchSampler,
    iterations: int,
    batch_size: int,
    *,
    precision: str = "float32",
    held_out: PatchSampler | None = None,
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
    held_out : PatchSampler, optional
        Recordings that are not trained on: one balanced batch of them is looked at every 100 iterations.
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
        The loss is no longer finite.
    """
    device = sampler.device
    network.to(memory_format=torch.channels_last)
    network.train()
    # Fused: with 81 million weights the plain update costs as much as the rest of a step on a CPU.
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)
    check = held_out.sample(HELD_OUT_WINDOWS) if held_out is not None else None
    running = None  # running mean of the loss, kept on the device
    history = []
    with progress_bar(
        description=description or "", total=iterations, unit="batch", show=description is not None
    ) as bar:
        for iteration in range(1, iterations + 1):
            loss = train_step(network, optimizer, *sampler.sample(batch_size), precision)
            # The first iterations count evenly, so that the running mean needs no warming up.
            forget = 1 - max(1 - LOSS_MEMORY, 1 / iteration)
            running = loss if running is None else forget * running + (1 - forget) * loss
            if iteration % CHECK_EVERY == 0 or iteration == iterations:
                history.append({"iteration": iteration, "loss": running.item()})
                if not math.isfinite(history[-1]["loss"]):
                    raise UserError(
                        f"training failed at iteration {iteration}: the loss is not finite; "
                        "check the training images, or use --precision float32"
                    )
                if check is not None:
                    history[-1]["held_out_error"] = window_error(network, *check, precision)
            if iteration % 10 == 0 and device.type == "cpu":
                bar.set_postfix_str(postfix(running.item(), history), refresh=False)
            bar.update()
        bar.set_postfix_str(postfix(history[-1]["loss"], history), refresh=False)
    network.eval()
    return history


def train_step(
    network: NeuronNet, optimizer: torch.optim.Optimizer, windows: Tensor, targets: Tensor, precision: str
) -> Tensor:
    """One step of Adam on one batch; returns its loss, detached, on the device."""
    with autocast(windows.device, precision):
        logits = network(windows.to(memory_format=torch.channels_last))
    loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def window_error(network: NeuronNet, windows: Tensor, targets: Tensor, precision: str) -> float:
    """Share of target pixels that the network labels wrongly in these windows."""
    with torch.inference_mode(), autocast(windows.device, precision):
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
    with write_whole(path) as temporary:
        torch.save({"format": WEIGHTS_FORMAT, "weights": weights, "settings": settings}, temporary)


def load_network(path: str | Path) -> tuple[NeuronNet, dict[str, Any]]:
    """Read a network, on the CPU, and its settings from a file of `save_network`.

    Raises
    ------
    UserError
        The file is missing, truncated, no weights of this network, or would run code.
    """
    advice = "use a file that conv2d_predict.py --save-model wrote"
    try:
        # Only PyTorch's zip format: its older ones begin to unpickle before anything can be checked.
        if not zipfile.is_zipfile(path):
            Path(path).open("rb").close()
            raise UserError(f"{path}: is not a weights file, or is cut short; {advice}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); {advice}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise UserError(f"{path}: is damaged or is not a weights file; {advice}") from error
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
