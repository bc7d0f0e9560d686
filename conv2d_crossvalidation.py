"""Tell how good the network is on recordings that it has not seen.

The recordings of TRAIN_FOLDER (what preprocessing.py wrote) are dealt into folds. For each fold a
network is trained on all the others, labels every pixel of the held-out recordings and finds their
neurons. At the end a table: wrong pixels, neurofinder's recall, precision, combined, inclusion and
exclusion, F1 at an intersection over union of 0.5, and the number of neurons, true and found. A curve
shows what other thresholds of the probability would have given, for the option --threshold.
"""

from __future__ import annotations

from neurodetect import console


def main() -> None:
    parser = console.Parser(__doc__, "python conv2d_crossvalidation.py train --folds 3 --iterations 3000")
    parser.add_argument("train_folder", metavar="TRAIN_FOLDER", help="holds X_NAME.npy and y_NAME.npy files")
    parser.add_argument(
        "--folds",
        type=console.number_in(int, 2),
        default=5,
        metavar="K",
        help="networks to train, at most one per recording (default: 5)",
    )
    parser.add_argument(
        "--output",
        default="crossvalidation.json",
        metavar="FILE",
        help="the scores and settings; beside it one picture per recording (default: crossvalidation.json)",
    )
    console.add_training_options(parser)
    console.add_detection_options(parser)
    console.add_resume_options(parser)
    args = parser.parse_args()

    from functools import partial
    from pathlib import Path

    from neurodetect.checkpoint import CHECKPOINT_BYTES
    from neurodetect.figures import draw_curve, draw_scores, draw_training, save_figure
    from neurodetect.files import require_writable, write_json
    from neurodetect.projection import digests, expected_area, neuron_area, read_labelled, scale
    from neurodetect.regions import find_regions
    from neurodetect.report import assess, write_report
    from neurodetect.scoring import mean_curve, summarize, table, threshold_curve
    from neurodetect.sliding_window import probability_map
    from neurodetect.training import choose_device, choose_precision, split_folds, train_network

    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    output = Path(args.output)
    require_writable(output.parent, 2 * CHECKPOINT_BYTES)
    recordings, unlabelled = read_labelled(args.train_folder)
    for name in unlabelled:
        console.warn(f"{name} has no labels (no y_{name}.npy) and is left out")
    folds = split_folds(len(recordings), args.folds, args.seed)
    settings = console.settings(args, device=device.type, precision=precision, folds=len(folds))
    inputs = digests(args.train_folder, recordings)
    console.say(
        f"{len(recordings)} labelled recordings in {len(folds)} folds, {args.iterations} iterations each, "
        f"on {device.type} in {precision}"
    )

    rows, histories, curves, sections = {}, [], [], {}
    with console.unfinished_run(args, console.identity(settings, training=inputs)) as unfinished:
        for number, fold in enumerate(folds, start=1):
            label = f"fold {number} of {len(folds)}"
            held_out = [recordings[index] for index in fold]
            training = [recording for index, recording in enumerate(recordings) if index not in fold]
            area = neuron_area(training)
            network, history = None, unfinished.noted(label)
            if history is None:  # otherwise the maps of this fold are there already
                network, history = train_network(
                    training,
                    args.iterations,
                    args.batch_size,
                    seed=args.seed,
                    device=device,
                    precision=precision,
                    recipe=args.recipe,
                    background=args.background,
                    held_out=held_out,
                    checkpoint=unfinished.checkpoint(label),
                    description=f"{label}, training",
                )
            histories.append({"held_out": [recording.name for recording in held_out], "history": history})
            for recording in held_out:
                probability = unfinished.once(
                    recording.name,
                    probability_map,
                    network,
                    scale(recording.image, args.background),
                    args.stride,
                    precision=precision,
                    description=f"{label}, {recording.name}",
                )
                find = partial(
                    find_regions,
                    probability,
                    args.regions,
                    smallest_area=args.smallest_area,
                    typical_area=expected_area(area, recording.pixels_per_micron),
                )
                found = find(threshold=args.threshold)
                curves.append(
                    threshold_curve(
                        find,
                        recording.regions,
                        recording.pixels_per_micron,
                        description=f"{label}, {recording.name}, thresholds",
                    )
                )
                rows[recording.name], figure, sections[recording.name] = assess(
                    recording, found, probability, note=f"held out in fold {number}"
                )
                save_figure(output.with_name(f"{output.stem}_{recording.name}.png"), figure)
            unfinished.note(label, history)

        names = [recording.name for recording in recordings]
        rows = {name: rows[name] for name in names}
        console.say("\n" + table(list(rows.values()), names), level=0)
        curve = mean_curve(curves)
        figures = {
            "Loss and error on the held-out recordings while the networks were trained": draw_training(
                histories
            ),
            "Scores of each recording, by the network that had not seen it": draw_scores(
                list(rows.values()), names
            ),
            "Mean scores over the recordings, by the probability above which a pixel is neuron": draw_curve(
                curve, args.threshold
            ),
        }
        for figure, kind in zip(figures.values(), ("training", "scores", "thresholds"), strict=True):
            save_figure(output.with_name(f"{output.stem}.{kind}.png"), figure)
        write_json(
            output,
            {
                "settings": settings,
                "inputs": inputs,
                "recordings": [{"name": name, **row} for name, row in rows.items()],
                **summarize(list(rows.values())),
                "thresholds": curve,
                "folds": histories,
            },
        )
        report = output.with_name("report.html")
        write_report(
            report,
            title="How good is it on recordings that it has not seen",
            settings=settings,
            sections=[sections[name] for name in names],
            figures=figures,
        )
    console.say(
        f"\nWrote {output}; beside it pictures of each recording, of the training, scores and thresholds, "
        f"and report.html.\nNext: open {report} in a browser; then "
        f"python conv2d_predict.py {args.train_folder} TEST_FOLDER"
    )


if __name__ == "__main__":
    console.run(main)
