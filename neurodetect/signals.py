"""Being stopped: Ctrl-C and SIGTERM, held back where they would do harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def signals_held() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C and SIGTERM back until the block ends, and let it ask whether one came.

    A second one is not held back, nor is one that is ignored, as Ctrl-C is behind `nohup`. Outside the main
    thread nothing is.

    As a decorator it is for what calls compiled code that looks for signals: matplotlib's takes the
    exception that a handler raises for a wrong argument, and raises an error of its own.

    Yields
    ------
    callable
        Without arguments: whether to stop.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def release() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None was none of Python's

    def hold(number: int, _: object) -> None:
        came.append(number)
        release()

    for number in before:
        signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        release()
    if came:
        signal.raise_signal(came[0])
