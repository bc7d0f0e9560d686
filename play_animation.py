#!/usr/bin/env python3
"""Play a recording as a movie; beside it the same frames with the outlines of its labelled neurons.

In the window: space pauses and goes on, the left and right arrows step, + and - change the speed, the up
and down arrows the brightness; click or drag the slider to go elsewhere; q closes.
"""

from __future__ import annotations

from neurodetect import console


def main() -> None:
    args = console.animation_options(__doc__)

    from neurodetect.recording import open_recording
    from neurodetect.view.figures import require_display
    from neurodetect.view.movie import Movie, check_movie_suffix

    if args.save:
        check_movie_suffix(args.save)
    else:
        require_display("use --save movie.gif")
    recording = open_recording(args.recording, **console.reading_options(args), labelled=not args.submission)
    for note in recording.notes:
        console.say(f"{recording.name}: {note}")
    if args.submission:
        from neurodetect.regions import read_submission  # half a second that others need not wait

        regions, labels = read_submission(args.submission, recording.name, recording.shape), "found"
    else:
        regions, labels = recording.regions, "labelled"
    movie = Movie(recording, regions, labels=labels, frames=args.frames, speed=args.speed)
    if args.save:
        count = movie.save(args.save)
        console.say(f"Wrote {args.save}: {count} frames of {len(recording)}")
    else:
        movie.play()


if __name__ == "__main__":
    console.run(main)
