"""Turn recordings into what the network learns from: one mean image each, and the neuron mask.

For every RECORDING this writes into OUTPUT_FOLDER
  X_NAME.npy         the mean over time, bright pixels clipped (float32, rows x columns)
  X_NAME.png         a picture of it, with the outlines of the labelled neurons
and if the recording is labelled
  y_NAME.npy         1 where any neuron is, 0 elsewhere
  regions_NAME.json  the neurons one by one, as [row, column] pixels
and info_NAME.json if the recording says how large a pixel is.
"""

from __future__ import annotations

from neurodetect import console


def main() -> None:
    parser = console.Parser(__doc__, "python preprocessing.py neurofinder.00.00 neurofinder.01.00 train")
    parser.add_argument(
        "recordings",
        nargs="+",
        metavar="RECORDING",
        help=console.RECORDING_HELP,
    )
    parser.add_argument("output_folder", metavar="OUTPUT_FOLDER", help="made if it is missing")
    parser.add_argument("--show", action="store_true", help="also open a window with each picture")
    args = parser.parse_args()

    from neurodetect.figures import draw_regions, require_display, save_figure, show_figure
    from neurodetect.files import UserError, require_writable
    from neurodetect.progress import progress_bar
    from neurodetect.projection import clip_bright, mean_projection, require_name, write_prepared
    from neurodetect.recording import open_recording

    if args.show:
        require_display()
    recordings = [open_recording(path) for path in args.recordings]
    names = [recording.name for recording in recordings]
    for name in names:
        require_name(name)
        if names.count(name) > 1:
            raise UserError(f"{name}: two recordings have this name, one would replace the other; rename one")
    require_writable(args.output_folder)

    for recording in recordings:
        frames = progress_bar(recording, description=recording.name, total=len(recording), unit="frame")
        image = clip_bright(mean_projection(frames))
        write_prepared(
            args.output_folder, recording.name, image, recording.regions, recording.pixels_per_micron
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
