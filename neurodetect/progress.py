"""The progress bar of every command."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm

DELAY = 1.0  #: seconds that nothing is drawn: what is done by then needs no bar
LOG_INTERVAL = 30.0  #: seconds between two lines where standard error is a file, not a terminal

hidden = False  #: draw no bar at all: --quiet


def progress_bar(
    iterable: Iterable | None = None,
    *,
    description: str,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
    show: bool = True,
) -> tqdm:
    """A progress bar on standard error: what is done, how fast, how long still.

    Parameters
    ----------
    iterable : iterable, optional
        What to go through; without it call `.update(n)`.
    description : str
        What is being done.
    total : int, optional
        Number of steps, where the iterable does not know.
    initial : int
        Steps that were done before, in an earlier run.
    unit : str
        The name of a step.
    show : bool
        False gives a bar that draws nothing.

    Returns
    -------
    tqdm
        Refreshed several times a second on a terminal, every half minute in a log file. Set its
        postfix with `refresh=False`, or it is drawn before its time.
    """
    interval = 0.2 if sys.stderr.isatty() else LOG_INTERVAL
    return tqdm(
        iterable,
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        mininterval=interval,
        delay=DELAY,
        dynamic_ncols=True,
        disable=hidden or not show,
    )
