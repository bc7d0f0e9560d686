"""What a network learns of each group of its recordings: small layers and a threshold of their own.

Recordings are of a group where their names begin alike, see `prepared.read_groups`. Laboratories differ in
their microscopes and cells, and in what they mark, which no window of an image tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from neurodetect.detection import (
    DetectionSettings,
    TrainingSettings,
    curve_of_map,
    labels_on_cells,
    neuron_area,
    train_network,
    visible_labels,
)
from neurodetect.network import NeuronNet
from neurodetect.prepared import Prepared, beginnings, group_of, prefix
from neurodetect.processes import ALONE, Team
from neurodetect.progress import progress_bar
from neurodetect.regions import CELL_THRESHOLD, dataset_name, whole_name
from neurodetect.resume import Checkpoint
from neurodetect.scoring import CURVE_THRESHOLDS, better_threshold, mean_curve

# What is best for a group is told by a few of its recordings, and by coarse maps, as well as by all of them.
LEARNED_STRIDE = 8  #: pixels between two windows of the maps from which is learned
LEARNED_FROM = 8  #: recordings of a group, at most
LEARNED_THRESHOLDS = CURVE_THRESHOLDS[2:11]  #: 0.2 to 0.6
ALL_ALIKE = ""  #: the group of all recordings, where their names tell none

# On held-out halves of six recordings layers of the other half were better than those of the laboratory's two
# recordings, but on three others of a laboratory those of one recording worse than those of its nine.
MANY = 4  #: recordings whose names begin alike: they go before fewer that are more alike
FINE_TUNED_SHARE = 0.1  #: of the iterations of a training, for each group
# Between a network and what it becomes when it is trained on, one may do better than either: the loss has no
# hill between them, and each is right where the other errs (Wortsman et al. 2022, arXiv:2109.01903).
OWN_SHARE = 0.35  #: of the way from the common small layers to those trained on a group alone
# On halves of seven recordings, held out from a training on their other halves, 0.02 of combined and 0.025 of
# F1 better than that; all the way gains no more.
SAME_SHARE = 0.7  #: of that way, where new recordings are named after the one trained on: 04.00.test, 04.00


def fine_tune(
    network: NeuronNet,
    recordings: Sequence[Prepared],
    groups: Mapping[str, Sequence[Prepared]],
    training: TrainingSettings,
    *,
    checkpoints: Callable[[str], Checkpoint] | None = None,
    description: str | None = None,
    team: Team = ALONE,
) -> None:
    """Give groups of recordings small layers of their own.

    What one laboratory marks another does not, in images that look alike; a network that serves both finds
    too much in one of them. Trained a little longer on one group alone, all but the dense layer, it finds
    more there, or less, where a group's recordings differ among themselves. A third of the way from what it
    was to what it becomes it gains most of the one and loses next to nothing of the other. A recording named
    after one of those, as 04.00.test after 04.00, is taken to be like it, and most of the way is gone.

    Parameters
    ----------
    network : NeuronNet
        As trained on the recordings; the layers go into its `own`.
    recordings : sequence of Prepared
        Those it was trained on.
    groups : mapping of str to sequence of Prepared
        See `alike` and `kin`. One of all recordings gets none: it is what the training was for.
    training : TrainingSettings
        Of that training. The recipe of 2016 has no such layers.
    checkpoints : callable, optional
        The checkpoint of a training of this name: `UnfinishedRun.checkpoint`. See `training.train`.
    description : str, optional
        Label of the progress bars, and of their checkpoints; without it no bar is drawn.
    team : Team
        Processes that all get the layers, of which the leader computes them.
    """
    if training.recipe != "standard":
        return
    shorter = replace(training, iterations=math.ceil(FINE_TUNED_SHARE * training.iterations))
    common, own = network.small_weights(), {}
    if team.leads:
        count = sum(map(trainable, recordings))
        with team.all_threads():
            for group, of in groups.items():
                of = list(filter(trainable, of))
                if not of or len(of) == count:
                    continue
                label = f"{description or 'fine-tuning'} {group}"
                tuned_network, _ = train_network(
                    of,
                    shorter,
                    start=network,
                    checkpoint=checkpoints(label) if checkpoints else None,
                    description=label if description else None,
                )
                tuned = tuned_network.small_weights()
                same = {dataset_name(whole_name(recording.name)) for recording in of} == {group}
                share = SAME_SHARE if same else OWN_SHARE
                own[group] = {name: common[name].lerp(tuned[name], share) for name in common}
    network.own = team.word(own)


def trainable(recording: Prepared) -> bool:
    """Whether windows can be drawn from a recording, half of them on neurons."""
    labels = visible_labels(recording)
    return bool(labels.any() and not labels.all())


def learn_thresholds(
    predict: Callable[[Prepared, DetectionSettings], np.ndarray],
    recordings: Sequence[Prepared],
    settings: DetectionSettings,
    *,
    description: str | None = None,
    team: Team = ALONE,
) -> dict[str, float]:
    """The threshold at which each group of recordings is found best, by those that the network learned from.

    In some laboratories fainter cells are marked than in others. A network that has to serve both finds too
    few in those and too many in others, on recordings that it was trained on as much as on new ones, and so
    the former can tell that another threshold than CELL_THRESHOLD is better.

    Parameters
    ----------
    predict : callable
        The network: a recording's map by settings of a coarse stride, a `functools.partial` of `predict_map`.
    recordings : sequence of Prepared
        Those it was trained on.
    settings : DetectionSettings
        With a threshold, as other regions than "watershed" always have, there is nothing to learn.
    description : str, optional
        Label of a progress bar; without it none is drawn.
    team : Team
        Processes that all get the thresholds, of which the leader computes them.

    Returns
    -------
    dict of str to float
        By group, see `alike`. A group is left out where no other threshold is better by 0.01.
    """
    if settings.threshold is not None:
        return {}
    thresholds = {}
    if team.leads:
        some = {g: of[:: math.ceil(len(of) / LEARNED_FROM)] for g, of in alike(recordings).items()}
        typical, coarse = neuron_area(recordings), replace(settings, stride=LEARNED_STRIDE)
        bar = progress_bar(
            description=description or "",
            total=sum(map(len, some.values())),
            unit="recording",
            show=description is not None,
        )
        with bar, team.all_threads():
            for group, of in some.items():
                curves = []
                for recording in of:
                    recording = recording._replace(regions=labels_on_cells(recording))
                    probability = predict(recording, coarse)
                    curves.append(curve_of_map(recording, probability, coarse, typical, LEARNED_THRESHOLDS))
                    bar.update()
                curve = mean_curve(curves)
                usual = curve[LEARNED_THRESHOLDS.index(CELL_THRESHOLD)]
                if better := better_threshold(curve, usual):
                    thresholds[group] = better["probability"]
    return team.word(thresholds)


def alike(recordings: Sequence[Prepared]) -> dict[str, list[Prepared]]:
    """The groups of two recordings or more whose names begin alike, up to the first separator.

    Where no two do, all are the group ALL_ALIKE.
    """
    groups: dict[str, list[Prepared]] = {}
    for recording in recordings:
        groups.setdefault(prefix(recording.name), []).append(recording)
    if len(groups) == len(recordings):
        groups = {ALL_ALIKE: list(recordings)}
    return {group: of for group, of in groups.items() if len(of) > 1}


def kin(names: Iterable[str], recordings: Sequence[Prepared]) -> dict[str, list[Prepared]]:
    """For recordings of these names the most alike ones, by the beginning that they share, see `beginnings`.

    It is the longest that MANY share, or else the longest that any has: of 04.00.test 04.00, where there is
    one, but all of 04 where they are many. What is among the recordings itself is not new, and needs none.
    """
    groups: dict[str, list[Prepared]] = {}
    for recording in recordings:
        for beginning in beginnings(recording.name):
            groups.setdefault(beginning, []).append(recording)
    known = {recording.name for recording in recordings}
    many = {group for group, of in groups.items() if len(of) >= MANY}
    nearest = {group_of(name, many) or group_of(name, groups) for name in names if name not in known}
    return {group: of for group, of in groups.items() if group in nearest}


def settle(settings: DetectionSettings, name: str, thresholds: dict[str, float]) -> DetectionSettings:
    """Settings with a threshold for one recording: theirs, else that of its group, else CELL_THRESHOLD.

    Parameters
    ----------
    settings : DetectionSettings
    name : str
        Of the recording.
    thresholds : dict
        What `learn_thresholds` returned.

    Examples
    --------
    >>> settings = DetectionSettings(4, "watershed", None, None, "normalize", "cpu", "float32")
    >>> [settle(settings, name, {"00": 0.3}).threshold for name in ("neurofinder.00.11", "01.00")]
    [0.3, 0.45]
    """
    if settings.threshold is not None:
        return settings
    usual = thresholds.get(ALL_ALIKE, CELL_THRESHOLD)
    return replace(settings, threshold=thresholds.get(prefix(name), usual))
