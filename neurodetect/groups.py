"""What a network learns of each group of its recordings: small layers and a threshold of their own.

Recordings are of a group where their names begin alike, see `prepared.read_groups`. Laboratories differ in
their microscopes and cells, and in what they mark, which no window of an image tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from neurodetect.detection import (
    DetectionSettings,
    TrainingSettings,
    find_in_map,
    neuron_area,
    predict_map,
    train_network,
    visible_labels,
)
from neurodetect.network import NeuronNet
from neurodetect.prepared import Prepared, prefix
from neurodetect.processes import ALONE, Team
from neurodetect.progress import progress_bar
from neurodetect.regions import CELL_THRESHOLD
from neurodetect.scoring import CURVE_THRESHOLDS, best_scores, better_threshold, mean_curve, threshold_curve

# What is best for a group is told by a few of its recordings, and by coarse maps, as well as by all of them.
LEARNED_STRIDE = 8  #: pixels between two windows of the maps from which is learned
LEARNED_FROM = 8  #: recordings of a group, at most
# No higher ones: a network is surer of recordings that it was trained on than of others.
LEARNED_THRESHOLDS = CURVE_THRESHOLDS[2 : 1 + CURVE_THRESHOLDS.index(CELL_THRESHOLD)]  #: 0.2 to 0.45
ALL_ALIKE = ""  #: the group of all recordings, where their names tell none

FINE_TUNED_SHARE = 0.04  #: of the iterations of a training, for each of the two or three of a group
FINE_TUNED_GAIN = 0.02  #: of the mean of combined and F1; less is not worth layers of their own


def fine_tune(
    network: NeuronNet,
    recordings: Sequence[Prepared],
    training: TrainingSettings,
    finding: DetectionSettings,
    *,
    only: Collection[str] | None = None,
    description: str | None = None,
    team: Team = ALONE,
) -> None:
    """Give groups of recordings small layers of their own, where those are seen to find more neurons.

    What one laboratory marks another does not, in images that look alike; a network that serves both finds
    too much in one of them. Trained a little longer on one group alone, all but the dense layer, it may find
    more there, or, where a group's recordings differ among themselves, much less. So one half of a group is
    found by layers that were trained on the other and, if they do better, the other by layers of the one.
    Where they do better in both together the group gets its own.

    Parameters
    ----------
    network : NeuronNet
        As trained on the recordings; the layers go into its `own`.
    recordings : sequence of Prepared
        Those it was trained on.
    training : TrainingSettings
        Of that training. The recipe of 2016 has no such layers.
    finding : DetectionSettings
    only : collection of str, optional
        The groups that matter; all by default.
    description : str, optional
        Label of the progress bars; without it none is drawn.
    team : Team
        Processes that all get the layers, of which the leader computes them.
    """
    labels = [visible_labels(recording) for recording in recordings]
    trainable = [r for r, seen in zip(recordings, labels, strict=True) if seen.any() and not seen.all()]
    groups = alike(trainable)
    if training.recipe != "standard" or any(len(of) == len(trainable) for of in groups.values()):
        return  # a group of all recordings is what the training was for
    typical = neuron_area(recordings)
    shorter = replace(training, iterations=math.ceil(FINE_TUNED_SHARE * training.iterations))

    def tune(on: Sequence[Prepared], part: str) -> NeuronNet:
        label = description and f"{description} {part}"
        return train_network(on, shorter, start=network, description=label)[0]

    def try_out(which: NeuronNet, on: Sequence[Prepared]) -> list[list[dict[str, float]]]:
        predict = partial(predict_map, which)
        return [learning_curve(predict, recording, finding, typical) for recording in on]

    if team.leads:
        with team.all_threads():
            for group, of in groups.items():
                if only is not None and group not in only:
                    continue
                halves, before, after = (of[::2], of[1::2]), [], []
                for number, (half, other) in enumerate(zip(halves, halves[::-1], strict=True), 1):
                    some = a_few(other, LEARNED_FROM // 2)
                    before += try_out(network, some)
                    after += try_out(tune(half, f"{group}, half {number} of 2"), some)
                    usual = best_scores(mean_curve(before))
                    if not better_threshold(mean_curve(after), usual, FINE_TUNED_GAIN):
                        break
                else:
                    network.own[group] = tune(of, f"{group}, all").small_weights()
    network.own = team.word(network.own)


def learn_thresholds(
    predict: Callable[[Prepared, DetectionSettings], np.ndarray],
    recordings: Sequence[Prepared],
    settings: DetectionSettings,
    *,
    description: str | None = None,
    team: Team = ALONE,
) -> dict[str, float]:
    """The threshold at which each group of recordings is found best, by those that the network learned from.

    In some laboratories fainter cells are marked than in others. A network that has to serve both is too
    careful with those, on recordings that it was trained on as much as on new ones, and so the former can
    tell that a lower threshold than CELL_THRESHOLD is better.

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
        By group, see `alike`. A group is left out where no lower threshold is better by 0.01.
    """
    if settings.threshold is not None:
        return {}
    thresholds = {}
    if team.leads:
        some = {group: a_few(of, LEARNED_FROM) for group, of in alike(recordings).items()}
        typical = neuron_area(recordings)
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
                    curves.append(learning_curve(predict, recording, settings, typical))
                    bar.update()
                *_, usual = curve = mean_curve(curves)
                if better := better_threshold(curve, usual):
                    thresholds[group] = better["probability"]
    return team.word(thresholds)


def alike(recordings: Sequence[Prepared]) -> dict[str, list[Prepared]]:
    """The groups of recordings that something can be learned of: one recording tells too little.

    Recordings whose names begin alike are a group; where no two do, all are the group ALL_ALIKE.
    """
    groups: dict[str, list[Prepared]] = {}
    for recording in recordings:
        groups.setdefault(prefix(recording.name), []).append(recording)
    if len(groups) == len(recordings):
        groups = {ALL_ALIKE: list(recordings)}
    return {group: of for group, of in groups.items() if len(of) > 1}


def a_few(recordings: Sequence[Prepared], most: int) -> Sequence[Prepared]:
    """At most so many of the recordings, evenly drawn."""
    return recordings[:: math.ceil(len(recordings) / most)]


def learning_curve(
    predict: Callable[[Prepared, DetectionSettings], np.ndarray],
    recording: Prepared,
    settings: DetectionSettings,
    typical: dict[str, float | None],
) -> list[dict[str, float]]:
    """The scores of a recording at the settings' threshold, or at those that can be learned."""
    coarse = replace(settings, stride=LEARNED_STRIDE)
    find = partial(find_in_map, recording, predict(recording, coarse), coarse, typical)
    thresholds = LEARNED_THRESHOLDS if settings.threshold is None else (settings.threshold,)
    return threshold_curve(find, recording.regions, recording.pixels_per_micron, thresholds)


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
