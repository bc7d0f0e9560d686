"""Simulated two-photon recordings whose neurons are known.

A recording is built in three steps: where the neurons are (`simulate_regions`), what the microscope
sees of them (`simulate_frames`), and the files (`write_recording`). The pictures hold what makes real
ones hard: neurons that touch, uneven light, textured neuropil, blood vessels, and bright specks,
dendrites and out-of-focus glow that are no neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage
from scipy.special import expit
from skimage.graph import route_through_array
from skimage.segmentation import find_boundaries

from neurodetect.files import UserError, write_json, write_whole
from neurodetect.regions import regions_to_labels, write_regions

NEURONS_PER_PIXEL = 1 / 420  #: default density; with neurons 7 to 16 px across, a fifth of the image
GAP = 2  #: free pixels at least between neurons that do not touch
TRIES = 200  #: attempts to place a neuron before the frame counts as full
RISE = 0.1  #: rise time constant of a calcium transient, seconds
DECAY = (0.5, 1.0)  #: shortest and longest decay time constant of a neuron's transients, seconds
OFFSET = 40.0  #: what the detector reports without light, counts
READ_NOISE = 12.0  #: standard deviation of the electronic noise, counts
BLUR = 0.7  #: standard deviation of the microscope's point-spread function, pixels


def simulate_regions(
    shape: tuple[int, int],
    count: int,
    rng: np.random.Generator,
    *,
    diameter: tuple[float, float] = (7, 16),
    touching: float = 0.3,
) -> list[np.ndarray]:
    """Neurons at random places: slightly irregular ellipses that share no pixel.

    Neurons that touch come in pairs and triples with neighbouring pixels; between all others there are
    at least `GAP` free pixels. Up to 40 % of a neuron may be cut off by the frame's border.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the frame.
    count : int
        Number of neurons. Where so many do not fit, the list is shorter.
    rng : numpy.random.Generator
        Source of all randomness.
    diameter : (float, float)
        Smallest and largest axis of the ellipses, pixels.
    touching : float
        Share of the neurons that touch another one, 0 to 1.

    Returns
    -------
    list of (n, 2) int arrays
        [row, column] of every pixel of each neuron, in row-major order.

    Examples
    --------
    >>> from neurodetect.regions import regions_to_mask
    >>> regions = simulate_regions((64, 80), 5, np.random.default_rng(0))
    >>> len(regions), int(regions_to_mask(regions, (64, 80)).sum()) == sum(map(len, regions))
    (5, True)
    """
    regions: list[np.ndarray] = []
    occupied = np.zeros(shape, bool)
    near = np.zeros(shape, bool)  # occupied or too close to it, except around the cluster being built
    paired = round(touching * count)
    full = False
    while len(regions) < count and not full:
        to_pair = paired - len(regions)
        size = 1 if to_pair < 2 else 3 if to_pair == 3 or (to_pair > 4 and rng.random() < 0.3) else 2
        cluster: list[np.ndarray] = []
        for _ in range(size):
            pixels = _place(occupied, near, cluster, diameter, rng)
            if pixels is None:
                break
            occupied[tuple(pixels.T)] = True
            cluster.append(pixels)
        for pixels in cluster:
            near[tuple(_neighbourhood(pixels, GAP, shape).T)] = True
        regions += cluster
        full = not cluster
    return regions


def _place(
    occupied: np.ndarray,
    near: np.ndarray,
    cluster: list[np.ndarray],
    diameter: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Pixels of one more neuron, touching the last of `cluster` where there is one; None if none fits."""
    shape = occupied.shape
    free = np.argwhere(~near)
    if not len(free):
        return None
    for _ in range(TRIES):
        outline = _irregular_ellipse(diameter, rng)
        if cluster:  # slide outwards from the neighbour until they no longer overlap
            angle = rng.uniform(0, 2 * np.pi)
            steps = np.arange(2, diameter[1] + 1, 0.5)[:, np.newaxis]
            centres = np.rint(cluster[-1].mean(axis=0) + steps * [np.sin(angle), np.cos(angle)]).astype(int)
        else:
            centres = free[rng.integers(len(free), size=1)]
        for centre in centres:
            pixels = _inside(outline + centre, shape)
            where = tuple(pixels.T)
            if len(pixels) <= 0.6 * len(outline) or occupied[where].any() or near[where].any():
                continue
            if not cluster or occupied[tuple(_neighbourhood(pixels, 1, shape, corners=False).T)].any():
                return pixels
            break
    return None


def _irregular_ellipse(diameter: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Pixels of one neuron around [0, 0], in row-major order."""
    major = rng.uniform(*diameter)
    minor = max(diameter[0], major * rng.uniform(0.75, 1))
    reach = int(np.ceil(diameter[1] / 2)) + 1
    shift = rng.uniform(-0.5, 0.5, 2)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1] + shift[:, np.newaxis, np.newaxis]
    angle = np.arctan2(rows, columns) - rng.uniform(0, np.pi)
    edge = 0.5 * major * minor / np.hypot(minor * np.cos(angle), major * np.sin(angle))
    dents = 0.05 * (1 + np.cos(3 * angle + rng.uniform(0, 2 * np.pi)))  # inwards only: never too wide
    return np.argwhere(np.hypot(rows, columns) < edge * (1 - dents)) - reach


def _inside(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Those of the pixels that lie in the frame."""
    return pixels[((pixels >= 0) & (pixels < shape)).all(axis=1)]


def _neighbourhood(
    pixels: np.ndarray, reach: int, shape: tuple[int, int], corners: bool = True
) -> np.ndarray:
    """All pixels within `reach` rows and columns of `pixels`, with repetitions."""
    steps = np.argwhere(np.ones((2 * reach + 1, 2 * reach + 1))) - reach
    if not corners:
        steps = steps[np.abs(steps).sum(axis=1) <= reach]
    return _inside((pixels[:, np.newaxis] + steps).reshape(-1, 2), shape)


def simulate_frames(
    regions: Sequence[np.ndarray],
    shape: tuple[int, int],
    n_frames: int,
    rng: np.random.Generator,
    *,
    rate_hz: float = 7.0,
    donuts: float = 0.6,
    faint: float = 0.05,
    events_hz: float = 0.25,
    photons: float = 4.0,
    counts_per_photon: float = 50.0,
) -> Iterator[np.ndarray]:
    """Frames of a recording in which the given neurons are active, one after the other.

    Parameters
    ----------
    regions : sequence of (n, 2) int arrays
        [row, column] pixels of each neuron, the dark nucleus included; no two share a pixel.
    shape : (int, int)
        Rows and columns of a frame.
    n_frames : int
        Number of frames.
    rng : numpy.random.Generator
        Source of all randomness, drawn from while the frames are taken.
    rate_hz : float
        Frames per second.
    donuts : float
        Share of neurons with a dark nucleus in a bright ring, 0 to 1; the others are bright discs.
    faint : float
        Share of neurons hardly brighter than the neuropil, 0 to 1.
    events_hz : float
        Mean number of calcium transients per second and neuron.
    photons : float
        Photons per frame from an evenly lit pixel of neuropil; fewer photons, noisier frames.
    counts_per_photon : float
        Gain of the detector.

    Yields
    ------
    (H, W) uint16 array
        Detector counts.
    """
    labels = regions_to_labels(regions, shape)
    inside = labels > 0
    cells = _cell_brightness(labels, len(regions), donuts, faint, rng)
    activity = _calcium(len(regions), n_frames, rate_hz, events_hz, rng)

    neuropil = (1 + 0.2 * _smooth_noise(shape, 12, rng) + 0.13 * _smooth_noise(shape, 1.2, rng)).clip(0.3)
    neuropil *= 1 - 0.75 * _vessels(inside, rng)
    neuropil *= (1 - _spots(inside, 1 / 1500, (0.3, 0.8), 2.0, rng)).clip(0.3)  # unlabelled nuclei
    neuropil[inside] *= 0.7  # a neuron displaces most of it
    clutter = _spots(inside, 1 / 1000, (0.5, 2.5), 0.9, rng)  # boutons, dendrites seen end on
    clutter += _spots(inside, 1 / 2500, (0.15, 0.5), 4.0, rng)  # glow of neurons above and below
    clutter += _dendrites(inside, rng)
    waves = [0.07 * _smooth_noise(shape, 20, rng) for _ in range(2)]
    slow = [_smooth_noise((n_frames,), 1.5 * rate_hz, rng) for _ in waves]

    light = _illumination(shape, rng) * photons
    for frame in range(n_frames):
        fluctuation = 1 + sum(wave * course[frame] for wave, course in zip(waves, slow, strict=True))
        scene = neuropil * fluctuation.clip(0.2) + clutter + cells * activity[frame][labels]
        arriving = rng.poisson(ndimage.gaussian_filter(light * scene, BLUR))
        counts = OFFSET + counts_per_photon * arriving + rng.normal(0, READ_NOISE, shape)
        yield np.rint(counts).clip(0, 65535).astype(np.uint16)


def _cell_brightness(
    labels: np.ndarray, count: int, donuts: float, faint: float, rng: np.random.Generator
) -> np.ndarray:
    """Brightness at rest of every neuron's pixels over that of the neuropil (= 1): float (H, W)."""
    depth = ndimage.distance_transform_edt((labels > 0) & ~find_boundaries(labels, mode="inner")) + 1
    deepest = np.ones(count + 1)
    deepest[1:] = ndimage.maximum(depth, labels, np.arange(1, count + 1))
    depth /= deepest[labels]  # 1 at a neuron's centre, towards 0 at its rim

    brightness = np.zeros(count + 1)  # one entry a label; 0 is no neuron
    brightness[1:] = rng.lognormal(np.log(1.8), 0.4, count).clip(1.3, 4)
    hard = 1 + np.flatnonzero(rng.random(count) < faint)
    brightness[hard] = rng.uniform(0.3, 0.5, len(hard))
    nucleus = np.zeros(count + 1)  # how much darker the nucleus is
    nucleus[1:] = np.where(rng.random(count) < donuts, rng.uniform(0.6, 0.9, count), 0)
    profile = 0.75 + 0.25 * depth
    profile *= 1 - nucleus[labels] * ((depth - 0.45) / 0.15).clip(0, 1)
    return brightness[labels] * profile


def _calcium(
    count: int, n_frames: int, rate_hz: float, events_hz: float, rng: np.random.Generator
) -> np.ndarray:
    """Fluorescence of each neuron over its rest, F / F0: (n_frames, count + 1), column 0 for no neuron."""
    before = int(np.ceil(5 * DECAY[1] * rate_hz))  # frames before the first, whose transients still glow
    time = np.arange(before) / rate_hz
    activity = np.ones((n_frames, count + 1))
    for neuron in range(1, count + 1):
        kernel = (1 - np.exp(-(time + 1 / rate_hz) / RISE)) * np.exp(-time / rng.uniform(*DECAY))
        events = rng.poisson(rng.gamma(2, events_hz / 2) / rate_hz, before + n_frames)
        trace = np.convolve(events * rng.uniform(0.5, 3.0, len(events)), kernel)
        activity[:, neuron] += trace[before : before + n_frames]
    return activity


def _smooth_noise(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise smoothed over `scale` pixels (or frames), with mean 0 and standard deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), scale, mode="reflect")
    return (noise - noise.mean()) / max(noise.std(), 1e-12)


def _illumination(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Light over the frame: a slope in a random direction, and darker corners; 1 in the centre."""
    rows, columns = (np.linspace(-1, 1, n) for n in shape)
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.add.outer(np.sin(angle) * rows, np.cos(angle) * columns)
    return (1 + 0.25 * slope) * np.exp(-0.25 * np.add.outer(rows**2, columns**2))


def _spots(
    inside: np.ndarray,
    per_pixel: float,
    strength: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Gaussian spots of standard deviation `radius` px centred outside neurons, `strength` at their peak."""
    points = np.zeros(inside.shape)
    where = tuple(rng.integers(inside.shape, size=(rng.poisson(per_pixel * inside.size), 2)).T)
    points[where] = rng.uniform(*strength, len(where[0]))
    points[inside] = 0
    return ndimage.gaussian_filter(points, radius) * 2 * np.pi * radius**2


def _dendrites(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Thin bright curves, 6 to 25 px long, outside neurons."""
    drawn = np.zeros(inside.shape)
    for _ in range(rng.poisson(inside.size / 1200)):
        length = rng.integers(6, 26)
        angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, length))
        start = rng.integers(inside.shape)
        path = start + np.cumsum(np.column_stack([np.sin(angle), np.cos(angle)]), axis=0)
        path = _inside(np.rint(path).astype(int), inside.shape)
        drawn[tuple(path.T)] = rng.uniform(0.2, 1.0)
    drawn[inside] = 0
    return 1.5 * ndimage.gaussian_filter(drawn, 0.6)


def _vessels(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blood vessels that run between the neurons from border to border, with branches: 1 in them, else 0."""
    height, width = inside.shape
    # The cheapest path through a rough landscape wanders as a vessel does; neurons are hills.
    cost = np.exp(_smooth_noise(inside.shape, 4, rng)) + 10 * ndimage.gaussian_filter(inside * 1.0, 1)
    vessels = np.zeros(inside.shape)
    for _ in range(1 + inside.size // 60_000):
        trunk_ends = [(0, rng.integers(width)), (height - 1, rng.integers(width))]
        side_ends = [(rng.integers(height), 0), (rng.integers(height), width - 1)]
        if rng.random() < 0.5:
            trunk_ends, side_ends = side_ends, trunk_ends
        trunk, _ = route_through_array(cost, *trunk_ends)
        fork = trunk[rng.integers(len(trunk))]
        branch, _ = route_through_array(cost, fork, side_ends[rng.integers(2)])
        for path, thickness in ((trunk, rng.uniform(1.5, 3)), (branch, rng.uniform(0.8, 1.5))):
            smooth = ndimage.gaussian_filter1d(np.array(path, float), 3, axis=0, mode="nearest")
            away = np.ones(inside.shape, bool)
            away[tuple(np.rint(smooth).astype(int).T)] = False
            distance = ndimage.distance_transform_edt(away)
            vessels = np.maximum(vessels, expit(2 * (thickness - distance)))
    return vessels


def write_recording(
    folder: str | Path,
    name: str,
    *,
    shape: tuple[int, int] = (128, 128),
    count: int | None = None,
    n_frames: int = 60,
    seed: int = 0,
    labelled: bool = True,
    rate_hz: float = 7.0,
    pixels_per_micron: float = 1.0,
    one_file_per_frame: bool = True,
) -> Path:
    """Write one simulated recording in neurofinder's layout; the same arguments write the same bytes.

    Parameters
    ----------
    folder : str or Path
        Where the recording's folder is made; created where missing.
    name : str
        Name of the recording's folder.
    shape : (int, int)
        Rows and columns of a frame.
    count : int, optional
        Number of neurons; by default as many as cover about a fifth of the frame.
    n_frames : int
        Number of frames.
    seed : int
        Seed of the random generator.
    labelled : bool
        Whether to write regions/regions.json.
    rate_hz : float
        Frames per second.
    pixels_per_micron : float
        Scale noted in info.json; it does not change the neurons' size in pixels.
    one_file_per_frame : bool
        Whether each frame gets a file, images/image00000.tiff and so on, or all share the first.

    Returns
    -------
    Path
        The recording's folder.

    Raises
    ------
    UserError
        If the folder already holds frames or labels that would be mixed up with the new ones.
    """
    recording = Path(folder) / name
    images, labels = recording / "images", recording / "regions" / "regions.json"
    files = [images / f"image{frame:05d}.tiff" for frame in range(n_frames if one_file_per_frame else 1)]
    if (set(images.glob("*")) - set(files)) or (labels.exists() and not labelled):
        raise UserError(f"{recording} holds another recording: delete it or choose another name")

    rng = np.random.default_rng(seed)
    if count is None:
        count = round(NEURONS_PER_PIXEL * shape[0] * shape[1])
    regions = simulate_regions(shape, count, rng)
    frames = simulate_frames(regions, shape, n_frames, rng, rate_hz=rate_hz)
    if one_file_per_frame:
        for path, frame in zip(files, frames, strict=True):
            with write_whole(path) as temporary:
                tifffile.imwrite(temporary, frame, metadata=None)
    else:
        with write_whole(files[0]) as temporary, tifffile.TiffWriter(temporary) as tiff:
            for frame in frames:
                tiff.write(frame, contiguous=True, metadata=None)
    if labelled:
        write_regions(labels, regions)
    info = {
        "id": name,
        "method": "simulated two-photon raster",
        "pixels-per-micron": pixels_per_micron,
        "rate-hz": rate_hz,
        "dimensions": [*shape, n_frames],
    }
    write_json(recording / "info.json", info)
    return recording
