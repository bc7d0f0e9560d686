#!/usr/bin/env python3
"""Tell how good the network is on recordings that it has not seen.

The recordings of TRAIN_FOLDER (what preprocessing.py wrote) are dealt into folds. For each fold a
network is trained on all the others, labels every pixel of the held-out recordings and finds their
neurons. With --groups all recordings of one animal, field or laboratory are held out together: so it
is told what the network is worth on the next one. At the end a table: wrong pixels, neurofinder's
recall, precision, combined, inclusion and exclusion, F1 at an intersection over union of 0.5, and the
number of neurons, true and found. A curve shows what other thresholds of the probability would have
given, for the option --threshold.

Started by torchrun, folds are dealt to the processes, with the same result. More processes than folds
share the windows of the held-out recordings, and batches where --batch-size is 200 or more for each: with
fewer one of them trains alone. Processes on a CPU have OMP_NUM_THREADS threads each, which the result depends
on in its last digits.
"""

from __future__ import annotations

from neurodetect import console

CAPTIONS = {
    "training": "Loss and error on the held-out recordings while the networks were trained",
    "scores": "Scores of each recording, by the network that had not seen it",
    "thresholds": "Mean scores over the recordings, by the probability above which a pixel is neuron",
}


def main() -> None:
    args = console.crossvalidation_options(__doc__)

    from functools import partial
    from pathlib import Path

    from neurodetect import processes
    from neurodetect.detection import (
        assess,
        curve_of_map,
        detect,
        neuron_area,
        predict_map,
        split_folds,
        train_network,
    )
    from neurodetect.files import digest, require_writable, write_json, write_together
    from neurodetect.groups import fine_tune, kin, learn_thresholds, settle
    from neurodetect.prepared import digests, group_of, held_out_together, read_groups, read_labelled
    from neurodetect.resume import CHECKPOINT_BYTES
    from neurodetect.scoring import (
        better_threshold,
        group_means,
        mean_curve,
        summarize,
        table,
    )
    from neurodetect.view.figures import (
        draw_curve,
        draw_found,
        draw_scores,
        draw_training,
        figure_bytes,
        save_figure,
    )
    from neurodetect.view.report import section, write_report
    from neurodetect.weights import STARTED_FROM, load_network, require_unseen

    start, before = load_network(args.start_from) if args.start_from else (None, None)
    training, finding = console.read_settings(args, before)
    at_once = args.folds if args.keep_checkpoint else min(args.folds, processes.SIZE)
    require_writable(Path(args.output).parent, (at_once + 1) * CHECKPOINT_BYTES[training.recipe])
    recordings = read_labelled(args.train_folder)
    names = [recording.name for recording in recordings]
    groups = read_groups(args.groups, names) if args.groups else None
    grouped = [groups[name] for name in names] if groups else None
    inputs = digests(args.train_folder, recordings)
    images = {name: inputs[f"X_{name}.npy"] for name in names}
    folds = split_folds(len(recordings), args.folds, args.seed, held_out_together(images, groups))
    settings = console.log_settings(
        training, finding, folds=len(folds), **({"groups": groups} if groups else {})
    )
    if before is not None:
        require_unseen(args.start_from, before, images)
    weights = {"start": {Path(args.start_from).name: digest(args.start_from)}} if args.start_from else {}
    console.say(
        f"{len(recordings)} labelled recordings in {len(folds)} folds, {training.iterations} iterations "
        f"each, on {training.device} in {training.precision}"
    )

    rows, sections, histories, curves, used = {}, {}, [], [], set()
    with console.unfinished_run(args, settings, training=inputs, **weights) as unfinished:
        team = processes.split(len(folds))

        def examine(number):
            label = f"fold {number} of {len(folds)}"
            held_out = [recordings[index] for index in folds[number - 1]]
            others = [r for index, r in enumerate(recordings) if index not in folds[number - 1]]
            network, learned = None, team.word(unfinished.noted(label))
            if learned is None:  # otherwise the maps of this fold are there already
                network, history = train_network(
                    others,
                    training,
                    start=start,
                    held_out=held_out,
                    checkpoint=unfinished.checkpoint(label),
                    description=f"{label}, training",
                    team=team,
                )
                fine_tune(
                    *(network, others, kin([recording.name for recording in held_out], others), training),
                    checkpoints=unfinished.checkpoint,
                    description=f"{label}, fine-tuning",
                    team=team,
                )
                thresholds = learn_thresholds(
                    partial(predict_map, network),
                    others,
                    finding,
                    description=f"{label}, thresholds",
                    team=team,
                )
                tuned = list(network.own)
                learned = {"history": history, "thresholds": thresholds, "fine_tuned_for": tuned}
            typical = neuron_area(others)
            results = {}
            for recording in held_out:
                description = f"{label}, {recording.name}"
                own = settle(finding, recording.name, learned["thresholds"])
                note = f"held out in fold {number}, threshold {own.threshold:g}"
                if group := group_of(recording.name, learned["fine_tuned_for"]):
                    note += f", fine-tuned for {group}"
                found = detect(
                    *(network, recording, own, typical),
                    once=unfinished.once,
                    description=description,
                    team=team,
                )
                row, pairs = assess(recording, found)
                curve = curve_of_map(
                    *(recording, found.probability, finding, typical),
                    description=f"{description}, thresholds",
                )
                picture = figure_bytes(draw_found(recording, found, pairs, note))
                part = section(recording, found, row, pairs, note)
                results[recording.name] = row, curve, own.threshold, picture, part
            if network is not None and team.leads:
                unfinished.note(label, learned)
            return learned, results

        for _, (learned, results) in processes.share(range(1, len(folds) + 1), examine, team):
            histories.append({"held_out": list(results), **learned})
            for name, (row, curve, threshold, picture, part) in results.items():
                write_together({console.beside(args.output, f"_{name}.png"): picture})
                rows[name], sections[name] = row, part
                curves.append(curve)
                used.add(threshold)
        if not processes.FIRST:
            return  # the first one has it all now, and writes it

        rows = {name: rows[name] for name in names}  # from folds to name order
        curve = mean_curve(curves)
        summary = summarize(list(rows.values()))
        better = better_threshold(curve, summary["mean"])
        console.say("\n" + table(list(rows.values()), names, grouped), level=0)
        figures = {
            "training": draw_training(histories),
            "scores": draw_scores(list(rows.values()), list(rows)),
            "thresholds": draw_curve(curve, sorted(used)),
        }
        for kind, figure in figures.items():
            save_figure(console.beside(args.output, f".{kind}.png"), figure)
        result = {
            "train_folder": args.train_folder,
            "settings": settings,
            "inputs": inputs,
            **({STARTED_FROM: before} if before else {}),
            "recordings": [{"name": name, **row} for name, row in rows.items()],
            **summary,
            **({"group_means": group_means(list(rows.values()), grouped)} if grouped else {}),
            "thresholds": curve,
            "folds": histories,
        }
        write_json(args.output, result)
        report = console.beside(args.output, ".report.html")
        write_report(
            report,
            title="How good is it on recordings that it has not seen",
            settings=settings,
            sections=[sections[name] for name in rows],
            figures={CAPTIONS[kind]: figure for kind, figure in figures.items()},
        )
    option = ""
    if better:
        option = f" --threshold {better['probability']:g}"
        console.say(
            f"\nWith{option} these recordings would have a combined of {better['combined']:.3f} instead of "
            f"{summary['mean']['combined']:.3f}, and an F1 of {better['f1_iou50']:.3f} instead of "
            f"{summary['mean']['f1_iou50']:.3f}"
        )
    console.say(
        f"\nWrote {args.output}; beside it pictures of each recording, of the training, scores and "
        f"thresholds, and {report.name}.\nNext: open {report} in a browser; then "
        f"python conv2d_predict.py {args.train_folder} TEST_FOLDER{option}"
    )


if __name__ == "__main__":
    console.run(main)
