#!/usr/bin/env python3
"""Turn recordings into what the network learns from: one mean image each, and the neuron mask.

For every RECORDING this writes into OUTPUT_FOLDER
  X_NAME.npy         the mean over time, bright pixels clipped (float32, rows x columns)
  X_NAME.png         a picture of it, with the outlines of the labelled neurons
  valid_NAME.npy     1 where any frame has a pixel; only where some are missing
and if the recording is labelled
  y_NAME.npy         1 where any neuron is, 0 elsewhere
  regions_NAME.json  the neurons one by one, as [row, column] pixels
and info_NAME.json with the size of a pixel, if the recording says it, and what ties these files together.
"""

from __future__ import annotations

from neurodetect import console


def main() -> None:
    args = console.preprocessing_options(__doc__)

    from neurodetect.files import require_writable
    from neurodetect.prepared import require_name, write_prepared
    from neurodetect.progress import progress_bar
    from neurodetect.projection import clip_bright, describe_unusual, fill_missing, project
    from neurodetect.recording import open_recording, refuse_recording
    from neurodetect.regions import require_distinct_datasets
    from neurodetect.view.figures import draw_regions, require_display, save_figure, show_figure

    if args.show:
        require_display()
    refuse_recording(args.output_folder)
    recordings = [open_recording(path) for path in args.recordings]
    for recording in recordings:
        require_name(recording.name)
    require_distinct_datasets(recording.name for recording in recordings)
    require_writable(args.output_folder)

    for recording in recordings:
        frames = progress_bar(recording, description=recording.name, total=len(recording), unit="frame")
        projection = project(frames)
        for line in describe_unusual(projection):
            console.warn(f"{recording.name}: {line}")
        image, valid = fill_missing(clip_bright(projection.image))
        write_prepared(
            args.output_folder,
            recording.name,
            image,
            recording.regions,
            recording.pixels_per_micron,
            valid=valid,
        )
        figure = draw_regions(
            image, recording.regions, title=recording.name, pixels_per_micron=recording.pixels_per_micron
        )
        save_figure(f"{args.output_folder}/X_{recording.name}.png", figure)
        if args.show:
            show_figure(figure)
        rows, columns = recording.shape
        neurons = (
            "no labels" if recording.regions is None else console.count(len(recording.regions), "neuron")
        )
        frames = console.count(len(recording), "frame")
        console.say(f"{recording.name}: {frames} of {rows} x {columns} px, {neurons}")

    folder = args.output_folder
    labelled = sum(recording.regions is not None for recording in recordings)
    advice = (
        f"conv2d_crossvalidation.py {folder}" if labelled > 1 else f"conv2d_predict.py TRAIN_FOLDER {folder}"
    )
    console.say(f"Wrote {console.count(len(recordings), 'recording')} to {folder}. Next: python {advice}")


if __name__ == "__main__":
    console.run(main)
