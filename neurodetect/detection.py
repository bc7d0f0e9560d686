"""The settings of a run; from labelled recordings to a network, from network and recording to its neurons.

And from the neurons and the recording's frames to their traces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from neurodetect.files import UserError, positive_number
from neurodetect.network import NeuronNet, TiedNet, empty_network
from neurodetect.patches import PatchSampler
from neurodetect.prepared import Prepared, group_of, require_same_image
from neurodetect.processes import ALONE, Team
from neurodetect.progress import progress_bar
from neurodetect.projection import clip_bright, fill_missing, network_input
from neurodetect.recording import Recording
from neurodetect.regions import (
    find_by_threshold,
    find_regions,
    mean_probability,
    move_regions,
    offset_of_cells,
    regions_to_mask,
    regions_to_separate_mask,
)
from neurodetect.resume import Checkpoint
from neurodetect.scoring import CURVE_THRESHOLDS, evaluate, match_centers, threshold_curve
from neurodetect.sliding_window import probability_map
from neurodetect.traces import Traces, extract
from neurodetect.training import SHARE_OF_RATES, train

#: Windows of a batch for each process that takes part in a training. Processes of one CPU have the same
#: cores, and a GPU alone replays its steps, which those that share cannot. The recipe of 2016 exchanges 324
#: MB in a step, which takes as long as 60 windows on a CPU (0.35 s in one machine), as 50 on GPUs with
#: NVLink between them (0.8 ms at 400 GB/s; a window takes 17 us on an H200), as 1,500 over a network (26 ms
#: at 12.5 GB/s). The standard recipe exchanges 2 MB: between machines fewer windows might do, which nobody
#: has measured.
SMALLEST_SHARE = 200


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained: all that its weights depend on, but the recordings.

    Parameters
    ----------
    iterations, batch_size : int
        How many batches of how many windows.
    recipe : {"standard", "2016"}
        "2016" draws windows with flips only and keeps the learning rate. "standard" draws them in eight
        orientations, from masks in which touching neurons are apart and lie where the cells are, see
        `regions.offset_of_cells`, ties the dense layers, see `network.TiedNet`, and has rates that rise and
        fall, see `training.train`.
    background : {"keep", "subtract", "normalize"}
        See `projection.network_input`.
    seed : int
        Of the initial weights and of the windows drawn.
    device : str
        As PyTorch names it: "cpu", "cuda", "cuda:1", "xpu" or "mps", see `device.devices_here`.
    precision : {"float32", "bfloat16"}
        bfloat16 on "cpu" and "cuda" only.
    """

    iterations: int
    batch_size: int
    recipe: str
    background: str
    seed: int
    device: str
    precision: str


@dataclass(frozen=True)
class DetectionSettings:
    """How neurons are found: all that they depend on, but the network and the recording.

    Parameters
    ----------
    stride : int
        Pixels between two windows of the probability map.
    regions : {"watershed", "connected"}
        See `regions.find_regions`.
    threshold : float, optional
        Pixels of higher probability are neuron; None is the one that was learned, see `groups.settle`.
    smallest_area : float, optional
        Regions of fewer pixels are dropped; None leaves it to the typical area, see `regions.find_regions`.
    background : {"keep", "subtract", "normalize"}
        As the network was trained.
    device : str
        As PyTorch names it: "cpu", "cuda", "cuda:1", "xpu" or "mps", see `device.devices_here`.
    precision : {"float32", "bfloat16"}
        bfloat16 on "cpu" and "cuda" only.
    """

    stride: int
    regions: str
    threshold: float | None
    smallest_area: float | None
    background: str
    device: str
    precision: str


class Found(NamedTuple):
    """What a network found in a recording.

    `regions` are (n, 2) int arrays of `[row, column]` pixels; `probability` is the map (H, W) they come
    from, and `confidence` its mean over the pixels of each of them.
    """

    regions: list[np.ndarray]
    probability: np.ndarray
    confidence: np.ndarray


# Training


def split_folds(count: int, folds: int, seed: int, groups: Sequence[str] | None = None) -> list[list[int]]:
    """Deal recordings into folds: the held-out recordings of each.

    Parameters
    ----------
    count : int
        Number of recordings.
    folds : int
        Number of folds; with fewer recordings, or groups of them, each is a fold of its own.
    seed : int
        Of the dealing at random. Groups are dealt by their sizes, the largest first.
    groups : sequence of str, optional
        The group of each recording, of which all are held out together.

    Returns
    -------
    list of list of int
        Every recording is in one fold. Without groups sizes differ by one at most.

    Raises
    ------
    UserError
        There are fewer than two recordings, or groups.
    """
    if count < 2:
        raise UserError(
            "cross-validation holds recordings out and needs two labelled ones at least; prepare another one"
        )
    from sklearn.model_selection import GroupKFold, KFold  # a second that only cross-validation should pay

    if groups is None:
        splits = KFold(min(folds, count), shuffle=True, random_state=seed).split(range(count))
    else:
        if len(set(groups)) < 2:
            raise UserError(
                f"all {count} recordings are of one group, {groups[0]}, as parts of a recording are; "
                "cross-validation holds groups out and needs two at least"
            )
        splits = GroupKFold(min(folds, len(set(groups)))).split(range(count), groups=groups)
    return [held_out.tolist() for _, held_out in splits]


def train_network(
    recordings: Sequence[Prepared],
    settings: TrainingSettings,
    *,
    start: NeuronNet | None = None,
    held_out: Sequence[Prepared] = (),
    checkpoint: Checkpoint | None = None,
    description: str | None = None,
    team: Team = ALONE,
) -> tuple[NeuronNet, list[dict[str, float]]]:
    """A network trained on labelled recordings: a new one, or what a trained one becomes.

    Parameters
    ----------
    recordings, held_out : sequence of Prepared
        Labelled recordings to train on, and others to look at in between.
    settings : TrainingSettings
    start : NeuronNet, optional
        Trained; its weights, which stay as they are, are begun with instead of random ones, and all but
        `network.SHARED` are trained: held by these, small layers learn what is new in fewer iterations, and
        forget less.
    checkpoint, description
        See `training.train`.
    team : Team
        Processes that all get the network. They train it together where each has SMALLEST_SHARE windows of a
        batch, and otherwise the leader does, on a CPU with all their threads, while they wait.

    Returns
    -------
    NeuronNet, list of dict
        The network on the device, and the history that `training.train` returns.

    Raises
    ------
    UserError
        There is no neuron, or nothing but neurons, in the recordings; the loss is no longer finite.
    """
    standard = settings.recipe == "standard"
    kind = TiedNet if standard else NeuronNet
    if standard and start is not None:
        kind = type(start)  # what the recipe of 2016 has trained stays untied
    if team.size > 1 and settings.batch_size < SMALLEST_SHARE * team.size:
        with team.all_threads():
            network, history = (
                train_network(
                    recordings,
                    settings,
                    start=start,
                    held_out=held_out,
                    checkpoint=checkpoint,
                    description=description,
                )
                if team.leads
                else (empty_network(kind).to_empty(device=torch.device(settings.device)).eval(), [])
            )
        team.copy_from_leader(*network.parameters())
        return network, team.word(history)
    paint = regions_to_separate_mask if standard else regions_to_mask
    device = torch.device(settings.device)

    def images(of: Sequence[Prepared]) -> list[np.ndarray]:
        return [network_input(r.image, settings.background, r.valid) for r in of]

    # Windows are turned over: a network cannot learn that labels lie to one side of the cells.
    neurons = [labels_on_cells(r) if standard else r.regions for r in recordings]
    masks = [paint(regions, r.image.shape) for regions, r in zip(neurons, recordings, strict=True)]
    windows = PatchSampler(
        images(recordings),
        masks,
        device,
        settings.seed,
        transpose=standard,
        valid=[r.valid for r in recordings],
    )
    check = None
    # Held-out recordings without a neuron have no balanced batch; the table at the end still has them.
    labels = [visible_labels(recording) for recording in held_out]
    if any(mask.any() for mask in labels) and not all(mask.all() for mask in labels):
        check = PatchSampler(
            images(held_out),
            [r.mask for r in held_out],
            device,
            settings.seed + 1,
            valid=[r.valid for r in held_out],
        )
    if start is None:
        # Orthogonal weights take seconds on a CPU; only CUDA, of the others, is sure to have what they need.
        place = device if device.type == "cuda" else torch.device("cpu")
        with place:
            network = kind(torch.Generator(place).manual_seed(settings.seed)).to(device)
    else:
        groups = {group_of(recording.name, start.own) for recording in recordings}
        start = start.for_group(groups.pop() if len(groups) == 1 else None)
        network = start.untied() if isinstance(start, TiedNet) and not standard else deepcopy(start)
        network.to(device)
        network.own = {}  # a group's earlier layers would hide what is learned now
        network.dense.weight.requires_grad_(False)
    history = train(
        network,
        windows,
        settings.iterations,
        settings.batch_size,
        precision=settings.precision,
        recipe=settings.recipe,
        rates=SHARE_OF_RATES[settings.background],
        held_out=check,
        checkpoint=checkpoint,
        description=description,
        team=team,
    )
    network.requires_grad_()
    return network, history


def labels_on_cells(recording: Prepared) -> list[np.ndarray]:
    """The labelled neurons, moved to where the cells of the image are; see `regions.offset_of_cells`."""
    offset = offset_of_cells(recording.image, recording.regions)
    moved = move_regions(recording.regions, offset, recording.image.shape)
    return [region for region in moved if len(region)]


def visible_labels(recording: Prepared) -> np.ndarray:
    """The mask's values at the pixels that windows may be centred on: all that are not missing."""
    return recording.mask if recording.valid is None else recording.mask[recording.valid]


# Finding


def detect(
    network: NeuronNet | None,
    recording: Prepared,
    settings: DetectionSettings,
    typical: dict[str, float | None],
    *,
    once: Callable[[str, Callable[[], np.ndarray], Team], np.ndarray] | None = None,
    description: str | None = None,
    team: Team = ALONE,
) -> Found:
    """The neurons that a network finds in a recording.

    Parameters
    ----------
    network : NeuronNet, optional
        Trained, on its device; needed unless `once` has the recording's map.
    recording : Prepared
    settings : DetectionSettings
        With a threshold, see `groups.settle`.
    typical : dict
        Area of the neurons that the network was trained on, see `neuron_area`.
    once : callable, optional
        Given the recording's name, what computes its map, and the team, returns the map:
        `UnfinishedRun.once`.
    description : str, optional
        Label of a progress bar; without it none is drawn.
    team : Team
        Processes that compute the map together, see `probability_map`.

    Returns
    -------
    Found
    """
    compute = partial(predict_map, network, recording, settings, description=description, team=team)
    probability = compute() if once is None else once(recording.name, compute, team)
    regions = find_in_map(recording, probability, settings, typical)
    return Found(regions, probability, mean_probability(probability, regions))


def predict_map(
    network: NeuronNet,
    recording: Prepared,
    settings: DetectionSettings,
    *,
    description: str | None = None,
    team: Team = ALONE,
) -> np.ndarray:
    """The probability map (H, W) of a recording, by the layers of its group. See `detect`."""
    return probability_map(
        network.for_group(group_of(recording.name, network.own)),
        network_input(recording.image, settings.background, recording.valid),
        settings.stride,
        precision=settings.precision,
        description=description,
        team=team,
    )


def trace(movie: Recording, frames: range, recording: Prepared, regions: Sequence[np.ndarray]) -> Traces:
    """The traces of neurons that were found in a prepared recording, with a progress bar over the frames.

    Parameters
    ----------
    movie, frames
        What `prepared.open_frames` returned: the recording, and which of its frames.
    recording : Prepared
    regions : sequence of (n, 2) int arrays

    Raises
    ------
    UserError
        The mean of the frames is not the prepared image, or they cannot be read.
    """
    each = movie.frames(frames.start, frames.stop)
    bar = progress_bar(each, description=f"{recording.name}, traces", total=len(frames), unit="frame")
    traces, projection = extract(bar, regions, movie.shape)
    require_same_image(movie.path, *fill_missing(clip_bright(projection.image)), recording)
    return traces._replace(first=frames.start + 1, rate_hz=movie.rate_hz)


def find_in_map(
    recording: Prepared,
    probability: np.ndarray,
    settings: DetectionSettings,
    typical: dict[str, float | None],
) -> list[np.ndarray]:
    """The neurons of a recording's probability map. See `detect`."""
    assert settings.threshold is not None, "settings without a threshold; see groups.settle"
    return find_regions(
        probability,
        settings.regions,
        smallest_area=settings.smallest_area,
        threshold=settings.threshold,
        typical_area=expected_area(typical, recording.pixels_per_micron),
    )


def curve_of_map(
    recording: Prepared,
    probability: np.ndarray,
    settings: DetectionSettings,
    typical: dict[str, float | None],
    thresholds: Sequence[float] = CURVE_THRESHOLDS,
    description: str | None = None,
) -> list[dict[str, float]]:
    """What each threshold would find in a labelled recording's map, see `scoring.threshold_curve`."""
    found = find_by_threshold(
        probability,
        thresholds,
        settings.regions,
        smallest_area=settings.smallest_area,
        typical_area=expected_area(typical, recording.pixels_per_micron),
    )
    truth = recording.regions or []
    return threshold_curve(found, truth, recording.pixels_per_micron, thresholds, description)


def neuron_area(recordings: Sequence[Prepared]) -> dict[str, float | None]:
    """Median area of the labelled neurons of recordings, for `expected_area`.

    Returns
    -------
    dict
        "pixels", and "square_microns" where every recording's scale is known, else None; both None where
        no neuron is labelled.
    """
    labelled = [(len(region), r.pixels_per_micron) for r in recordings for region in r.regions]
    if not labelled:
        return {"pixels": None, "square_microns": None}
    areas = [area for area, _ in labelled]
    known = all(pixels_per_micron for _, pixels_per_micron in labelled)
    return {
        "pixels": float(np.median(areas)),
        "square_microns": float(np.median([a / ppm**2 for a, ppm in labelled])) if known else None,
    }


def expected_area(area: dict[str, float | None], pixels_per_micron: float | None) -> float | None:
    """Pixels of a typical neuron in a recording, by what `neuron_area` gave for others.

    The neurons are taken to have the same size in µm where both scales are known, else in pixels.
    """
    microns = positive_number(area.get("square_microns"))
    if microns is not None and pixels_per_micron is not None:
        return microns * pixels_per_micron**2
    return positive_number(area.get("pixels"))


def assess(recording: Prepared, found: Found) -> tuple[dict[str, float] | None, list[tuple[int, int]]]:
    """How good what was found in a recording is, against its labels.

    Returns
    -------
    row : dict or None
        What `scoring.evaluate` returned; None where the recording has no labels.
    pairs : list of (int, int)
        What `scoring.match_centers` returned; empty without labels.
    """
    if recording.regions is None:
        return None, []
    truth, scale = recording.regions, recording.pixels_per_micron
    row = evaluate(found.probability, found.regions, recording.mask, truth, scale)
    return row, match_centers(truth, found.regions, row["threshold"])
