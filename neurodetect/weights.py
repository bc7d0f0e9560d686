"""A trained network on disk, and PyTorch's files in general: written whole, read without running code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import torch

from neurodetect.device import is_out_of_memory
from neurodetect.files import UserError, reason, write_whole
from neurodetect.network import SHARED, NeuronNet, TiedNet, empty_network
from neurodetect.regions import dataset_name, whole_name

#: By recipe: of a network in float32, without what groups have of their own
WEIGHTS_BYTES = {"standard": 4 * 514_924, "2016": 4 * 81_073_300}
WEIGHTS_FORMAT = "neurodetect weights 1"
STARTED_FROM = "started from"  #: the settings of the weights that a training began with, in its own


def save_network(path: str | Path, network: NeuronNet, settings: dict[str, Any]) -> None:
    """Write the weights, and the settings they were trained with, whole or not at all.

    Parameters
    ----------
    path : str or Path
        The file: 2 MB, or 325 MB with `--recipe 2016`.
    network : NeuronNet
    settings : dict
        Numbers, strings and lists of them.
    """
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    content = {"format": WEIGHTS_FORMAT, "weights": weights, "own": network.own, "settings": settings}
    save_whole(path, content)


def load_network(path: str | Path) -> tuple[NeuronNet, dict[str, Any]]:
    """Read a network, on the CPU, and its settings from a file of `save_network`.

    Raises
    ------
    UserError
        The file is missing, truncated, no weights of this network, or would run code.
    """
    advice = "use a file that conv2d_predict.py --save-model wrote"
    content = load_safely(path, "a weights file", advice)
    if not isinstance(content, dict) or content.get("format") != WEIGHTS_FORMAT:
        raise UserError(f"{path}: holds something else than weights of neurodetect; {advice}")
    weights, own, settings = (content.get(key, {}) for key in ("weights", "own", "settings"))
    if not isinstance(own, dict) or not all(isinstance(group, str) for group in own):
        raise UserError(f"{path}: holds weights for something else than groups of recordings; {advice}")
    for some in (weights, *own.values()):
        if not isinstance(some, dict) or not all(map(is_plain, some.items())):
            raise UserError(f"{path}: holds weights that are no plain float32 tensors; {advice}")
    if not are_settings(settings):
        raise UserError(f"{path}: holds settings that no training has; {advice}")
    tied = SHARED in weights and weights[SHARED].ndim == 4
    network = empty_network(TiedNet if tied else NeuronNet)
    try:
        network.load_state_dict(weights, assign=True)
        network.own = own
        for group in own:
            network.for_group(group)
    except RuntimeError as error:
        raise UserError(f"{path}: holds the weights of another network; {advice}") from error
    if not all(torch.isfinite(value).all() for some in (weights, *own.values()) for value in some.values()):
        raise UserError(f"{path}: holds weights that are not finite numbers; train again")
    return network.eval(), settings


def is_plain(item: tuple[Any, Any]) -> bool:
    """Whether it is a name and a tensor as `save_network` writes them: float32, every value stored."""
    name, weight = item
    return (
        isinstance(name, str)
        and isinstance(weight, torch.Tensor)
        and weight.layout == torch.strided
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
    )


def are_settings(settings: Any) -> TypeGuard[dict[str, Any]]:
    """Whether they are settings as `save_network` writes them, as far as anything later relies on them."""
    if not isinstance(settings, dict):
        return False
    try:
        json.dumps(settings, allow_nan=False)  # they are written into the log of what is found
    except (TypeError, ValueError, RecursionError):
        return False
    return (
        settings.get("recipe", "standard") in ("standard", "2016", "now")
        and settings.get("background", "keep") in ("keep", "subtract", "normalize")
        and isinstance(settings.get("neuron_area", {}), dict)
        and isinstance(thresholds := settings.get("thresholds", {}), dict)
        and all(isinstance(value, float) and 0 < value < 1 for value in thresholds.values())
        and all(
            isinstance(training, dict)
            and isinstance(training.get("recordings", []), list)
            and isinstance(training.get("inputs", {}), dict)
            for training in trainings(settings)
        )
    )


def trainings(settings: dict[str, Any]) -> Iterator[Any]:
    """The settings of a network's training, of the training that this one started from, and so on."""
    yield settings
    while isinstance(settings, dict) and (earlier := settings.get(STARTED_FROM)) is not None:
        yield earlier
        settings = earlier


def was_trained_on(settings: dict[str, Any], name: str, digest: str) -> bool:
    """Whether a recording was among those that a network learned from, now or before.

    Parameters
    ----------
    settings : dict
        Of the network, as `load_network` gives them.
    name : str
        Of the recording. A part of it that was cut out counts as the recording.
    digest : str
        SHA-256 of its mean image's file: under another name it is the same.
    """
    name = dataset_name(whole_name(name))
    return any(
        name in {dataset_name(whole_name(str(known))) for known in training.get("recordings", [])}
        or digest in training.get("inputs", {}).values()
        for training in trainings(settings)
    )


def require_unseen(path: str | Path, settings: dict[str, Any], images: dict[str, str]) -> None:
    """Make sure that a network's scores on recordings would be honest.

    Parameters
    ----------
    path : str or Path
        Of the network.
    settings, images
        See `was_trained_on`; the digest of each recording's image, by its name.

    Raises
    ------
    UserError
        One of them was trained on.
    """
    for name, digest in images.items():
        if was_trained_on(settings, name, digest):
            raise UserError(
                f"{name}: was trained on for {path}, so that its scores would say nothing; leave it out of "
                "the folder, or start from other weights"
            )


# PyTorch's files


def save_whole(path: str | Path, content: dict[str, Any]) -> None:
    """Write a file of PyTorch's, whole or not at all; the same content gives the same bytes."""
    # Given a path, PyTorch would put the temporary file's name into the file.
    with write_whole(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # What PyTorch says of a full disk or Ctrl-C is its trouble with the file that it could not end.
            if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
                raise error.__context__ from None
            raise


def load_safely(path: str | Path, kind: str, advice: str) -> Any:
    """Read a file of PyTorch's: tensors, on the CPU, and plain values; code in it is not run.

    Parameters
    ----------
    path : str or Path
    kind, advice : str
        What the file should be, and what the user is told to do if it is not.

    Raises
    ------
    UserError
        The file is missing, truncated, no file of PyTorch's, too large for the memory, or would run code.
    """
    try:
        # Only PyTorch's zip format: its older ones begin to unpickle before anything can be checked.
        if not zipfile.is_zipfile(path):
            Path(path).open("rb").close()
            raise UserError(f"{path}: is not {kind}, or is cut short; {advice}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); {advice}") from error
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):  # also where a damaged file promises more than there is
            raise UserError(
                f"{path}: there is too little memory to read it, or it is damaged; close other programs"
            ) from error
        # PyTorch meets damage in many ways: RuntimeError, UnpicklingError, UnicodeDecodeError, KeyError, ...
        raise UserError(f"{path}: is damaged or is not {kind}; {advice}") from error
