#!/usr/bin/env python3
"""Find the neurons of recordings: train on all of TRAIN_FOLDER, write submission.json for TEST_FOLDER.

Both folders hold what preprocessing.py wrote. With --model the weights of an earlier run are used
instead of training, and TEST_FOLDER is given alone. Where a recording of TEST_FOLDER is
labelled, its scores are printed too.

Started by torchrun, recordings are dealt to the processes, with the same result; of fewer recordings
than processes the windows are. A training is shared from 200 windows of --batch-size a process on: of
fewer, the exchange of 324 MB in every step takes as long as what is saved, or longer, and the first process
trains alone. Processes on a CPU have OMP_NUM_THREADS threads each, on which the last digits depend.
"""

from __future__ import annotations

from neurodetect import console


def main() -> None:
    args = console.prediction_options(__doc__)

    from pathlib import Path

    from neurodetect import processes
    from neurodetect.detection import assess, detect, neuron_area, train_network
    from neurodetect.files import digest, require_writable, write_json, write_together
    from neurodetect.formats.exports import export
    from neurodetect.prepared import digests, read_folder, read_labelled
    from neurodetect.regions import require_distinct_datasets, write_submission
    from neurodetect.resume import CHECKPOINT_BYTES
    from neurodetect.scoring import table
    from neurodetect.view.figures import draw_found, figure_bytes
    from neurodetect.view.report import section, write_report
    from neurodetect.weights import load_network, save_network

    recordings = read_folder(args.test_folder)
    require_distinct_datasets(recording.name for recording in recordings)
    inputs = {"test": digests(args.test_folder, recordings)}
    network, trained_on = load_network(args.model) if args.model else (None, None)
    training, finding = console.read_settings(args, trained_on)
    if network is not None:
        require_writable(Path(args.output).parent)
        network.to(finding.device)
        inputs["model"] = {Path(args.model).name: digest(args.model)}
        settings = console.log_settings(finding)
        console.say(f"Weights of {args.model}, on {finding.device} in {finding.precision}")
        if args.background not in (None, finding.background):
            console.warn(f"{args.model} was trained with --background {finding.background}, which counts")
    else:
        require_writable(Path(args.output).parent, 2 * CHECKPOINT_BYTES)
        require_writable(Path(args.save_model).parent, CHECKPOINT_BYTES // 3)
        labelled = read_labelled(args.train_folder)
        inputs["training"] = digests(args.train_folder, labelled)
        settings = console.log_settings(training, finding)

    found, rows, sections = {}, {}, []
    with console.unfinished_run(args, settings, **inputs) as unfinished:
        everyone, team = processes.split(1), processes.split(len(recordings))
        if network is None:
            console.say(
                f"Training on {console.count(len(labelled), 'recording')}, {args.iterations} iterations, "
                f"on {training.device} in {training.precision}"
            )
            network, history = train_network(
                labelled,
                training,
                checkpoint=unfinished.checkpoint("training"),
                description="training",
                team=everyone,
            )
            trained_on = {
                **settings,
                "recordings": [recording.name for recording in labelled],
                "inputs": inputs["training"],
                "neuron_area": neuron_area(labelled),
                "loss": history[-1]["loss"],
            }
            if processes.FIRST:
                save_network(args.save_model, network, trained_on)
            console.say(f"Wrote {args.save_model}")

        typical, seen = trained_on.get("neuron_area", {}), trained_on.get("recordings", [])

        def examine(recording):
            name = recording.name
            neurons = detect(
                network, recording, finding, typical, once=unfinished.once, description=name, team=team
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
        write_submission(
            args.output,
            {name: neurons.regions for name, neurons in found.items()},
            {name: neurons.confidence for name, neurons in found.items()},
        )
        for recording in recordings:
            stem = console.beside(args.output, f"_{recording.name}")
            regions, probability, _ = found[recording.name]
            for form in args.export:
                export(form, stem, regions, probability, recording.image, recording.pixels_per_micron)
        log = {
            "train_folder": args.train_folder,
            "test_folder": args.test_folder,
            "settings": settings,
            "inputs": inputs,
            "trained on": trained_on,
            "scores": rows,
        }
        log_file, report = (console.beside(args.output, ending) for ending in (".log.json", ".report.html"))
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
