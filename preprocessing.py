#!/usr/bin/env python3
"""Turn recordings into what the network learns from: one mean image each, and the neuron mask.

For every RECORDING this writes into OUTPUT_FOLDER
  X_NAME.npy         the mean over time, bright pixels clipped (float32, rows x columns)
  X_NAME.png         a picture of it, with the outlines of the labelled neurons
  valid_NAME.npy     1 where any frame has a pixel; only where some are missing
and if the recording is labelled
  y_NAME.npy         1 where any neuron is, 0 elsewhere
  regions_NAME.json  the neurons one by one, as [row, column] pixels
and info_NAME.json with the size of a pixel, if the recording says it, what ties these files together, and
which frames were chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurodetect import console

if TYPE_CHECKING:
    from neurodetect.averaging import Projection
    from neurodetect.recording import Recording


def main() -> None:
    args = console.preprocessing_options(__doc__)

    from neurodetect.averaging import describe_unusual
    from neurodetect.files import require_writable
    from neurodetect.prepared import require_name, write_prepared
    from neurodetect.projection import clip_bright, fill_missing
    from neurodetect.recording import chosen_frames, open_recording, refuse_recording
    from neurodetect.regions import require_distinct_datasets, rows_and_columns_exchanged
    from neurodetect.view.figures import draw_regions, require_display, save_figure, show_figure

    if args.show:
        require_display()
    refuse_recording(args.output_folder)
    recordings = [
        open_recording(
            path,
            labels=args.labels,
            pixels_per_micron=args.pixels_per_micron,
            **console.reading_options(args),
        )
        for path in args.recordings
    ]
    for recording in recordings:
        require_name(recording.name)
    require_distinct_datasets(recording.name for recording in recordings)
    require_writable(args.output_folder)

    for recording in recordings:
        chosen = chosen_frames(recording, args.frames)
        scale = recording.pixels_per_micron
        for note in recording.notes:
            console.say(f"{recording.name}: {note}")
        projection = project_recording(recording, chosen)
        for line in describe_unusual(projection, first=chosen.start + 1):
            console.warn(f"{recording.name}: {line}")
        image, valid = fill_missing(clip_bright(projection.image))
        if valid is not None:
            console.say(
                f"{recording.name}: {console.count((~valid).sum(), 'pixel')} in no frame, set to the median"
            )
        reading = {**console.reading_options(args), "frames": args.frames}
        write_prepared(
            args.output_folder, recording.name, image, recording.regions, scale, valid=valid, reading=reading
        )
        figure = draw_regions(image, recording.regions, title=recording.name, pixels_per_micron=scale)
        save_figure(f"{args.output_folder}/X_{recording.name}.png", figure)
        if args.show:
            show_figure(figure)
        rows, columns = recording.shape
        neurons = (
            "no labels" if recording.regions is None else console.count(len(recording.regions), "neuron")
        )
        if recording.regions and rows_and_columns_exchanged(image, recording.regions):
            neurons += ", which fit the image much better with rows and columns exchanged"
            console.warn(
                f"{recording.name}: the labels fit the image much better with rows and columns exchanged; "
                f"look at X_{recording.name}.png, and exchange them there, or in the frames with --transpose"
            )
        frames = console.count(len(chosen), "frame")
        console.say(f"{recording.name}: {frames} of {rows} x {columns} px, {neurons}")

    folder = args.output_folder
    labelled = sum(recording.regions is not None for recording in recordings)
    advice = (
        f"conv2d_crossvalidation.py {folder}" if labelled > 1 else f"conv2d_predict.py TRAIN_FOLDER {folder}"
    )
    console.say(f"Wrote {console.count(len(recordings), 'recording')} to {folder}. Next: python {advice}")


def project_recording(recording: Recording, frames: range) -> Projection:
    """The mean over some frames of a recording, with a progress bar."""
    from neurodetect.averaging import project
    from neurodetect.progress import progress_bar

    part = frames.start, frames.stop
    if recording.tiles(*part) is not None:
        return project(
            (), lambda: progress_bar(recording.tiles(*part), description=recording.name, unit="tile")
        )
    each = recording.frames(*part)
    return project(progress_bar(each, description=recording.name, total=len(frames), unit="frame"))


if __name__ == "__main__":
    console.run(main)
