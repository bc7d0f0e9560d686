#!/usr/bin/env python3
"""Find the neurons of recordings: train on all of TRAIN_FOLDER, write submission.json for TEST_FOLDER.

Both folders hold what preprocessing.py wrote. With --model the weights of an earlier run are used
instead of training, and TEST_FOLDER is given alone. In the place of TEST_FOLDER recordings may be given
that were not prepared. Where a recording is labelled, its scores are printed too.

Recordings whose names begin alike, as mouse3_monday and mouse3_friday do, are taken for one animal's or
laboratory's: what is marked there, and how faint a cell, is learned for new ones whose names begin so too.

Started by torchrun, recordings are dealt to the processes, with the same result; of fewer recordings
than processes the windows are. A training is shared from 200 windows of --batch-size a process on; with
fewer the first process trains alone. Processes on a CPU have OMP_NUM_THREADS threads each, on which the last
digits depend.
"""

from __future__ import annotations

from neurodetect import console


def main() -> None:
    args = console.prediction_options(__doc__)

    from functools import partial
    from pathlib import Path

    from neurodetect import processes
    from neurodetect.detection import assess, detect, neuron_area, predict_map, trace, train_network
    from neurodetect.files import digest, listed, require_writable, write_json, write_together
    from neurodetect.formats.exports import WITH_TRACES, export
    from neurodetect.groups import alike, fine_tune, kin, learn_thresholds, settle
    from neurodetect.preparation import read_or_prepare
    from neurodetect.prepared import digests, read_labelled
    from neurodetect.regions import write_submission
    from neurodetect.resume import CHECKPOINT_BYTES
    from neurodetect.scoring import table
    from neurodetect.view.figures import draw_found, figure_bytes
    from neurodetect.view.report import section, write_report
    from neurodetect.weights import STARTED_FROM, WEIGHTS_BYTES, load_network, save_network, was_trained_on

    weights = args.model or args.start_from
    start, before = load_network(weights) if weights else (None, None)
    training, finding = console.read_settings(args, before)
    network, trained_on = (start, before) if args.model else (None, None)
    inputs = {}
    if weights:
        inputs["model"] = {Path(weights).name: digest(weights)}
    if network is not None:
        require_writable(Path(args.output).parent)
        network.to(finding.device)
        settings = console.log_settings(finding)
        console.say(f"Weights of {args.model}, on {finding.device} in {finding.precision}")
    else:
        require_writable(Path(args.output).parent, 2 * CHECKPOINT_BYTES[training.recipe])
        require_writable(Path(args.save_model).parent, WEIGHTS_BYTES[training.recipe])
        labelled = read_labelled(args.train_folder)
        inputs["training"] = digests(args.train_folder, labelled)
        settings = console.log_settings(training, finding)
    recordings, inputs["test"], frames = read_or_prepare(
        args.tests,
        Path(args.output).parent,
        console.chosen_of_recording(args),
        args.pixels_per_micron,
        args.recordings,
    )
    names = [recording.name for recording in recordings]
    if "suite2p" in args.export and len(frames) < len(recordings):
        console.say("Without --recordings FOLDER the traces of --export suite2p are zeros")

    found, rows, sections = {}, {}, []
    with console.unfinished_run(args, settings, **inputs) as unfinished:
        everyone, team = processes.split(1), processes.split(len(recordings))
        if network is None:
            console.say(
                f"Training on {console.count(len(labelled), 'recording')}, {training.iterations} iterations, "
                f"on {training.device} in {training.precision}"
            )
            network, history = train_network(
                labelled,
                training,
                start=start,
                checkpoint=unfinished.checkpoint("training"),
                description="training",
                team=everyone,
            )
            groups = {**alike(labelled), **kin(names, labelled)}
            fine_tune(
                *(network, labelled, groups, training),
                checkpoints=unfinished.checkpoint,
                description="fine-tuning",
                team=everyone,
            )
            trained_on = {
                **settings,
                "recordings": [recording.name for recording in labelled],
                "inputs": inputs["training"],
                "neuron_area": neuron_area(labelled),
                "thresholds": learn_thresholds(
                    partial(predict_map, network), labelled, finding, description="thresholds", team=everyone
                ),
                "loss": history[-1]["loss"],
                **({STARTED_FROM: before} if before else {}),
            }
            if processes.FIRST:
                save_network(args.save_model, network, trained_on)
            console.say(f"Wrote {args.save_model}")

        typical, thresholds = trained_on.get("neuron_area", {}), trained_on.get("thresholds", {})
        if network.own:
            settings = {**settings, "fine-tuned for": list(network.own)}
            console.say(f"Fine-tuned for {listed(network.own)}")
        if finding.threshold is None:
            learned = {group or "all": value for group, value in thresholds.items()}
            settings = {**settings, "learned thresholds": learned}
            if learned:
                named = listed(f"{value:g} for {group}" for group, value in learned.items())
                console.say(f"Thresholds, as learned: {named}")
        seen = {name for name in names if was_trained_on(trained_on, name, inputs["test"][f"X_{name}.npy"])}

        def examine(recording):
            name = recording.name
            neurons = detect(
                network,
                recording,
                settle(finding, name, thresholds),
                typical,
                once=unfinished.once,
                description=name,
                team=team,
            )
            row, pairs = assess(recording, neurons)
            note = "was trained on, which says nothing about new recordings" if name in seen else ""
            picture = figure_bytes(draw_found(recording, neurons, pairs, note))
            return neurons, row, picture, section(recording, neurons, row, pairs, note)

        for recording, (neurons, row, picture, part) in processes.share(recordings, examine, team):
            name = recording.name
            write_together({console.beside(args.output, f"_{name}.png"): picture})
            found[name] = neurons
            sections.append(part)
            if row is not None:
                rows[name] = row
            console.say(f"{name}: {console.count(len(neurons.regions), 'neuron')}")
        if not processes.FIRST:
            return  # the first one has it all now, and writes it
        for recording in recordings:
            stem = console.beside(args.output, f"_{recording.name}")
            regions, probability, _ = found[recording.name]
            traces = None
            if recording.name in frames and set(args.export) & set(WITH_TRACES):
                traces = trace(*frames[recording.name], recording, regions)
            for form in args.export:
                export(form, stem, regions, probability, recording.image, recording.pixels_per_micron, traces)
        log = {
            "train_folder": args.train_folder,
            "tests": args.tests,
            "recordings": args.recordings,
            "settings": settings,
            "inputs": inputs,
            "trained on": trained_on,
            "scores": rows,
        }
        log_file, report = (console.beside(args.output, ending) for ending in (".log.json", ".report.html"))
        write_submission(
            args.output,
            {name: neurons.regions for name, neurons in found.items()},
            {name: neurons.confidence for name, neurons in found.items()},
        )
        write_json(log_file, log)
        write_report(report, title="Neurons found", settings=settings, sections=sections)

    if rows:
        console.say("\n" + table(list(rows.values()), list(rows)) + "\n", level=0)
        for name in rows:
            if name in seen:
                console.warn(f"{name} was trained on: its score says nothing about new recordings")
    console.say(
        f"Wrote {args.output}; beside it {log_file.name} with what it was made from and with, a picture of "
        f"each recording, and {report.name}.\nNext: open {report} in a browser, or play the movie with what "
        f"was found: python play_animation.py RECORDING --submission {args.output}"
    )


if __name__ == "__main__":
    console.run(main)
