"""Find the neurons of recordings: train on all of TRAIN_FOLDER, write submission.json for TEST_FOLDER.

Both folders hold what preprocessing.py wrote. With --model the weights of an earlier run are used
instead of training, and TEST_FOLDER alone may be given. Where a recording of TEST_FOLDER is
labelled, its scores are printed too.
"""

from __future__ import annotations

from neurodetect import console
from neurodetect.exports import FORMATS


def main() -> None:
    parser = console.Parser(
        __doc__,
        "python conv2d_predict.py train test --save-model weights.pt\n"
        "  python conv2d_predict.py test --model weights.pt",
    )
    parser.add_argument(
        "train_folder", nargs="?", metavar="TRAIN_FOLDER", help="holds X_NAME.npy and y_NAME.npy files"
    )
    parser.add_argument("test_folder", metavar="TEST_FOLDER", help="holds X_NAME.npy files")
    parser.add_argument(
        "--output",
        default="submission.json",
        metavar="FILE",
        help="the neurons found; beside it go report.html, to be opened in a browser, a picture of each "
        "recording, and a log of what the result was made from (default: submission.json)",
    )
    parser.add_argument(
        "--save-model",
        default="model.pt",
        metavar="FILE",
        help="where the trained weights go, 325 MB (default: model.pt)",
    )
    parser.add_argument(
        "--export",
        type=console.choices_in(FORMATS),
        default=[],
        metavar="FORMAT[,FORMAT]",
        help="beside the submission write the neurons for other programs too: imagej (a zip of ROIs for "
        "Fiji), labels (a label image for napari, Cellpose, QuPath), suite2p (a folder for its GUI, with "
        "zeros for traces, which a mean image has not), csv (a table)",
    )
    parser.add_argument("--model", metavar="FILE", help="use these weights of an earlier run, do not train")
    console.add_training_options(parser)
    console.add_detection_options(parser)
    console.add_resume_options(parser)
    args = parser.parse_args()
    if args.train_folder is None and args.model is None:
        parser.error("give TRAIN_FOLDER and TEST_FOLDER, or TEST_FOLDER and --model FILE")

    from pathlib import Path

    from neurodetect.checkpoint import CHECKPOINT_BYTES
    from neurodetect.exports import export
    from neurodetect.figures import save_figure
    from neurodetect.files import digest, require_writable, write_json
    from neurodetect.projection import digests, expected_area, neuron_area, read_folder, read_labelled, scale
    from neurodetect.regions import find_regions, mean_probability, write_submission
    from neurodetect.report import assess, write_report
    from neurodetect.scoring import table
    from neurodetect.sliding_window import probability_map
    from neurodetect.training import (
        choose_device,
        choose_precision,
        load_network,
        save_network,
        train_network,
    )

    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    settings = console.settings(args, device=device.type, precision=precision)
    output = Path(args.output)
    recordings = read_folder(args.test_folder)
    inputs = {"test": digests(args.test_folder, recordings)}
    if args.model is not None:
        require_writable(output.parent)
        network, trained_on = load_network(args.model)
        network.to(device)
        settings["background"] = trained_on.get("background", "keep")
        inputs["model"] = {Path(args.model).name: digest(args.model)}
        console.say(f"Weights of {args.model}, on {device.type} in {precision}")
    else:
        require_writable(output.parent, 2 * CHECKPOINT_BYTES)
        require_writable(Path(args.save_model).parent, CHECKPOINT_BYTES // 3)
        training, unlabelled = read_labelled(args.train_folder)
        for name in unlabelled:
            console.warn(f"{name} has no labels (no y_{name}.npy) and is not trained on")
        inputs["training"] = digests(args.train_folder, training)

    found, sureness, rows, maps, sections = {}, {}, {}, [], []
    with console.unfinished_run(args, console.identity(settings, **inputs)) as unfinished:
        if args.model is None:
            console.say(
                f"Training on {console.count(len(training), 'recording')}, {args.iterations} iterations, "
                f"on {device.type} in {precision}"
            )
            network, history = train_network(
                training,
                args.iterations,
                args.batch_size,
                seed=args.seed,
                device=device,
                precision=precision,
                recipe=args.recipe,
                background=args.background,
                checkpoint=unfinished.checkpoint("training"),
                description="training",
            )
            trained_on = {
                **settings,
                "recordings": [recording.name for recording in training],
                "inputs": inputs["training"],
                "neuron_area": neuron_area(training),
                "loss": history[-1]["loss"],
            }
            save_network(args.save_model, network, trained_on)
            console.say(f"Wrote {args.save_model}")

        for recording in recordings:
            probability = unfinished.once(
                recording.name,
                probability_map,
                network,
                scale(recording.image, settings["background"]),
                args.stride,
                precision=precision,
                description=recording.name,
            )
            maps.append(probability)
            found[recording.name] = regions = find_regions(
                probability,
                args.regions,
                smallest_area=args.smallest_area,
                threshold=args.threshold,
                typical_area=expected_area(trained_on.get("neuron_area", {}), recording.pixels_per_micron),
            )
            sureness[recording.name] = mean_probability(probability, regions)
            seen = recording.name in trained_on.get("recordings", [])
            note = "was trained on, which says nothing about new recordings" if seen else ""
            row, figure, page = assess(recording, regions, probability, note)
            if row is not None:
                rows[recording.name] = row
            sections.append(page)
            save_figure(output.with_name(f"{output.stem}_{recording.name}.png"), figure)
            console.say(f"{recording.name}: {console.count(len(regions), 'neuron')}")
        write_submission(output, found, sureness)
        for recording, probability in zip(recordings, maps, strict=True):
            stem = output.with_name(f"{output.stem}_{recording.name}")
            for form in args.export:
                regions = found[recording.name]
                export(form, stem, regions, probability, recording.image, recording.pixels_per_micron)
        log = {"settings": settings, "inputs": inputs, "trained on": trained_on, "scores": rows}
        write_json(output.with_suffix(".log.json"), log)
        report = output.with_name("report.html")
        write_report(report, title="Neurons found", settings=settings, sections=sections)

    if rows:
        console.say("\n" + table(list(rows.values()), list(rows)) + "\n", level=0)
        for name in rows:
            if name in trained_on.get("recordings", []):
                console.warn(f"{name} was trained on: its score says nothing about new recordings")
    console.say(
        f"Wrote {output}; beside it {output.stem}.log.json with what it was made from and with, a picture of "
        f"each recording, and report.html.\nNext: open {report} in a browser, or play the movie with "
        f"what was found: python play_animation.py RECORDING --submission {output}"
    )


if __name__ == "__main__":
    console.run(main)
