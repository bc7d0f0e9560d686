"""Find the neurons of recordings: train on all of TRAIN_FOLDER, write submission.json for TEST_FOLDER.

Both folders hold what preprocessing.py wrote. With --model the weights of an earlier run are used
instead of training, and TEST_FOLDER alone may be given. Where a recording of TEST_FOLDER is
labelled, its scores are printed too.
"""

from __future__ import annotations

from neurodetect import console


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
        help="the neurons found; beside it one picture per recording (default: submission.json)",
    )
    parser.add_argument(
        "--save-model",
        default="model.pt",
        metavar="FILE",
        help="where the trained weights go, 325 MB (default: model.pt)",
    )
    parser.add_argument("--model", metavar="FILE", help="use these weights of an earlier run, do not train")
    console.add_training_options(parser)
    console.add_detection_options(parser)
    console.add_resume_options(parser)
    args = parser.parse_args()
    if args.train_folder is None and args.model is None:
        parser.error("give TRAIN_FOLDER and TEST_FOLDER, or TEST_FOLDER and --model FILE")

    from pathlib import Path

    from neurodetect.checkpoint import CHECKPOINT_BYTES, UnfinishedRun
    from neurodetect.figures import draw_matches, draw_regions, save_figure
    from neurodetect.files import digest, require_writable, write_json
    from neurodetect.projection import digests, read_folder, read_labelled, standardize
    from neurodetect.regions import find_regions, write_submission
    from neurodetect.scoring import evaluate, match_centers, table
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
        inputs["model"] = {Path(args.model).name: digest(args.model)}
        console.say(f"Weights of {args.model}, on {device.type} in {precision}")
    else:
        require_writable(output.parent, 2 * CHECKPOINT_BYTES)
        require_writable(Path(args.save_model).parent, CHECKPOINT_BYTES // 3)
        training, unlabelled = read_labelled(args.train_folder)
        for name in unlabelled:
            console.warn(f"{name} has no labels (no y_{name}.npy) and is not trained on")
        inputs["training"] = digests(args.train_folder, training)

    found, rows = {}, {}
    with UnfinishedRun(
        output.with_suffix(".unfinished"),
        console.identity(settings, **inputs),
        resume=args.resume,
        seconds=60 * args.checkpoint_every,
        keep=args.keep_checkpoint,
    ) as unfinished:
        if args.model is None:
            console.say(
                f"Training on {len(training)} recordings, {args.iterations} iterations, "
                f"on {device.type} in {precision}"
            )
            network, history = train_network(
                training,
                args.iterations,
                args.batch_size,
                seed=args.seed,
                device=device,
                precision=precision,
                checkpoint=unfinished.checkpoint("training"),
                description="training",
            )
            trained_on = {
                **settings,
                "recordings": [recording.name for recording in training],
                "inputs": inputs["training"],
                "loss": history[-1]["loss"],
            }
            save_network(args.save_model, network, trained_on)
            console.say(f"Wrote {args.save_model}")

        for recording in recordings:
            probability = unfinished.once(
                recording.name,
                probability_map,
                network,
                standardize(recording.image),
                args.stride,
                precision=precision,
                description=recording.name,
            )
            regions = found[recording.name] = find_regions(probability, args.regions)
            look = {"title": recording.name, "pixels_per_micron": recording.pixels_per_micron}
            if recording.mask is not None:
                row = rows[recording.name] = evaluate(
                    probability, regions, recording.mask, recording.regions, recording.pixels_per_micron
                )
                pairs = match_centers(recording.regions, regions, row["threshold"])
                figure = draw_matches(recording.image, recording.regions, regions, pairs, **look)
            else:
                figure = draw_regions(recording.image, regions, labels="found", **look)
            save_figure(output.with_name(f"{output.stem}_{recording.name}.png"), figure)
            console.say(f"{recording.name}: {len(regions)} neurons")
        write_submission(output, found)
        log = output.with_suffix(".log.json")
        write_json(log, {"settings": settings, "inputs": inputs, "trained on": trained_on, "scores": rows})

    if rows:
        console.say("\n" + table(list(rows.values()), list(rows)) + "\n", level=0)
        for name in sorted(rows.keys() & set(trained_on.get("recordings", []))):
            console.warn(f"{name} was trained on: its score says nothing about new recordings")
    console.say(f"Wrote {output}, {log} and a picture of each recording beside it.")


if __name__ == "__main__":
    console.run(main)
