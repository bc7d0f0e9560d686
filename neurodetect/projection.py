"""One mean image per recording: projection over time, clipping, scaling."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

CLIP_DEVIATIONS = 3.0  #: standard deviations above the mean at which bright pixels are cut
BACKGROUND = 25.0  #: pixels, standard deviation of the Gaussian whose mean is the local brightness
FRAMES_IN_32_BITS = 2**16  #: whose sum fits, whatever their 16-bit pixels


def mean_projection(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Mean intensity of each pixel over time.

    Parameters
    ----------
    frames : iterable of (H, W) arrays
        A recording, a stack (T, H, W), or anything that gives frames one by one. One frame at a time
        is in memory.

    Returns
    -------
    float64 (H, W)
        Sums of integers of up to 32 bits are exact.

    Raises
    ------
    ValueError
        There are no frames, or not all are (H, W) and of one dtype.

    Examples
    --------
    >>> mean_projection([[[1, 2]], [[3, 6]]]).tolist()
    [[2.0, 4.0]]
    """
    total: np.ndarray | None = None
    for count, frame in enumerate(frames):
        frame = np.asarray(frame)
        if total is None:
            first = frame
            exact = frame.dtype.kind in "iu" and frame.dtype.itemsize <= 4
            total = np.zeros(frame.shape, np.int64 if exact else np.float64)
            # Sums of 32 bits take half the time; they are moved on before they can overflow.
            short = exact and frame.dtype.itemsize <= 2
            recent: np.ndarray = np.zeros(frame.shape, f"{frame.dtype.kind}4") if short else total
        if frame.ndim != 2 or frame.shape != first.shape or frame.dtype != first.dtype:
            raise ValueError(
                f"frame {count} is {frame.dtype} {frame.shape}, not (H, W) like the first {first.shape}"
            )
        np.add(recent, frame, out=recent)
        if short and count % FRAMES_IN_32_BITS == FRAMES_IN_32_BITS - 1:
            total += recent
            recent[:] = 0
    if total is None:
        raise ValueError("a mean of no frames")
    if short:
        total += recent
    return total / (count + 1)


def clip_bright(image: np.ndarray, deviations: float = CLIP_DEVIATIONS) -> np.ndarray:
    """Cut the brightest pixels: every value above mean + 3 standard deviations becomes that limit.

    Parameters
    ----------
    image : (H, W) array
    deviations : float
        Standard deviations (over all pixels of the image) above the mean.

    Returns
    -------
    (H, W) array
        Of the image's dtype if it is a float type, otherwise float64.

    Examples
    --------
    >>> image = np.zeros((4, 5))
    >>> image[1, 2] = 100.0
    >>> bool(clip_bright(image).max() == image.mean() + 3 * image.std())
    True
    """
    image = np.asarray(image)
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large is refused when it is written
        limit = image.mean(dtype=np.float64) + deviations * image.std(dtype=np.float64)
        return np.minimum(image, limit).astype(image.dtype if image.dtype.kind == "f" else np.float64)


def standardize(image: np.ndarray) -> np.ndarray:
    """Scale an image by itself to mean 0 and standard deviation 1.

    Parameters
    ----------
    image : (H, W) array

    Returns
    -------
    float32 (H, W)

    Raises
    ------
    ValueError
        The image is constant or not finite: no scaling makes its deviation 1.

    Examples
    --------
    >>> standardize([[1, 3], [1, 3]]).tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """
    image = np.asarray(image, np.float64)
    deviation = image.std()
    if not np.isfinite(deviation):
        raise ValueError("the image has NaN or infinite pixels")
    if image.min() == image.max():
        raise ValueError("the image is constant")
    return ((image - image.mean()) / deviation).astype(np.float32)


def subtract_background(image: np.ndarray) -> np.ndarray:
    """An image less its local brightness, for backgrounds that are bright here and dark there.

    Parameters
    ----------
    image : (H, W) array

    Returns
    -------
    float64 (H, W)
        The difference from the mean of the surround, a Gaussian of BACKGROUND pixels of which only the
        part within the image counts.
    """
    image = np.asarray(image, np.float64)
    weight = ndimage.gaussian_filter(np.ones_like(image), BACKGROUND, mode="constant")
    return image - ndimage.gaussian_filter(image, BACKGROUND, mode="constant") / weight


def network_input(image: np.ndarray, background: str = "keep") -> np.ndarray:
    """What the network sees of an image: float32 (H, W), see `standardize`.

    With `background="subtract"` the local brightness is taken off first, see `subtract_background`.
    """
    return standardize(subtract_background(image) if background == "subtract" else image)
