"""Found neurons, and their traces, for other programs: Fiji, napari, Cellpose, QuPath, suite2p, spreadsheets.

Whatever needs numpy is imported where it is used, so that `--help` can name the formats at once.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurodetect.files import UserError, reason, write_whole

if TYPE_CHECKING:
    import numpy as np
    from roifile import ImagejRoi

    from neurodetect.traces import Traces

FORMATS = ("imagej", "labels", "suite2p", "csv")
WITH_IMAGE = ("imagej", "labels")  #: those beside which the mean image goes
WITH_TRACES = ("suite2p", "csv")  #: those that take traces
MOST_LABELS = 2**16 - 1  #: neurons that a uint16 label image can tell apart
MOVE_TO, LINE_TO, CLOSE = 0, 1, 4  #: steps of a composite ROI's path, as in java.awt.geom.PathIterator
SUITE2P_FILES = ("stat.npy", "iscell.npy", "ops.npy", "F.npy", "Fneu.npy", "spks.npy")
SUITE2P_FRAMES = 2  #: of the traces that are not there; its GUI draws a line, which has two ends
NEUROPIL = 0.7  #: of the surround's trace, that suite2p takes off a neuron's
USUAL_AREA = math.pi * 6**2  #: pixels, where there is no neuron to measure: suite2p's guess, 12 px wide


def export(
    format: str,
    stem: str | Path,
    regions: Sequence[np.ndarray],
    probability: np.ndarray,
    image: np.ndarray,
    pixels_per_micron: float | None = None,
    traces: Traces | None = None,
) -> Path:
    """Write the neurons of one recording for another program, whole or not at all.

    Beside those that are corrected there, of Fiji and napari, goes the mean image that they lie on,
    `..._mean.tif`.

    Parameters
    ----------
    format : {"imagej", "labels", "suite2p", "csv"}
        See `export_imagej`, `export_labels`, `export_suite2p` and `export_csv`.
    stem : str or Path
        What the name begins with, e.g. `out/submission_mouse4` for `out/submission_mouse4_rois.zip`.
    regions : sequence of (n, 2) int arrays
        `[row, column]` pixels of each neuron.
    probability : (H, W) float32 array
        The probability map they come from.
    image : (H, W) float32 array
        The recording's mean image.
    pixels_per_micron : float, optional
        Where it is known, areas are given in µm² too, and the label image has its scale.
    traces : Traces, optional
        Of these neurons, for the formats that have them.

    Returns
    -------
    Path
        The file or folder that was written.

    Raises
    ------
    UserError
        It cannot be written, or the format cannot hold these neurons.
    """
    import numpy as np

    stem = Path(stem)

    def path(ending: str) -> Path:
        return stem.with_name(stem.name + ending)

    if format in WITH_IMAGE:
        write_image(path("_mean.tif"), np.asarray(image, np.float32), pixels_per_micron)
    if format == "imagej":
        return export_imagej(path("_rois.zip"), regions)
    if format == "labels":
        return export_labels(path("_labels.tif"), regions, image.shape, pixels_per_micron)
    if format == "suite2p":
        return export_suite2p(path("_suite2p"), regions, probability, image, traces)
    if format == "csv":
        return export_csv(path(".csv"), regions, probability, pixels_per_micron, traces)
    raise ValueError(f"unknown format {format!r}, use one of {', '.join(FORMATS)}")


# ImageJ and Fiji


def export_imagej(path: Path, regions: Sequence[np.ndarray]) -> Path:
    """Write a zip of ImageJ ROIs, `neuron-0001.roi` and so on, which Fiji's ROI manager opens.

    A neuron with one outline is a traced polygon, as the wand tool makes it; one with holes or in several
    pieces is a composite. Either way the ROI covers exactly the neuron's pixels.
    """
    with write_whole(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for number, region in enumerate(regions, start=1):
            name = f"neuron-{number:04d}"
            # An entry made from its name alone would have the time of writing: no two files were alike.
            archive.writestr(zipfile.ZipInfo(f"{name}.roi"), imagej_roi(region, name).tobytes())
    return path


def imagej_roi(region: np.ndarray, name: str) -> ImagejRoi:
    """One neuron as an ImageJ ROI, in no particular slice.

    In ImageJ, pixel (x, y) is the square x … x + 1, y … y + 1, and x is the column. A composite is a
    path, filled by the even-odd rule (`ij.gui.ShapeRoi`).
    """
    import numpy as np
    from roifile import ROI_TYPE, ImagejRoi

    from neurodetect.regions import outlines

    # Without the last corner, which is the first.
    rings = [np.rint(ring[:-1, ::-1] + 0.5).astype(np.int32) for ring in outlines([region])]
    corners = np.concatenate(rings)
    left, top = corners.min(axis=0).tolist()
    right, bottom = corners.max(axis=0).tolist()
    roi = ImagejRoi(name=name, left=left, top=top, right=right, bottom=bottom)
    if len(rings) == 1:
        roi.roitype = ROI_TYPE.TRACED
        roi.integer_coordinates = corners - [left, top]
        roi.n_coordinates = len(corners)
    else:
        roi.roitype = ROI_TYPE.RECT
        steps: list[int] = []
        for ring in rings:
            for corner, (x, y) in enumerate(ring.tolist()):
                steps += [MOVE_TO if corner == 0 else LINE_TO, x, y]
            steps.append(CLOSE)
        roi.multi_coordinates = np.array(steps, np.float32)
        roi.shape_roi_size = len(steps)
    return roi


# Label images


def export_labels(
    path: Path,
    regions: Sequence[np.ndarray],
    shape: tuple[int, int],
    pixels_per_micron: float | None = None,
) -> Path:
    """Write a uint16 TIFF with 0 where no neuron is and n at the pixels of neuron n, counted from 1.

    Napari, Cellpose, QuPath and Fiji read it; Fiji and QuPath take the scale from it too.

    Raises
    ------
    UserError
        There are more neurons than uint16 has numbers, or two share a pixel, which has one number only.
    """
    import numpy as np

    from neurodetect.regions import regions_to_labels, unique_pixels

    if len(regions) > MOST_LABELS:
        raise UserError(
            f"{path}: a label image has at most {MOST_LABELS} neurons, not {len(regions)}; use --export csv"
        )
    labels = regions_to_labels(regions, shape)
    if np.count_nonzero(labels) < sum(len(unique_pixels(region)) for region in regions):
        raise UserError(f"{path}: neurons overlap, which a label image cannot show; use --export imagej")
    write_image(path, labels.astype(np.uint16), pixels_per_micron)
    return path


def write_image(path: Path, image: np.ndarray, pixels_per_micron: float | None) -> None:
    """Write a TIFF (H, W) that Fiji and napari read, Fiji with its scale."""
    import tifffile

    scale: dict[str, Any] = {}
    if pixels_per_micron is not None:
        # ImageJ's way of a scale: pixels per unit as the resolution, the unit in the description.
        scale = {"resolution": (pixels_per_micron, pixels_per_micron), "metadata": {"unit": "um"}}
    with write_whole(path) as temporary:
        tifffile.imwrite(temporary, image, imagej=True, **scale)


# suite2p


def export_suite2p(
    path: Path,
    regions: Sequence[np.ndarray],
    probability: np.ndarray,
    image: np.ndarray,
    traces: Traces | None = None,
) -> Path:
    """Write a folder whose `stat.npy` the GUI of suite2p opens (File > Load processed data).

    `F.npy` and `Fneu.npy` are the traces of the neurons and of their surrounds, whose pixels `stat.npy` has
    as `neuropil_mask`. Where a frame has none of the pixels (NaN in the traces, which the GUI cannot draw)
    they have the mean of the trace's other frames. `skew` and `std` are those of F - 0.7 Fneu, as in suite2p.
    Without traces all these are zeros; `spks.npy` and `snr` always are, suite2p computes them where it has
    the movie. `iscell.npy` has a 1 and the mean probability of each neuron; the GUI's correlation map shows
    the probability map. suite2p counts the neurons from 0. Its GUI opens no folder without neurons, and
    what was curated there (in `iscell.npy`) is lost when the folder is written again.

    Raises
    ------
    UserError
        The folder cannot be written, or holds files that are not of such an export, which would be lost.

    Notes
    -----
    The files are those of https://suite2p.readthedocs.io/en/latest/outputs.html, with what the GUI of
    versions 0.14 and 1.1 asks for when it opens them. `stat.npy` and `ops.npy` are pickles, as suite2p
    will have them; nothing here reads them.
    """
    import numpy as np

    from neurodetect.regions import mean_probability

    height, width = image.shape
    typical_area = float(np.median([len(region) for region in regions])) if len(regions) else USUAL_AREA
    diameter = round(2 * math.sqrt(typical_area / math.pi))
    stat = np.array([suite2p_stat(region, typical_area) for region in regions], dtype=object)
    ops = {
        "Ly": height,
        "Lx": width,
        "yrange": [0, height],
        "xrange": [0, width],
        "meanImg": np.asarray(image, np.float32),
        "Vcorr": np.asarray(probability, np.float32),
        "diameter": [diameter, diameter],
        "aspect": 1.0,
        "nframes": SUITE2P_FRAMES if traces is None else traces.neurons.shape[1],
        "fs": 1.0 if traces is None or traces.rate_hz is None else traces.rate_hz,
        "tau": 1.0,
    }
    iscell = np.column_stack([np.ones(len(regions)), mean_probability(probability, regions)])
    neurons = surrounds = np.zeros((len(regions), SUITE2P_FRAMES), np.float32)
    if traces is not None:
        neurons, surrounds = without_nan(traces.neurons), without_nan(traces.surrounds)
        for one, mask, values in zip(
            stat, traces.surround_pixels, neurons - NEUROPIL * surrounds, strict=True
        ):
            one |= {"neuropil_mask": mask, "skew": skewness(values), "std": float(values.std())}
    with replace_folder(path, SUITE2P_FILES) as temporary:
        np.save(temporary / "stat.npy", stat)
        np.save(temporary / "ops.npy", np.array(ops, dtype=object))
        np.save(temporary / "iscell.npy", iscell)
        np.save(temporary / "F.npy", neurons)
        np.save(temporary / "Fneu.npy", surrounds)
        np.save(temporary / "spks.npy", np.zeros_like(neurons))
    return path


def suite2p_stat(region: np.ndarray, typical_area: float) -> dict[str, Any]:
    """What suite2p's `stat.npy` says of one neuron.

    `radius` is the longer semiaxis, in pixels, of the ellipse with the neuron's second moments,
    `aspect_ratio` is 2 long / (long + short), and `compact` the mean distance from the centre over that
    in a disk of the same area, 1 for a disk. Every pixel has the same weight.
    """
    import numpy as np

    rows, columns = region.T.astype(np.int32)
    centre = np.median(region, axis=0)
    distances = np.hypot(*(region - centre).T)
    med = region[distances.argmin()].tolist()
    # A pixel is not a point but a square, whose own variance is 1/12.
    variances = np.linalg.eigvalsh(np.cov(region.T, bias=True) + np.eye(2) / 12)
    short, long = (2 * np.sqrt(variances)).tolist()
    in_a_disk = 2 / 3 * math.sqrt(len(region) / math.pi)
    return {
        "ypix": rows,
        "xpix": columns,
        "lam": np.ones(len(region), np.float32),
        "med": med,
        "npix": len(region),
        "npix_norm": len(region) / typical_area,
        "radius": long,
        "aspect_ratio": 2 * long / (long + short),
        "compact": max(1.0, float(distances.mean()) / in_a_disk),
        "footprint": 0.0,
        "skew": 0.0,
        "std": 0.0,
        "snr": 0.0,
        "overlap": np.zeros(len(region), bool),
        "soma_crop": np.ones(len(region), bool),
    }


def without_nan(traces: np.ndarray) -> np.ndarray:
    """Traces (N, T) with the mean of each in the place of NaN, or 0 where all of it is NaN."""
    import numpy as np

    there = ~np.isnan(traces)
    count = np.maximum(there.sum(axis=1, keepdims=True), 1)
    means = traces.sum(axis=1, keepdims=True, where=there, dtype=np.float64) / count
    return np.where(there, traces, means.astype(traces.dtype))


def skewness(values: np.ndarray) -> float:
    """The third moment over the cube of the standard deviation; 0 of values that are all the same."""
    import numpy as np

    values = values.astype(np.float64)
    deviation = values.std()
    return (
        float(np.mean(((values - values.mean()) / deviation) ** 3)) if np.ptp(values) and deviation else 0.0
    )


@contextmanager
def replace_folder(path: Path, files: Sequence[str]) -> Iterator[Path]:
    """Write a folder beside its name and rename it when it is complete. See `files.write_whole`.

    An earlier folder of this name is replaced if it has these files and no others but hidden ones.

    Yields
    ------
    Path
        A temporary folder. When the block fails it is removed and the old folder stays as it was.
    """
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    try:
        there = {file.name for file in path.iterdir()} if path.exists() else set()
        if foreign := sorted(name for name in there - {*files} if name[0] != "."):
            raise UserError(f"{path}: has other files ({foreign[0]}), which would be lost; move it away")
        path.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        yield new
        for file in new.iterdir():
            with open(file, "r+b") as written:
                os.fsync(written.fileno())
        # No system replaces a folder that has files in one step.
        if not path.exists():
            os.replace(new, path)
            return
        os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            os.replace(old, path)
            raise
        shutil.rmtree(old)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({reason(error)}); make room or choose another place for it"
        ) from error
    finally:
        if new.exists():
            shutil.rmtree(new)


# Spreadsheets


def export_csv(
    path: Path,
    regions: Sequence[np.ndarray],
    probability: np.ndarray,
    pixels_per_micron: float | None = None,
    traces: Traces | None = None,
) -> Path:
    """Write one row for each neuron, numbered from 1, the numbers being those of the label image.

    `row` and `column` are its centre, the mean of its pixels; `area_um2` is there where the scale is
    known; the first and last rows and columns belong to the neuron; `probability` is the mean over its
    pixels. With traces there is a second table beside it, `..._traces.csv`, see `write_traces`; one of an
    earlier run, of other neurons, is removed otherwise.
    """
    from neurodetect.regions import mean_probability

    header = ["neuron", "row", "column", "area_px"]
    if pixels_per_micron is not None:
        header.append("area_um2")
    header += ["first_row", "first_column", "last_row", "last_column", "probability"]
    of_traces = path.with_name(f"{path.stem}_traces.csv")
    with ExitStack() as files:
        if traces is not None:
            write_traces(files.enter_context(write_whole(of_traces)), traces)
        temporary = files.enter_context(write_whole(path))
        file = files.enter_context(open(temporary, "w", encoding="utf-8", newline=""))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        means = mean_probability(probability, regions)
        for number, (region, mean) in enumerate(zip(regions, means, strict=True), start=1):
            row, column = region.mean(axis=0)
            values = [number, f"{row:.3f}", f"{column:.3f}", len(region)]
            if pixels_per_micron is not None:
                values.append(f"{len(region) / pixels_per_micron**2:.3f}")
            values += [*region.min(axis=0).tolist(), *region.max(axis=0).tolist(), f"{mean:.4f}"]
            writer.writerow(values)
    if traces is None:
        of_traces.unlink(missing_ok=True)
    return path


def write_traces(path: Path, traces: Traces) -> None:
    """Write a row for each frame: its number in the recording, from 1, and the neurons' means in it.

    Where the rate is known, `time_s` follows the number, from 0 at the recording's first frame. Nine digits
    give every float32 back as it was. A cell is empty where the frame has no pixel of the neuron.
    """
    import numpy as np

    count, length = traces.neurons.shape
    columns = ["frame"] + ["time_s"] * (traces.rate_hz is not None)
    header = [*columns, *(f"neuron_{number}" for number in range(1, count + 1))]
    row_format = ",".join(["%.9g"] * count)  # one call for a row: several times as fast as the csv module
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(",".join(header) + "\n")
        for index, values in enumerate(np.ascontiguousarray(traces.neurons.T)):
            number = traces.first + index
            cells = [str(number)]
            if traces.rate_hz is not None:
                cells.append(f"{(number - 1) / traces.rate_hz:.6f}")
            if count:
                cells.append((row_format % tuple(values.tolist())).replace("nan", ""))
            file.write(",".join(cells) + "\n")
