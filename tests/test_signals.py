"""Ctrl-C and SIGTERM are held back where they would do harm, and not lost."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from matplotlib.transforms import Affine2DBase

from neurodetect.signals import signals_held
from neurodetect.view import figures

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


class Arrived(Exception):
    """What the handler of a signal raises in these tests."""


def arrive(*_):
    raise Arrived


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_held() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert not stop()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block_and_a_second_does_not(number):
    before = signal.signal(number, arrive)
    try:
        ended = False
        with pytest.raises(Arrived), signals_held() as stop:
            assert not stop()
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert stop()
            ended = True
        assert ended
        with pytest.raises(Arrived), signals_held():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            time.sleep(1)
            pytest.fail("the second was held back")
        with pytest.raises(Arrived):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
    finally:
        signal.signal(number, before)


def test_a_signal_waits_until_a_figure_is_drawn(tmp_path, monkeypatch):
    transform, calls = Affine2DBase.transform_affine, []

    class Number:
        """matplotlib's compiled code asks for its value, and makes a TypeError of what is raised there."""

        def __float__(self):
            signal.raise_signal(signal.SIGTERM)
            return 0.0

    def interrupted(self, values):
        calls.append(None)
        if len(calls) == 1:
            transform(self, [[Number(), 0.0]])
        return transform(self, values)

    before = signal.signal(signal.SIGTERM, arrive)
    try:
        figure = figures.draw_regions(np.arange(400.0).reshape(20, 20), title="a field")
        monkeypatch.setattr(Affine2DBase, "transform_affine", interrupted)
        with pytest.raises(Arrived):
            figures.save_figure(tmp_path / "figure.png", figure)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "figure.png").exists()
