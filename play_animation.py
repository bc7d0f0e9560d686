"""Play a recording as a movie; beside it the same frames with the outlines of its labelled neurons.

In the window: space pauses and goes on, the left and right arrows step, + and - change the speed, the up
and down arrows the brightness; click or drag the slider to go elsewhere; q closes.
"""

from __future__ import annotations

import argparse
import re

from neurodetect import console


def main() -> None:
    parser = console.Parser(__doc__, "python play_animation.py neurofinder.00.00 --speed 4 --save movie.gif")
    parser.add_argument(
        "recording",
        metavar="RECORDING",
        help=console.RECORDING_HELP,
    )
    parser.add_argument(
        "--submission",
        metavar="FILE",
        help="outline the neurons that this submission.json of conv2d_predict.py has for the recording "
        "(default: the labelled ones)",
    )
    parser.add_argument(
        "--frames",
        type=frame_numbers,
        metavar="FIRST:LAST",
        help="only these frames, counted from 1 as the movie shows them, for example 1:200 (default: all; "
        "in a .gif the first 100)",
    )
    parser.add_argument(
        "--speed",
        type=console.number_in(float, 0.01, 1000),
        default=1.0,
        metavar="FACTOR",
        help="1 plays as fast as the recording was made, or 30 frames a second where it does not say; "
        "10 plays ten times as fast (default: 1)",
    )
    parser.add_argument(
        "--save",
        metavar="FILE",
        help="write the movie into this .gif, or .mp4 where ffmpeg is installed, and open no window "
        "(default: a window)",
    )
    args = parser.parse_args()

    from neurodetect.figures import require_display
    from neurodetect.movie import Movie, check_movie_suffix
    from neurodetect.recording import open_recording

    if args.save:
        check_movie_suffix(args.save)
    else:
        require_display("use --save movie.gif")
    recording = open_recording(args.recording)
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


def frame_numbers(text: str) -> tuple[int, int]:
    """An argument type: FIRST:LAST, two whole numbers from 1."""
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"{text} is not FIRST:LAST, for example 1:200")
    return first, last


if __name__ == "__main__":
    console.run(main)
