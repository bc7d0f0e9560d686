"""How good are the found neurons: neurofinder's scores, F1 at IoU 0.5 and the pixel error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist

from neurodetect.regions import unique_pixels

THRESHOLD_MICRONS = 5.0  #: neurofinder: centres this close are the same neuron
THRESHOLD_PIXELS = 5.0  #: the same where nobody knows the size of a pixel
IOU_THRESHOLD = 0.5  #: the convention of the later papers (e.g. SUNS: Bao et al. 2021)


class Score(NamedTuple):
    """neurofinder's five numbers, each from 0 to 1."""

    recall: float
    precision: float
    combined: float
    inclusion: float
    exclusion: float


def match_threshold(pixels_per_micron: float | None) -> float:
    """Largest distance in pixels between the centres of a match, exclusive: 5 µm, as the challenge had it."""
    if pixels_per_micron is None:
        return THRESHOLD_PIXELS
    # A pixel of 10 µm or more would round to 0, and nothing could ever match.
    return max(float(round(THRESHOLD_MICRONS * pixels_per_micron)), 1.0)


def match_centers(
    truth: Sequence[np.ndarray], estimate: Sequence[np.ndarray], threshold: float = THRESHOLD_PIXELS
) -> list[tuple[int, int]]:
    """Pairs of a true and an estimated neuron, as neurofinder pairs them.

    Each true neuron in order takes the nearest estimated neuron that is still free, if the distance
    between their centres (mean coordinates) is below the threshold.

    Parameters
    ----------
    truth, estimate : sequence of (n, 2) arrays
        Neurons as `[row, column]` pixels.
    threshold : float
        Pixels, exclusive.

    Returns
    -------
    list of (int, int)
        Index in `truth`, index in `estimate`, in the order of `truth`.
    """
    if not len(truth) or not len(estimate):
        return []
    distances = cdist(centers(truth), centers(estimate))
    pairs = []
    for true_index, row in enumerate(distances):
        nearest = int(row.argmin())
        if row[nearest] < threshold:
            pairs.append((true_index, nearest))
            distances[:, nearest] = np.inf
    return pairs


def centers(regions: Sequence[np.ndarray]) -> np.ndarray:
    """Mean coordinates of neurons, duplicate pixels counted once: (number of neurons, 2)."""
    return np.array([unique_pixels(region).mean(axis=0) for region in regions]).reshape(-1, 2)


def score(
    truth: Sequence[np.ndarray], estimate: Sequence[np.ndarray], threshold: float = THRESHOLD_PIXELS
) -> Score:
    """neurofinder's recall, precision, combined, inclusion and exclusion.

    Parameters
    ----------
    truth, estimate : sequence of (n, 2) arrays
        Neurons as `[row, column]` pixels. The order of `truth` matters, see `match_centers`.
    threshold : float
        Distance in pixels between centres below which two neurons are the same one.

    Returns
    -------
    Score
        recall = matches / true, precision = matches / estimated, combined = their harmonic mean;
        inclusion and exclusion are the mean over matches of |intersection| / |true| and
        |intersection| / |estimated|. An empty side scores 0.

    Notes
    -----
    The definition is that of the PyPI package `neurofinder` 1.1.1.
    """
    pairs = match_centers(truth, estimate, threshold)
    if not pairs:
        return Score(0.0, 0.0, 0.0, 0.0, 0.0)
    recall = len(pairs) / len(truth)
    precision = len(pairs) / len(estimate)
    combined = 2 * recall * precision / (recall + precision)
    inclusion, exclusion = [], []
    for true_index, estimated_index in pairs:
        true = set(map(tuple, truth[true_index]))
        estimated = set(map(tuple, estimate[estimated_index]))
        shared = len(true & estimated)
        inclusion.append(shared / len(true))
        exclusion.append(shared / len(estimated))
    return Score(recall, precision, combined, float(np.mean(inclusion)), float(np.mean(exclusion)))


def overlaps(truth: Sequence[np.ndarray], estimate: Sequence[np.ndarray]) -> np.ndarray:
    """Intersection over union of every true with every estimated neuron: (true, estimated)."""
    if not len(truth) or not len(estimate):
        return np.zeros((len(truth), len(estimate)))
    width = 1 + max(int(region[:, 1].max()) for region in (*truth, *estimate))
    height = 1 + max(int(region[:, 0].max()) for region in (*truth, *estimate))

    def membership(regions: Sequence[np.ndarray]) -> csr_matrix:
        pixels = [unique_pixels(region) for region in regions]
        flat = np.concatenate([p[:, 0].astype(np.int64) * width + p[:, 1] for p in pixels])
        rows = np.repeat(np.arange(len(pixels)), [len(p) for p in pixels])
        return csr_matrix((np.ones(len(flat)), (rows, flat)), shape=(len(pixels), height * width))

    true, estimated = membership(truth), membership(estimate)
    shared = (true @ estimated.T).toarray()
    union = true.sum(axis=1).A1[:, None] + estimated.sum(axis=1).A1[None, :] - shared
    return shared / union


def match_overlaps(
    truth: Sequence[np.ndarray], estimate: Sequence[np.ndarray], iou: float = IOU_THRESHOLD
) -> list[tuple[int, int]]:
    """The most pairs of a true and an estimated neuron with intersection over union of at least `iou`."""
    allowed = overlaps(truth, estimate) >= iou
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if allowed[r, c]]


def f1_at_iou(
    truth: Sequence[np.ndarray], estimate: Sequence[np.ndarray], iou: float = IOU_THRESHOLD
) -> float:
    """F1 with the best one-to-one assignment at an intersection over union of at least `iou`."""
    total = len(truth) + len(estimate)
    return 2 * len(match_overlaps(truth, estimate, iou)) / total if total else 0.0


def pixel_error(probability: np.ndarray, mask: np.ndarray) -> float:
    """Share of pixels whose rounded probability is not the label: (H, W) and (H, W) to 0 … 1."""
    return float(np.mean((probability > 0.5) != (mask > 0)))


# The table

MEASURES = ("pixel_error", "recall", "precision", "combined", "inclusion", "exclusion", "f1_iou50")


def evaluate(
    probability: np.ndarray,
    found: Sequence[np.ndarray],
    mask: np.ndarray,
    truth: Sequence[np.ndarray],
    pixels_per_micron: float | None = None,
) -> dict[str, float]:
    """Every measure of one recording.

    Parameters
    ----------
    probability, mask : (H, W) arrays
        The probability map and the labels of its pixels.
    found, truth : sequence of (n, 2) arrays
        Found and true neurons.
    pixels_per_micron : float, optional
        Sets the distance at which neurons match, see `match_threshold`.

    Returns
    -------
    dict
        The MEASURES, "true" and "found" (numbers of neurons) and "threshold" (pixels).
    """
    threshold = match_threshold(pixels_per_micron)
    return {
        "pixel_error": pixel_error(probability, mask),
        **score(truth, found, threshold)._asdict(),
        "f1_iou50": f1_at_iou(truth, found),
        "true": len(truth),
        "found": len(found),
        "threshold": threshold,
    }


def summarize(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation of each of the MEASURES, and of the numbers of neurons."""
    keys = (*MEASURES, "true", "found")
    return {
        "mean": {key: float(np.mean([row[key] for row in rows])) for key in keys},
        # One recording has no spread to estimate.
        "std": {key: float(np.std([row[key] for row in rows], ddof=min(1, len(rows) - 1))) for key in keys},
    }


def table(rows: Sequence[dict[str, float]], names: Sequence[str]) -> str:
    """The measures of each recording as text, one line each, mean and standard deviation of several last."""
    width = max(len(name) for name in (*names, "recording"))
    heads = ("pixel err", "recall", "precision", "combined", "inclusion", "exclusion", "F1 IoU.5")

    def line(name: str, row: dict[str, float], count: str) -> str:
        measures = " ".join(f"{row[key]:9.3f}" for key in MEASURES)
        return f"{name:{width}} {measures} {row['true']:{count}} {row['found']:{count}}"

    lines = [
        f"{'recording':{width}} {' '.join(f'{head:>9}' for head in heads)}    true   found",
        *(line(name, row, "7d") for name, row in zip(names, rows, strict=True)),
    ]
    if len(rows) > 1:
        lines += [line(name, row, "7.1f") for name, row in summarize(rows).items()]
    return "\n".join(lines)
