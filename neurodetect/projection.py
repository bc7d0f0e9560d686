"""One mean image per recording: projection over time, clipping, scaling."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from neurodetect.averaging import FrameSum, alike, nan_pixels, quotient, whole_box

CLIP_DEVIATIONS = 3.0  #: standard deviations above the mean at which bright pixels are cut
BACKGROUND = 25.0  #: pixels, standard deviation of the Gaussian whose mean is the local brightness
FLAT_SHARE = 1e-3  #: of the mean local variance, what is added to it


def mean_projection(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Mean intensity of each pixel over time; `averaging.project` knows more of what frames are like.

    Parameters
    ----------
    frames : iterable of (H, W) arrays
        A recording, a stack (T, H, W), or anything that gives frames one by one. One frame at a time
        is in memory.

    Returns
    -------
    float64 (H, W)
        Over the frames in which a pixel is not NaN; NaN where it always is. Sums of integers of up to
        32 bits are exact.

    Raises
    ------
    ValueError
        There are no frames, or not all are (H, W) and of one dtype.

    Examples
    --------
    >>> mean_projection([[[1, 2]], [[3, 6]]]).tolist()
    [[2.0, 4.0]]
    """
    summed: FrameSum | None = None
    for frame in alike(frames):
        if summed is None:
            summed, whole = FrameSum(frame), whole_box(frame)
        summed.add(frame, nan_pixels(frame), whole)
    assert summed is not None  # or `alike` would have raised
    return quotient(*summed.sums())


def clip_bright(image: np.ndarray) -> np.ndarray:
    """Cut the brightest pixels: every value above mean + 3 standard deviations becomes that limit.

    Parameters
    ----------
    image : (H, W) array
        NaN where there is no pixel; that stays and counts for nothing.

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
        pixels = image[~np.isnan(image)]
        if not pixels.size:
            return image
        limit = pixels.mean(dtype=np.float64) + CLIP_DEVIATIONS * pixels.std(dtype=np.float64)
        return np.minimum(image, limit).astype(image.dtype if image.dtype.kind == "f" else np.float64)


def fill_missing(image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Give pixels that are NaN the median of the others.

    Parameters
    ----------
    image : (H, W) array

    Returns
    -------
    image : (H, W) array
        Without NaN; 0 throughout where all was NaN.
    valid : bool (H, W) or None
        Which pixels were there; None if all were.

    Examples
    --------
    >>> filled, valid = fill_missing(np.array([[1.0, np.nan], [5.0, 3.0]]))
    >>> filled.tolist(), valid.tolist()
    ([[1.0, 3.0], [5.0, 3.0]], [[True, False], [True, True]])
    """
    valid = ~np.isnan(image)
    if valid.all():
        return image, None
    return np.where(valid, image, np.median(image[valid]) if valid.any() else 0), valid


def standardize(image: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Scale an image by itself to mean 0 and standard deviation 1.

    Parameters
    ----------
    image : (H, W) array
    valid : bool (H, W), optional
        The pixels that count in mean and deviation; without it all do.

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
    pixels = image if valid is None else image[valid]
    deviation = pixels.std()
    if not np.isfinite(deviation):
        raise ValueError("the image has NaN or infinite pixels")
    if pixels.min() == pixels.max():
        raise ValueError("the image is constant")
    return ((image - pixels.mean()) / deviation).astype(np.float32)


def local_mean(image: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Mean of the surround of each pixel: float64 (H, W).

    Parameters
    ----------
    image : (H, W) array
    valid : bool (H, W), optional
        Where there are pixels; without it everywhere.

    Returns
    -------
    float64 (H, W)
        The surround is a Gaussian of BACKGROUND pixels, of which only the valid part within the image counts;
        the image itself where the image is not valid.
    """
    image = np.asarray(image, np.float64)
    counts = np.ones_like(image) if valid is None else valid.astype(np.float64)
    weight = ndimage.gaussian_filter(counts, BACKGROUND, mode="constant")
    surround = ndimage.gaussian_filter(image * counts, BACKGROUND, mode="constant")
    # Far from any valid pixel the weight is 0.
    return np.divide(surround, weight, where=counts > 0, out=image.copy())


def subtract_background(image: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """An image less its local brightness, for backgrounds that are bright here and dark there.

    The difference from the `local_mean` of the valid pixels: float64 (H, W), 0 where the image is not valid.
    """
    return np.asarray(image, np.float64) - local_mean(image, valid)


def normalize_locally(image: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """An image less its local brightness, in local standard deviations: contrast is alike everywhere.

    Bright and dark areas, dim recordings and those with a few very bright cells come to look alike, and
    faint rings count as much as bright cells do. See `local_mean` for the parameters.

    Returns
    -------
    float64 (H, W)
        0 where the image is not valid. Where it is nearly flat, the noise is not blown up to full contrast.
    """
    difference = subtract_background(image, valid)
    variance = local_mean(difference**2, valid)
    floor = FLAT_SHARE * np.mean(variance if valid is None else variance[valid])
    return difference / np.sqrt(variance + (floor or 1.0))


def network_input(image: np.ndarray, background: str = "keep", valid: np.ndarray | None = None) -> np.ndarray:
    """What the network sees of an image: float32 (H, W), see `standardize`.

    With `background="subtract"` the local brightness is taken off first, see `subtract_background`; with
    "normalize" local contrast is made alike too, see `normalize_locally`. Of an image with `valid` (H, W)
    only these pixels count.
    """
    scaled = standardize(image, valid)  # a constant image is refused, not its rounding errors blown up
    if background == "keep":
        return scaled
    change = {"subtract": subtract_background, "normalize": normalize_locally}
    return standardize(change[background](image, valid), valid)
