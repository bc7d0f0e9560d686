"""One page about a run, in one file: settings, scores, and every recording with its neurons to look up.

The page needs no server, no network and no library. `report.html` beside this module is its Jinja
template, with the styles and the script; what it is filled with is gathered here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from neurodetect.detection import Found
from neurodetect.files import write_whole
from neurodetect.prepared import Prepared
from neurodetect.regions import mean_probability, outlines
from neurodetect.scoring import MEASURES, centers, overlaps, summarize
from neurodetect.view.figures import (
    FALSE_FOUND,
    MATCHED_FOUND,
    MATCHED_TRUE,
    MISSED_TRUE,
    OUTLINE,
    SOLID,
    figure_bytes,
    grey_limits,
    round_length,
)

BAR_SHARE = 0.25  #: longest scale bar, of the image's width

PAGES = Environment(
    loader=PackageLoader(__package__, ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
# The page's numbers are JSON, which has no NaN.
PAGES.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}

# Outlines that are switched together: what they are called, kind of neuron, how they are drawn.
OUTLINES = {
    "matched-labelled": ("labelled, matched", "matched", MATCHED_TRUE),
    "matched-found": ("found, matched", "matched", MATCHED_FOUND),
    "missed": ("labelled, missed", "missed", MISSED_TRUE),
    "false": ("found, false", "false", FALSE_FOUND),
    "found": ("found", "found", {"colors": OUTLINE, "linestyles": [SOLID]}),
}

COLUMNS = ("kind", "found", "labelled", "area", "probability", "row", "column", "iou")


class Section(NamedTuple):
    """What the page shows of one recording; `section` makes it."""

    name: str
    shape: tuple[int, int]
    picture: str  #: address of the image: a PNG in base64
    paths: dict[str, str]  #: by the keys of OUTLINES: an SVG path, a line for each neuron
    neurons: list[list]  #: by COLUMNS; those of a kind in the order of its paths' lines
    row: dict[str, float] | None
    note: str
    pixels_per_micron: float | None
    bar: dict[str, float] | None  #: the scale bar's length in "microns", and its "share" of the width in %
    found: int  #: how many neurons are found
    labelled: int | None  #: how many are labelled; None without labels
    median_area: float | None  #: of the neurons found, pixels; None without any
    mean_probability: float | None  #: of the neurons found; None without any


def section(
    recording: Prepared,
    found: Found,
    row: dict[str, float] | None = None,
    pairs: Sequence[tuple[int, int]] = (),
    note: str = "",
) -> Section:
    """What the page needs of one recording; its arrays can be forgotten then.

    Parameters
    ----------
    recording : Prepared
        Its image is shown in grey, see `figures.grey_limits`. Without labels no neuron is called matched,
        missed or false.
    found : Found
    row, pairs
        What `detection.assess` returned.
    note : str
        What the reader has to know of this recording, e.g. that it was trained on.

    Returns
    -------
    Section
    """
    image, truth, scale = recording.image, recording.regions, recording.pixels_per_micron
    labelled = [] if truth is None else truth
    matched_true, matched_found = {t for t, _ in pairs}, {f for _, f in pairs}
    missed = [t for t in range(len(labelled)) if t not in matched_true]
    other = [f for f in range(len(found.regions)) if f not in matched_found]
    regions_missed = [labelled[t] for t in missed]
    if truth is None:
        regions = {"found": found.regions}
    else:
        regions = {
            "matched-labelled": [truth[t] for t, _ in pairs],
            "matched-found": [found.regions[f] for _, f in pairs],
            "missed": regions_missed,
            "false": [found.regions[f] for f in other],
        }
    iou = overlaps(labelled, found.regions)
    of_found = measure(found.regions, found.confidence)
    of_missed = measure(regions_missed, mean_probability(found.probability, regions_missed))
    # Numbers count from 1, as people do.
    neurons = [
        *(["matched", f + 1, t + 1, *of_found[f], round(float(iou[t, f]), 3)] for t, f in pairs),
        *(["found" if truth is None else "false", f + 1, None, *of_found[f], None] for f in other),
        *(["missed", None, t + 1, *values, None] for t, values in zip(missed, of_missed, strict=True)),
    ]
    return Section(
        name=recording.name,
        shape=image.shape,
        picture=picture(image),
        paths={key: "\n".join(map(svg_path, group)) for key, group in regions.items()},
        neurons=neurons,
        row=row,
        note=note,
        pixels_per_micron=scale,
        bar=None if scale is None else scale_bar(image.shape[1], scale),
        found=len(found.regions),
        labelled=None if truth is None else len(truth),
        median_area=float(np.median([len(region) for region in found.regions])) if found.regions else None,
        mean_probability=float(np.mean(found.confidence)) if found.regions else None,
    )


def measure(regions: Sequence[np.ndarray], confidence: np.ndarray) -> list[tuple[int, float, float, float]]:
    """Area in pixels, mean probability, row and column of the centre of each neuron."""
    return [
        (len(region), round(float(mean), 3), round(float(row), 1), round(float(column), 1))
        for region, mean, (row, column) in zip(regions, confidence, centers(regions), strict=True)
    ]


def scale_bar(width: int, pixels_per_micron: float) -> dict[str, float]:
    """The length in µm of a bar over an image of this width, and its share of the width in %."""
    microns = round_length(BAR_SHARE * width / pixels_per_micron)
    return {"microns": microns, "share": 100 * microns * pixels_per_micron / width}


def picture(image: np.ndarray) -> str:
    """An (H, W) image in 256 greys as an address that holds the picture itself."""
    low, high = grey_limits(image)
    grey = np.clip((np.asarray(image, np.float64) - low) / (high - low), 0, 1)
    stream = io.BytesIO()
    Image.fromarray((255 * grey).round().astype(np.uint8)).save(stream, format="PNG", optimize=True)
    return png_address(stream.getvalue())


def figure_picture(figure: Figure) -> str:
    """A figure as an address that holds the picture itself."""
    return png_address(figure_bytes(figure))


def png_address(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def svg_path(region: np.ndarray) -> str:
    """Outline of a neuron as an SVG path in which pixel [r, c] is the square c … c + 1, r … r + 1."""
    path = ""
    for ring in outlines([region]):
        corners = np.rint(ring + 0.5).astype(int)
        row, column = corners[0]
        # The last step, back to the first corner, is "z".
        steps = np.diff(corners, axis=0)[:-1].tolist()
        path += (
            f"M{column} {row}" + "".join(f"v{down}" if down else f"h{right}" for down, right in steps) + "z"
        )
    return path


# The page


def write_report(
    path: str | Path,
    *,
    title: str,
    settings: Mapping[str, Any],
    sections: Sequence[Section],
    figures: Mapping[str, Figure] | None = None,
) -> None:
    """Write the page, whole or not at all. The same input gives the same bytes.

    Parameters
    ----------
    path : str or Path
        The `.html` file.
    title : str
        What was run.
    settings : mapping
        With what: `console.log_settings`, and whatever else there is to say. A mapping within it is shown
        as a list of its own, folded away where it is long.
    sections : sequence of Section
        The recordings, in the order of the page.
    figures : mapping of str to Figure, optional
        Curves and the like, by the line that goes below them.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    rows = [section.row for section in sections if section.row is not None]
    page = PAGES.get_template("report.html").render(
        title=title,
        settings=settings,
        sections=sections,
        figures={caption: figure_picture(figure) for caption, figure in (figures or {}).items()},
        outlines=OUTLINES,
        measures=MEASURES if rows else (),
        summary=summarize(rows) if len(rows) > 1 else {},
        data={
            "columns": COLUMNS,
            "recordings": [
                {"name": s.name, "pixels_per_micron": s.pixels_per_micron, "neurons": s.neurons}
                for s in sections
            ],
        },
    )
    with write_whole(path) as temporary:
        # A file's name that is no proper text has half characters, which UTF-8 has not.
        temporary.write_bytes(page.encode("utf-8", "replace"))
