"""How good are found neurons, by the scores of the neurofinder challenge.

python -m neurodetect.scoring TRUTH ESTIMATE compares any program's neurons with labelled ones:
recall, precision, combined, inclusion and exclusion as the challenge has them, and F1 at an
intersection over union of 0.5.

TRUTH is the labels of one recording (a neurofinder regions.json, ImageJ ROIs, a label image, or what
Suite2p and Cellpose save), or a folder: of recordings (NAME/regions/regions.json), one recording, or what
preprocessing.py wrote.
ESTIMATE is a submission.json, or neurons of one recording in any of the forms of TRUTH's labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from neurodetect.progress import progress_bar
from neurodetect.regions import unique_pixels

THRESHOLD_MICRONS = 5.0  #: neurofinder: centres this close are the same neuron
THRESHOLD_PIXELS = 5.0  #: the same where nobody knows the size of a pixel
IOU_THRESHOLD = 0.5  #: the convention of the later papers (e.g. SUNS: Bao et al. 2021)

WORTH_A_CHANGE = 0.01  #: in the mean of combined and F1: less is not worth another threshold
CURVE_THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(17))  #: probabilities, 0.1 to 0.9


class Score(NamedTuple):
    """neurofinder's five numbers, each from 0 to 1."""

    recall: float
    precision: float
    combined: float
    inclusion: float
    exclusion: float


def match_threshold(pixels_per_micron: float | None) -> float:
    """Largest distance in pixels between the centres of a match, exclusive: 5 µm, as the challenge had it.

    Examples
    --------
    >>> match_threshold(1.15), match_threshold(None)
    (6.0, 5.0)
    """
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

    Examples
    --------
    >>> match_centers([np.array([[0, 0]]), np.array([[9, 9]])], [np.array([[9, 8]]), np.array([[1, 0]])])
    [(0, 1), (1, 0)]
    """
    if not len(truth) or not len(estimate):
        return []
    true, estimated = centers(truth), centers(estimate)
    # Only the few within reach are looked at: all distances of 10,000 neurons would take a gigabyte.
    near = cKDTree(estimated).query_ball_point(true, threshold, return_sorted=True)
    free = np.ones(len(estimated), bool)
    pairs = []
    for true_index, candidates in enumerate(near):
        candidates = [index for index in candidates if free[index]]
        if candidates:
            distances = np.linalg.norm(estimated[candidates] - true[true_index], axis=1)
            if distances.min() < threshold:
                nearest = candidates[int(distances.argmin())]
                pairs.append((true_index, nearest))
                free[nearest] = False
    return pairs


def fits_better_exchanged(
    truth: Sequence[np.ndarray], estimate: Sequence[np.ndarray], threshold: float = THRESHOLD_PIXELS
) -> bool:
    """Whether clearly more neurons match with rows and columns of the estimate exchanged, and twice as many.

    Clearly: by more than three standard deviations of the difference of two counts.
    """
    exchanged = [np.asarray(region)[:, ::-1] for region in estimate]
    given, other = (len(match_centers(truth, regions, threshold)) for regions in (estimate, exchanged))
    return other > 2 * given and other - given > 3 * (other + given) ** 0.5


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

    Examples
    --------
    >>> truth = [np.array([[0, 0], [0, 1]]), np.array([[20, 20], [20, 21]])]
    >>> found = [np.array([[0, 1], [0, 2]])]
    >>> result = score(truth, found)
    >>> result.recall, result.precision, result.inclusion, result.exclusion
    (0.5, 1.0, 0.5, 0.5)
    """
    pairs = match_centers(truth, estimate, threshold)
    if not pairs:
        return Score(0.0, 0.0, 0.0, 0.0, 0.0)
    recall = len(pairs) / len(truth)
    precision = len(pairs) / len(estimate)
    combined = 2 * recall * precision / (recall + precision)
    shared, true_sizes, estimated_sizes = intersections(truth, estimate)
    true, estimated = np.transpose(pairs)
    in_both = shared[true, estimated]
    inclusion, exclusion = in_both / true_sizes[true], in_both / estimated_sizes[estimated]
    return Score(recall, precision, combined, float(np.mean(inclusion)), float(np.mean(exclusion)))


def intersections(
    truth: Sequence[np.ndarray], estimate: Sequence[np.ndarray]
) -> tuple[csr_array, np.ndarray, np.ndarray]:
    """Pixels that true and estimated neurons share, each pixel of a neuron counted once.

    Returns
    -------
    shared : sparse (true, estimated) float64
    true_sizes, estimated_sizes : int arrays
        Pixels of each neuron.
    """
    pixels = [unique_pixels(region) for region in (*truth, *estimate)]
    sizes = np.array([len(region) for region in pixels], np.int64)
    if not len(truth) or not len(estimate):
        return csr_array((len(truth), len(estimate))), sizes[: len(truth)], sizes[len(truth) :]
    # Pixels are numbered as they occur: coordinates may be as large as a stranger likes.
    # Rows and columns by themselves, then as one number: np.unique(axis=0) takes much longer.
    (_, rows), (columns, column) = (np.unique(axis, return_inverse=True) for axis in np.concatenate(pixels).T)
    distinct, numbers = np.unique(rows.astype(np.int64) * len(columns) + column, return_inverse=True)
    ends = np.cumsum([0, *sizes])
    members = csr_array((np.ones(len(numbers)), numbers, ends), shape=(len(pixels), len(distinct)))
    shared = members[: len(truth)] @ members[len(truth) :].T
    return shared, sizes[: len(truth)], sizes[len(truth) :]


def overlaps(truth: Sequence[np.ndarray], estimate: Sequence[np.ndarray]) -> csr_array:
    """Intersection over union of every true with every estimated neuron: sparse (true, estimated)."""
    shared, true_sizes, estimated_sizes = intersections(truth, estimate)
    shared = shared.tocoo()
    either = true_sizes[shared.row] + estimated_sizes[shared.col] - shared.data
    return csr_array((shared.data / either, (shared.row, shared.col)), shape=shared.shape)


def match_overlaps(
    truth: Sequence[np.ndarray], estimate: Sequence[np.ndarray], iou: float = IOU_THRESHOLD
) -> list[tuple[int, int]]:
    """The most pairs of a true and an estimated neuron with intersection over union of at least `iou`."""
    allowed = overlaps(truth, estimate)
    allowed.data = allowed.data >= iou
    allowed.eliminate_zeros()
    matches = maximum_bipartite_matching(allowed, perm_type="column")  # -1 where there is none
    return [(true, int(estimated)) for true, estimated in enumerate(matches) if estimated >= 0]


def f1_at_iou(
    truth: Sequence[np.ndarray], estimate: Sequence[np.ndarray], iou: float = IOU_THRESHOLD
) -> float:
    """F1 with the best one-to-one assignment at an intersection over union of at least `iou`.

    Examples
    --------
    >>> neuron, other = np.array([[0, 0], [0, 1]]), np.array([[5, 5]])
    >>> f1_at_iou([neuron], [neuron, other])
    0.6666666666666666
    """
    total = len(truth) + len(estimate)
    return 2 * len(match_overlaps(truth, estimate, iou)) / total if total else 0.0


def pixel_error(probability: np.ndarray, mask: np.ndarray) -> float:
    """Share of pixels whose rounded probability is not the label: (H, W) and (H, W) to 0 … 1."""
    return float(np.mean((probability > 0.5) != (mask > 0)))


# The table

HEADS = {
    "pixel_error": "pixel err",
    **{name: name for name in Score._fields},
    "f1_iou50": "F1 IoU.5",
}
MEASURES = tuple(HEADS)


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
    return {"pixel_error": pixel_error(probability, mask), **compare_regions(truth, found, threshold)}


def compare_regions(
    truth: Sequence[np.ndarray], found: Sequence[np.ndarray], threshold: float = THRESHOLD_PIXELS
) -> dict[str, float]:
    """What `evaluate` says, without the pixel error: every measure that needs the neurons only."""
    return {
        **score(truth, found, threshold)._asdict(),
        "f1_iou50": f1_at_iou(truth, found),
        "true": len(truth),
        "found": len(found),
        "threshold": threshold,
    }


def threshold_curve(
    found: Iterable[Sequence[np.ndarray]],
    truth: Sequence[np.ndarray],
    pixels_per_micron: float | None = None,
    thresholds: Sequence[float] = CURVE_THRESHOLDS,
    description: str | None = None,
) -> list[dict[str, float]]:
    """What each probability threshold would have found in a recording.

    Parameters
    ----------
    found : iterable of sequences of (n, 2) arrays
        The neurons at each threshold, as of `regions.find_by_threshold`.
    truth : sequence of (n, 2) arrays
        True neurons.
    pixels_per_micron : float, optional
        See `match_threshold`.
    thresholds : sequence of float
    description : str, optional
        Label of a progress bar; without it none is drawn.

    Returns
    -------
    list of dict
        One for each threshold: what `compare_regions` says, and "probability", the threshold.
    """
    distance = match_threshold(pixels_per_micron)
    curve = []
    with progress_bar(
        description=description or "",
        total=len(thresholds),
        unit="threshold",
        show=description is not None,
    ) as bar:
        for threshold, regions in zip(thresholds, found, strict=True):
            scores = compare_regions(truth, regions, distance)
            curve.append({"probability": threshold, **scores})
            bar.update()
    return curve


def mean_curve(curves: Sequence[list[dict[str, float]]]) -> list[dict[str, float]]:
    """The mean over recordings of what `threshold_curve` gave for each: one dict for each threshold."""
    keys = (*Score._fields, "f1_iou50", "found")
    return [
        {
            "probability": rows[0]["probability"],
            **{key: float(np.mean([row[key] for row in rows])) for key in keys},
        }
        for rows in zip(*curves, strict=True)
    ]


def better_threshold(curve: Sequence[dict[str, float]], mean: dict[str, float]) -> dict[str, float] | None:
    """The threshold of a curve at which the mean of combined and F1 is highest, if higher by WORTH_A_CHANGE.

    Parameters
    ----------
    curve : sequence of dict
        Of `mean_curve`.
    mean : dict
        The scores at the threshold that was used, see `summarize`.

    Examples
    --------
    >>> curve = [{"probability": 0.3, "combined": 0.6, "f1_iou50": 0.5}]
    >>> better_threshold(curve, {"combined": 0.5, "f1_iou50": 0.4})["probability"]
    0.3
    >>> better_threshold(curve, {"combined": 0.6, "f1_iou50": 0.49})
    """

    def worth(scores: dict[str, float]) -> float:
        return (scores["combined"] + scores["f1_iou50"]) / 2

    best = max(curve, key=worth)
    return best if worth(best) >= worth(mean) + WORTH_A_CHANGE else None


def summarize(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation of the measures that the rows have and of the neurons' numbers."""
    keys = [key for key in (*MEASURES, "true", "found") if key in rows[0]]
    return {
        "mean": {key: float(np.mean([row[key] for row in rows])) for key in keys},
        # One recording has no spread to estimate.
        "std": {key: float(np.std([row[key] for row in rows], ddof=min(1, len(rows) - 1))) for key in keys},
    }


def group_means(rows: Sequence[dict[str, float]], groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """What `summarize` gives as the mean, of the rows of each group, in the order of the groups."""
    return {
        group: summarize([row for row, of in zip(rows, groups, strict=True) if of == group])["mean"]
        for group in dict.fromkeys(groups)
    }


def table(rows: Sequence[dict[str, float]], names: Sequence[str], groups: Sequence[str] | None = None) -> str:
    """The measures that the rows have as text, one line each, mean and standard deviation of several last.

    With the `groups` of the rows the mean of each group comes before.
    """
    measures = [key for key in MEASURES if key in rows[0]]
    means = (
        {f"mean {group}": mean for group, mean in group_means(rows, groups or []).items()} if groups else {}
    )
    width = max(len(name) for name in (*names, *means, "recording"))

    def line(name: str, row: dict[str, float], count: str) -> str:
        values = " ".join(f"{row[key]:9.3f}" for key in measures)
        return f"{name:{width}} {values} {row['true']:{count}} {row['found']:{count}}"

    lines = [
        f"{'recording':{width}} {' '.join(f'{HEADS[key]:>9}' for key in measures)}    true   found",
        *(line(name, row, "7d") for name, row in zip(names, rows, strict=True)),
        *(line(name, row, "7.1f") for name, row in means.items()),
    ]
    if len(rows) > 1:
        lines += [line(name, row, "7.1f") for name, row in summarize(rows).items()]
    return "\n".join(lines)


# python -m neurodetect.scoring


def main() -> None:
    from neurodetect import console
    from neurodetect.formats.labels import pair_recordings, read_labels
    from neurodetect.recording import pixels_per_micron_of, read_info

    args = console.scoring_options(__doc__)
    truths, found = pair_recordings(args.truth, args.estimate)
    for name in sorted(found.keys() - truths.keys()):
        console.warn(f"{name} has no labels in {args.truth} and is left out")
    rows = {}
    for name, truth in truths.items():
        if name not in found:
            console.warn(f"{name} is not in {args.estimate}: counted as nothing found")
        threshold = args.threshold
        if threshold is None:
            threshold = match_threshold(pixels_per_micron_of(read_info(truth.info)))
        true, estimated = read_labels(truth.labels), found.get(name, [])
        rows[name] = compare_regions(true, estimated, threshold)
        if fits_better_exchanged(true, estimated, threshold):
            console.warn(
                f"{name}: the neurons of {args.estimate} fit the labels much better with rows and columns "
                "exchanged; are they [row, column] in both?"
            )
    console.say(table(list(rows.values()), list(rows)), level=0)
    for threshold in sorted({row["threshold"] for row in rows.values()}):
        names = ", ".join(name for name, row in rows.items() if row["threshold"] == threshold)
        console.say(f"Centres less than {threshold:g} px apart are the same neuron in {names}.")


if __name__ == "__main__":
    from neurodetect import console

    console.run(main)
