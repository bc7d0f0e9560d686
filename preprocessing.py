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

from neurodetect import console


def main() -> None:
    args = console.preprocessing_options(__doc__)

    from neurodetect.files import require_writable
    from neurodetect.preparation import open_recordings, prepare
    from neurodetect.recording import refuse_recording
    from neurodetect.view.figures import require_display, show_figure

    if args.show:
        require_display()
    refuse_recording(args.output_folder)
    reading = console.chosen_of_recording(args)
    recordings = open_recordings(
        args.recordings, reading, args.pixels_per_micron, args.labels, args.move_labels
    )
    require_writable(args.output_folder)

    for recording in recordings:
        figure = prepare(recording, args.output_folder, reading)
        if args.show:
            show_figure(figure)

    folder = args.output_folder
    labelled = sum(recording.regions is not None for recording in recordings)
    advice = f"conv2d_predict.py TRAIN_FOLDER {folder}"
    if labelled == 1:  # cross-validation needs two
        advice = f"conv2d_predict.py {folder} TEST_FOLDER, or {advice}"
    elif labelled:
        advice = f"conv2d_crossvalidation.py {folder}"
    console.say(f"Wrote {console.count(len(recordings), 'recording')} to {folder}. Next: python {advice}")


if __name__ == "__main__":
    console.run(main)
