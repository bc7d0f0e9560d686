"""One page about a run, in one file: settings, scores, and every recording with its neurons to look up.

The page needs no server, no network and no library. `report.html` beside this module is its frame, with
the styles and the script; the words in double braces there are replaced by what is made here.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from neurodetect.figures import (
    FALSE_FOUND,
    MATCHED_FOUND,
    MATCHED_TRUE,
    MISSED_TRUE,
    OUTLINE,
    SOLID,
    draw_matches,
    draw_regions,
    grey_limits,
    outlines,
    round_length,
)
from neurodetect.files import write_whole
from neurodetect.projection import Prepared
from neurodetect.regions import mean_probability
from neurodetect.scoring import MEASURES, centers, evaluate, match_centers, overlaps, summarize

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
    name: str,
    image: np.ndarray,
    found: Sequence[np.ndarray],
    probability: np.ndarray,
    *,
    truth: Sequence[np.ndarray] | None = None,
    pairs: Sequence[tuple[int, int]] = (),
    row: dict[str, float] | None = None,
    note: str = "",
    pixels_per_micron: float | None = None,
) -> Section:
    """What the page needs of one recording; its arrays can be forgotten then.

    Parameters
    ----------
    name : str
        The recording's name.
    image : (H, W) array
        Shown in grey, see `figures.grey_limits`.
    found : sequence of (n, 2) int arrays
        Neurons found, as `[row, column]` pixels.
    probability : (H, W) array
        The probability map.
    truth : sequence of (n, 2) int arrays, optional
        Labelled neurons; without them no neuron is called matched, missed or false.
    pairs : sequence of (int, int)
        Index in `truth`, index in `found`: what `scoring.match_centers` returned.
    row : dict, optional
        What `scoring.evaluate` returned.
    note : str
        What the reader has to know of this recording, e.g. that it was trained on.
    pixels_per_micron : float, optional
        For areas in µm² and the scale bar.

    Returns
    -------
    Section
    """
    labelled = [] if truth is None else truth
    matched_true, matched_found = {t for t, _ in pairs}, {f for _, f in pairs}
    missed = [t for t in range(len(labelled)) if t not in matched_true]
    other = [f for f in range(len(found)) if f not in matched_found]
    if truth is None:
        regions = {"found": found}
    else:
        regions = {
            "matched-labelled": [truth[t] for t, _ in pairs],
            "matched-found": [found[f] for _, f in pairs],
            "missed": [truth[t] for t in missed],
            "false": [found[f] for f in other],
        }
    iou = overlaps(labelled, found)
    of_found, of_labelled = (measure(neurons, probability) for neurons in (found, labelled))
    # Numbers count from 1, as people do.
    neurons = [
        *(["matched", f + 1, t + 1, *of_found[f], round(float(iou[t, f]), 3)] for t, f in pairs),
        *(["found" if truth is None else "false", f + 1, None, *of_found[f], None] for f in other),
        *(["missed", None, t + 1, *of_labelled[t], None] for t in missed),
    ]
    return Section(
        name=name,
        shape=image.shape,
        picture=picture(image),
        paths={key: "\n".join(map(svg_path, group)) for key, group in regions.items()},
        neurons=neurons,
        row=row,
        note=note,
        pixels_per_micron=pixels_per_micron,
    )


def assess(
    recording: Prepared, found: Sequence[np.ndarray], probability: np.ndarray, note: str = ""
) -> tuple[dict[str, float] | None, Figure, Section]:
    """What can be said and shown of the neurons found in a recording, against its labels if it has any.

    Parameters
    ----------
    recording : Prepared
    found, probability, note
        See `section`.

    Returns
    -------
    row : dict or None
        What `scoring.evaluate` returned; None without labels.
    figure : matplotlib.figure.Figure
    section : Section
    """
    name, image, mask, truth, scale = recording
    title = f"{name}, {note}" if note else name
    if truth is None:
        figure = draw_regions(image, found, title=title, labels="found", pixels_per_micron=scale)
        return None, figure, section(name, image, found, probability, note=note, pixels_per_micron=scale)
    row = evaluate(probability, found, mask, truth, scale)
    pairs = match_centers(truth, found, row["threshold"])
    figure = draw_matches(image, truth, found, pairs, title=title, pixels_per_micron=scale)
    page = section(
        *(name, image, found, probability),
        truth=truth,
        pairs=pairs,
        row=row,
        note=note,
        pixels_per_micron=scale,
    )
    return row, figure, page


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
    parts = {
        "title": escape(title),
        "colours": colours(),
        "overview": escape(overview(sections)),
        "settings": describe(settings),
        "scores": score_table(sections),
        "figures": "\n".join(
            f'<figure><img src="{figure_picture(figure)}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, figure in (figures or {}).items()
        ),
        "recordings": "\n".join(recording(number, s) for number, s in enumerate(sections, start=1)),
        "data": script_json(
            {
                "columns": COLUMNS,
                "recordings": [
                    {"name": s.name, "pixels_per_micron": s.pixels_per_micron, "neurons": s.neurons}
                    for s in sections
                ],
            }
        ),
    }
    # In one pass: what is filled in may have double braces of its own.
    page = re.sub(r"\{\{(\w+)\}\}", lambda word: parts[word[1]], TEMPLATE.read_text(encoding="utf-8"))
    with write_whole(path) as temporary:
        # A file's name that is no proper text has half characters, which UTF-8 has not.
        temporary.write_bytes(page.encode("utf-8", "replace"))


def script_json(value: Any) -> str:
    """JSON in ASCII that cannot end the <script> around it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def colours() -> str:
    """Style rules of the outlines, from the constants of `figures`."""
    return "\n".join(
        f".{key} {{ --colour: {style['colors']}; "
        + (
            "--dash: none; --border: solid; }"
            if style["linestyles"] == [SOLID]
            else "--dash: 4 3; --border: dashed; }"
        )
        for key, (_, _, style) in OUTLINES.items()
    )


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


def describe(settings: Mapping[str, Any]) -> str:
    """Settings as a list of names and values."""
    items = "".join(
        f"<div><dt>{escape(str(key).replace('_', ' '))}</dt><dd>{show(value)}</dd></div>"
        for key, value in settings.items()
    )
    return f"<dl>{items}</dl>"


def show(value: Any) -> str:
    """The value of a setting for people."""
    if isinstance(value, Mapping):
        unfolded = " open" if len(value) <= UNFOLDED else ""
        return f"<details{unfolded}><summary>{len(value)} entries</summary>{describe(value)}</details>"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show, value)) or "none"
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(f"{value:.12g}" if isinstance(value, float) else str(value))


def score_table(sections: Sequence[Section]) -> str:
    """A row for each recording, with its scores where it has any, and their mean and deviation."""
    rows = [s.row for s in sections if s.row is not None]
    measures = MEASURES if rows else ()
    labels = any(map(is_labelled, sections))

    def cells(row: Mapping[str, float] | None) -> str:
        if row is None:
            return "<td></td>" * len(measures)
        return "".join(f"<td>{row[key]:.3f}</td>" for key in measures)

    head = "<th>recording</th><th>found</th>" + ("<th>labelled</th>" if labels else "")
    head += "".join('<th title="{1}">{0}</th>'.format(*map(escape, HEADS[key])) for key in measures)
    head += '<th title="of the neurons found, in pixels">median area</th>'
    head += '<th title="of the neurons found">mean probability</th>'
    body = ""
    for number, s in enumerate(sections, start=1):
        count = count_neurons(s)
        note = f' <span class="note">{escape(s.note)}</span>' if s.note else ""
        of_found = [neuron for neuron in s.neurons if neuron[COLUMNS.index("found")] is not None]
        body += f'<tr><td><a href="#recording-{number}">{escape(s.name)}</a>{note}</td>'
        body += f"<td>{count['found']}</td>"
        if labels:
            body += f"<td>{count['labelled'] if is_labelled(s) else ''}</td>"
        body += cells(s.row)
        for key, typical, digits in (("area", np.median, 0), ("probability", np.mean, 2)):
            values = [neuron[COLUMNS.index(key)] for neuron in of_found]
            body += f"<td>{typical(values):.{digits}f}</td>" if values else "<td></td>"
        body += "</tr>\n"
    foot = ""
    if len(rows) > 1:
        for name, row in summarize(rows).items():
            foot += f"<tr><td>{name}</td><td>{row['found']:.1f}</td><td>{row['true']:.1f}</td>{cells(row)}"
            foot += "<td></td><td></td></tr>\n"
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>\n<tfoot>{foot}</tfoot></table>"


def recording(number: int, section: Section) -> str:
    """The part of the page about one recording; its list of neurons is made by the script when opened."""
    height, width = section.shape
    counts = {key: len(path.splitlines()) for key, path in section.paths.items()}
    switches = "".join(
        f'<label class="{key}"><input type="checkbox" class="show-{key}" checked>'
        f'<i class="sample"></i>{OUTLINES[key][0]}: {counts[key]}</label>'
        for key in section.paths
    )
    lines = "".join(
        f'<path class="outline {key}" data-kind="{OUTLINES[key][1]}" d="{path}"/>'
        for key, path in section.paths.items()
    )
    scores = ""
    if section.row is not None:
        scores = ", " + ", ".join(
            f"{key} {section.row[key]:.3f}" for key in ("recall", "precision", "combined")
        )
    how = ""
    if section.row is not None:
        how = (
            f"<p>Matched: a labelled and a found neuron whose centres are less than "
            f"{section.row['threshold']:g} px apart.</p>"
        )
    bar = ""
    if section.pixels_per_micron is not None:
        microns = round_length(BAR_SHARE * width / section.pixels_per_micron)
        share = 100 * microns * section.pixels_per_micron / width
        bar = f'<div class="bar" style="--share: {share:.3f}" data-microns="{microns:g}">{microns:g} µm</div>'
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    counted = overview([section]).split(", ", 1)[1]
    return f"""<details class="recording" id="recording-{number}"{" open" if number == 1 else ""}>
<summary><h2>{escape(section.name)}</h2> <span>{counted}{scores}</span></summary>
{note}{how}
<div class="tools">{switches}<span class="zoom" hidden></span></div>
<div class="panes"><div class="stage" style="--width: {width}; --height: {height}">
<div class="view"><div class="frame">
<img src="{section.picture}" width="{width}" height="{height}" loading="lazy" alt="mean image">
<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{lines}</svg></div></div>
{bar}</div>
<div class="neurons"><noscript>The list of neurons needs JavaScript.</noscript></div></div>
</details>"""
