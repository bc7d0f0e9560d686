"""One page about a run, in one file: settings, scores, and every recording with its neurons to look up.

The page needs no server, no network and no library. `report.html` beside this module is its template, a
Jinja one, with all markup, styles and the script; here stands what it is filled with.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
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
    grey_limits,
    round_length,
)

TEMPLATE = Path(__file__).with_name("report.html")
UNFOLDED = 12  #: settings within a setting that are shown without a click
BAR_SHARE = 0.25  #: longest scale bar, of the image's width

# Outlines that are switched together: what they are called, kind of neuron, how they are drawn.
OUTLINES = {
    "matched-labelled": ("labelled, matched", "matched", MATCHED_TRUE),
    "matched-found": ("found, matched", "matched", MATCHED_FOUND),
    "missed": ("labelled, missed", "missed", MISSED_TRUE),
    "false": ("found, false", "false", FALSE_FOUND),
    "found": ("found", "found", {"colors": OUTLINE, "linestyles": [SOLID]}),
}

HEADS = {
    "pixel_error": ("pixel error", "share of pixels whose rounded probability is not the label"),
    "recall": ("recall", "matched neurons / labelled neurons"),
    "precision": ("precision", "matched neurons / found neurons"),
    "combined": ("combined", "harmonic mean of recall and precision"),
    "inclusion": ("inclusion", "mean over matches: shared pixels / pixels of the labelled neuron"),
    "exclusion": ("exclusion", "mean over matches: shared pixels / pixels of the found neuron"),
    "f1_iou50": ("F1 at IoU\u00a00.5", "F1 of the best one-to-one assignment at intersection / union of 0.5"),
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
    image, truth, regions_found = recording.image, recording.regions, found.regions
    labelled = [] if truth is None else truth
    matched_true, matched_found = {t for t, _ in pairs}, {f for _, f in pairs}
    missed = [t for t in range(len(labelled)) if t not in matched_true]
    other = [f for f in range(len(regions_found)) if f not in matched_found]
    if truth is None:
        regions = {"found": regions_found}
    else:
        regions = {
            "matched-labelled": [truth[t] for t, _ in pairs],
            "matched-found": [regions_found[f] for _, f in pairs],
            "missed": [truth[t] for t in missed],
            "false": [regions_found[f] for f in other],
        }
    iou = overlaps(labelled, regions_found)
    of_found, of_labelled = (measure(neurons, found.probability) for neurons in (regions_found, labelled))
    # Numbers count from 1, as people do.
    neurons = [
        *(["matched", f + 1, t + 1, *of_found[f], round(float(iou[t, f]), 3)] for t, f in pairs),
        *(["found" if truth is None else "false", f + 1, None, *of_found[f], None] for f in other),
        *(["missed", None, t + 1, *of_labelled[t], None] for t in missed),
    ]
    return Section(
        name=recording.name,
        shape=image.shape,
        picture=picture(image),
        paths={key: "\n".join(map(svg_path, group)) for key, group in regions.items()},
        neurons=neurons,
        row=row,
        note=note,
        pixels_per_micron=recording.pixels_per_micron,
    )


def measure(regions: Sequence[np.ndarray], probability: np.ndarray) -> list[tuple[int, float, float, float]]:
    """Area in pixels, mean probability, row and column of the centre of each neuron."""
    return [
        (len(region), round(float(mean), 3), round(float(row), 1), round(float(column), 1))
        for region, mean, (row, column) in zip(
            regions, mean_probability(probability, regions), centers(regions), strict=True
        )
    ]


def picture(image: np.ndarray) -> str:
    """An (H, W) image in 256 greys as an address that holds the picture itself."""
    low, high = grey_limits(image)
    grey = np.clip((np.asarray(image, np.float64) - low) / (high - low), 0, 1)
    stream = io.BytesIO()
    Image.fromarray((255 * grey).round().astype(np.uint8)).save(stream, format="PNG", optimize=True)
    return png_address(stream)


def figure_picture(figure: Figure) -> str:
    """A figure as an address that holds the picture itself."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi="figure", metadata={"Software": None})
    return png_address(stream)


def png_address(stream: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


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
        With what: `console.settings`, and whatever else there is to say. A mapping within it is shown
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
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        overview=overview(sections),
        outlines={
            key: {
                "text": text,
                "kind": kind,
                "colour": style["colors"],
                "solid": style["linestyles"] == [SOLID],
            }
            for key, (text, kind, style) in OUTLINES.items()
        },
        settings=settings,
        unfolded=UNFOLDED,
        scores=score_table(sections),
        figures=[(figure_picture(figure), caption) for caption, figure in (figures or {}).items()],
        recordings=[
            {**s._asdict(), "counted": overview([s]).split(", ", 1)[1], "bar": scale_bar(s)} for s in sections
        ],
        data=script_json(
            {
                "columns": COLUMNS,
                "recordings": [
                    {"name": s.name, "pixels_per_micron": s.pixels_per_micron, "neurons": s.neurons}
                    for s in sections
                ],
            }
        ),
    )
    with write_whole(path) as temporary:
        # A file's name that is no proper text has half characters, which UTF-8 has not.
        temporary.write_bytes(page.encode("utf-8", "replace"))


def script_json(value: Any) -> Markup:
    """JSON in ASCII that cannot end the <script> around it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def overview(sections: Sequence[Section]) -> str:
    """E.g. "2 recordings, 530 neurons found, 512 labelled"."""
    count = f"{len(sections)} recording{'' if len(sections) == 1 else 's'}"
    total = {key: sum(count_neurons(s)[key] for s in sections) for key in ("found", "labelled")}
    labels = f", {total['labelled']} labelled" if any(map(is_labelled, sections)) else ""
    return f"{count}, {total['found']} neuron{'' if total['found'] == 1 else 's'} found{labels}"


def is_labelled(section: Section) -> bool:
    return "missed" in section.paths


def count_neurons(section: Section) -> dict[str, int]:
    """How many neurons are found, and how many labelled."""
    return {
        key: sum(neuron[COLUMNS.index(key)] is not None for neuron in section.neurons)
        for key in ("found", "labelled")
    }


def score_table(sections: Sequence[Section]) -> dict[str, list]:
    """The table of scores as text: heads, a row for each recording, mean and deviation of several."""
    scored = [s.row for s in sections if s.row is not None]
    measures = MEASURES if scored else ()
    labels = any(map(is_labelled, sections))
    heads = [("recording", ""), ("found", ""), *([("labelled", "")] if labels else ())]
    heads += [HEADS[key] for key in measures]
    heads += [
        ("median area", "of the neurons found, in pixels"),
        ("mean probability", "of the neurons found"),
    ]

    def cells(row: Mapping[str, float] | None) -> list[str]:
        return ["" if row is None else f"{row[key]:.3f}" for key in measures]

    rows = []
    for s in sections:
        count = count_neurons(s)
        of_found = [neuron for neuron in s.neurons if neuron[COLUMNS.index("found")] is not None]
        areas, means = ([n[COLUMNS.index(key)] for n in of_found] for key in ("area", "probability"))
        labelled = [str(count["labelled"]) if is_labelled(s) else ""] if labels else []
        typical = [f"{np.median(areas):.0f}", f"{np.mean(means):.2f}"] if of_found else ["", ""]
        rows.append(
            {
                "name": s.name,
                "note": s.note,
                "cells": [str(count["found"]), *labelled, *cells(s.row), *typical],
            }
        )
    summary = summarize(scored) if len(scored) > 1 else {}
    foot = [
        [name, f"{row['found']:.1f}", f"{row['true']:.1f}", *cells(row), "", ""]
        for name, row in summary.items()
    ]
    return {"heads": heads, "rows": rows, "foot": foot}


def scale_bar(section: Section) -> dict[str, float] | None:
    """Length of a recording's scale bar in µm and in per cent of the image's width; None without a scale."""
    if section.pixels_per_micron is None:
        return None
    width = section.shape[1]
    microns = round_length(BAR_SHARE * width / section.pixels_per_micron)
    return {"microns": microns, "share": 100 * microns * section.pixels_per_micron / width}
