"""The whole chain on simulated recordings: python -m neurodetect.demo [FOLDER] [--device cuda]

Simulates four labelled recordings, then runs the four commands on them as a user would: three
recordings to train on, one that the network never sees until its neurons are found in it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from neurodetect import console
from neurodetect.files import UserError

# In a clone the commands lie beside the package, installed by pip where programs are.
PLACES = (Path(__file__).resolve().parent.parent, Path(sysconfig.get_path("scripts")))
TRAINING, TEST = ("simulated.00", "simulated.01", "simulated.02"), ("simulated.03",)
SHAPE = (144, 160)  #: pixels, not square: an exchange of rows and columns would show
FRAMES = 100
# Small, so that the demo takes minutes: real recordings want the defaults.
CROSSVALIDATION = (
    "--folds 2 --iterations 160 --batch-size 50 --stride 4 --output validation/scores.json".split()
)
PREDICTION = "--iterations 200 --batch-size 50 --stride 2 --output found/submission.json".split()


def main() -> None:
    args = console.demo_options(__doc__)

    from neurodetect.device import choose_device
    from neurodetect.synthetic import write_recording

    device = "--device", str(choose_device(args.device))
    folder = Path(args.folder)
    console.say(f"Simulating {len(TRAINING + TEST)} recordings of {FRAMES} frames in {folder} ...")
    for seed, name in enumerate(TRAINING + TEST):
        write_recording(folder / "recordings", name, shape=SHAPE, n_frames=FRAMES, seed=seed)

    recordings = [f"recordings/{name}" for name in TRAINING]
    unseen = [f"recordings/{name}" for name in TEST]
    run(folder, "preprocessing.py", *recordings, "train")
    run(folder, "preprocessing.py", *unseen, "test")
    stopped = ["--resume"] if any(folder.glob("*/*.unfinished")) else []
    run(folder, "conv2d_crossvalidation.py", "train", *CROSSVALIDATION, *device, *stopped)
    run(folder, "conv2d_predict.py", "train", "test", *PREDICTION, *device, *stopped)
    run(folder, "play_animation.py", *unseen, "--submission", "found/submission.json", "--save", "movie.gif")

    console.say(
        "\nDone. Open these two in a browser:\n"
        f"  {folder}/found/submission.report.html, what was found in a recording not seen in training\n"
        f"  {folder}/validation/scores.report.html, how good it is\n"
        f"and look at {folder}/movie.gif. Next: the same commands on your own recordings, see README.md."
    )


def run(folder: Path, script: str, *arguments: str) -> None:
    """Run one of the four commands in the folder, and show it as a user would type it."""
    console.say(f"\n$ python {script} {shlex.join(arguments)}")
    path = next((place / script for place in PLACES if (place / script).exists()), None)
    if path is None:
        raise UserError(f"{script}: is neither beside the package nor in {PLACES[1]}; use a clone")
    loudness = [word for word in sys.argv[1:] if word in ("-q", "--quiet", "--verbose")]
    result = subprocess.run([sys.executable, str(path), *arguments, *loudness], cwd=folder)
    if result.returncode:
        raise UserError(f"{script} failed, see above")


if __name__ == "__main__":
    console.run(main)
