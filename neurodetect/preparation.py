"""A recording to what is prepared of it, and what its user is told on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from neurodetect import console, processes
from neurodetect.averaging import Projection, describe_unusual, project
from neurodetect.files import UserError, listed, natural_key, require_writable
from neurodetect.prepared import (
    Prepared,
    digests,
    open_frames,
    prepared_names,
    read_prepared,
    require_name,
    require_same,
    write_prepared,
)
from neurodetect.progress import progress_bar
from neurodetect.projection import clip_bright, fill_missing
from neurodetect.recording import Recording, chosen_frames, is_prepared, open_recording
from neurodetect.regions import offset_of_cells, require_distinct_datasets, rows_and_columns_exchanged
from neurodetect.view.figures import draw_regions, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def open_recordings(
    paths: Sequence[str],
    reading: Mapping[str, Any],
    pixels_per_micron: float | None = None,
    labels: str | None = None,
    move_labels: tuple[int, int] | None = None,
) -> list[Recording]:
    """Open recordings that shall be prepared together.

    Parameters
    ----------
    paths : sequence of str
    reading : mapping
        What was chosen of each, see `prepared.READING`.
    pixels_per_micron : float, optional
        Their scale; and `labels`, their file of labels, and `move_labels`, see `open_recording`.

    Raises
    ------
    UserError
        As of `open_recording`; or a name is no name for files, or two are one dataset in a submission.
    """
    options = {key: value for key, value in reading.items() if key != "frames"}
    options |= {"labels": labels, "move_labels": move_labels, "pixels_per_micron": pixels_per_micron}
    recordings = [open_recording(path, **options) for path in paths]
    for recording in recordings:
        require_name(recording.name)
    require_distinct_datasets(recording.name for recording in recordings)
    return recordings


def prepare(
    recording: Recording, folder: str | Path, reading: Mapping[str, Any], replace: bool = True
) -> Figure:
    """Write the mean image of a recording, its picture and labels into a folder; returns the picture.

    Parameters
    ----------
    recording : Recording
    folder : str or Path
        Made if it is missing.
    reading : mapping
        What was chosen of the recording, see `prepared.READING`; of its frames "frames" are taken.
    replace : bool
        Whether what was prepared of a recording of this name may be replaced by something else.

    Raises
    ------
    UserError
        As of `Recording.frames`, `chosen_frames` and `write_prepared`; or something else would be replaced.
    """
    name, scale, regions = recording.name, recording.pixels_per_micron, recording.regions
    chosen = chosen_frames(recording, reading["frames"])
    for note in recording.notes:
        console.say(f"{name}: {note}")
    projection = project_recording(recording, chosen)
    for line in describe_unusual(projection, first=chosen.start + 1):
        console.warn(f"{name}: {line}")
    image, valid = fill_missing(clip_bright(projection.image))
    if valid is not None:
        console.say(f"{name}: {console.count((~valid).sum(), 'pixel')} in no frame, set to the median")
    if not replace:
        require_same(folder, Prepared(name, image, None, regions, scale, valid))
    write_prepared(folder, name, image, regions, scale, valid=valid, names=recording.names, reading=reading)
    figure = draw_regions(image, regions, title=name, pixels_per_micron=scale)
    save_figure(Path(folder, f"X_{name}.png"), figure)
    neurons = "no labels" if regions is None else console.count(len(regions), "neuron")
    if regions and rows_and_columns_exchanged(image, regions):
        neurons += ", which fit the image much better with rows and columns exchanged"
        console.warn(
            f"{name}: the labels fit the image much better with rows and columns exchanged; "
            f"look at X_{name}.png, and exchange them there, or in the frames with --transpose"
        )
    elif regions and (offset := offset_of_cells(image, regions)) != (0, 0):
        down, right = offset
        console.warn(
            f"{name}: the cells lie {down} rows (down) and {right} columns (right) from their labels, see "
            f"X_{name}.png; training allows for it, scores do not: preprocessing.py --move-labels {down} "
            f"{right} mends the labels"
        )
    rows, columns = recording.shape
    console.say(f"{name}: {console.count(len(chosen), 'frame')} of {rows} x {columns} px, {neurons}")
    return figure


def project_recording(recording: Recording, frames: range) -> Projection:
    """The mean over some frames of a recording, with a progress bar."""
    part = frames.start, frames.stop
    if recording.tiles(*part) is not None:
        return project(
            (), lambda: progress_bar(recording.tiles(*part), description=recording.name, unit="tile")
        )
    each = recording.frames(*part)
    return project(progress_bar(each, description=recording.name, total=len(frames), unit="frame"))


class Inputs(NamedTuple):
    """Recordings to find neurons in.

    `prepared` are the recordings, in natural order of their names; `digests` the SHA-256 of their files, see
    `prepared.digests`; `frames` by name those whose frames are at hand, as `prepared.open_frames` gives them.
    """

    prepared: list[Prepared]
    digests: dict[str, str]
    frames: dict[str, tuple[Recording, range]]


def read_or_prepare(
    paths: Sequence[str],
    folder: str | Path,
    reading: Mapping[str, Any],
    pixels_per_micron: float | None = None,
    movies: str | None = None,
) -> Inputs:
    """Recordings that were prepared before, and others that are prepared now.

    Parameters
    ----------
    paths : sequence of str
        Recordings, and at most one folder that `preprocessing.py` wrote into.
    folder : str or Path
        Into which recordings are prepared; made if it is missing.
    reading : mapping
        See `prepare`; for all recordings.
    pixels_per_micron : float, optional
        Their scale, see `open_recording`.
    movies : str, optional
        Where the frames of those are that were prepared before.

    Raises
    ------
    UserError
        A path is neither, two recordings have the same name, or there is nothing to which an option applies;
        and as of `prepare` and `prepared.open_frames`.
    """
    folders = [path for path in paths if is_prepared(path)]
    if len(folders) > 1:
        raise UserError(
            f"{listed(folders)}: are folders of prepared recordings; give one TEST_FOLDER, and with --model, "
            "with which nothing is trained, no TRAIN_FOLDER"
        )
    recordings = open_recordings([path for path in paths if path not in folders], reading, pixels_per_micron)
    given = {**reading, "pixels-per-micron": pixels_per_micron}
    chosen = [key for key, value in given.items() if value is not None and value is not False]
    useless = [f"--{key}" for key in chosen if not recordings]
    useless += ["--recordings"] if movies and not folders else []
    if useless:
        kind = "prepared before" if folders else "not prepared before"
        raise UserError(f"{listed(paths)}: was {kind}, so that {useless[0]} means nothing; leave it out")
    before = [read_prepared(folders[0], name) for name in prepared_names(folders[0])] if folders else []
    for recording in recordings:
        if Path(folder).resolve() in (recording.path.resolve() / part for part in ("", "images", "regions")):
            raise UserError(
                f"{folder}: is the recording itself, into which nothing is written; choose another --output"
            )
    require_distinct_datasets([each.name for each in before] + [each.name for each in recordings])
    frames = {each.name: open_frames(movies, folders[0], each) for each in before} if movies else {}
    frames |= {each.name: (each, chosen_frames(each, reading["frames"])) for each in recordings}
    if recordings:
        require_writable(folder)
    if processes.FIRST:
        for recording in recordings:
            prepare(recording, folder, reading, replace=False)
    processes.wait()
    now = [read_prepared(folder, recording.name) for recording in recordings]
    hashes = {**(digests(folders[0], before) if folders else {}), **digests(folder, now)}
    return Inputs(sorted([*before, *now], key=lambda each: natural_key(each.name)), hashes, frames)
