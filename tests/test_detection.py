from __future__ import annotations

import numpy as np

from neurodetect.detection import expected_area, neuron_area
from neurodetect.prepared import Prepared


def labelled_with(areas, pixels_per_micron):
    image = np.zeros((2, 2), np.float32)
    return Prepared("a", image, image, [np.zeros((area, 2), int) for area in areas], pixels_per_micron)


def test_a_typical_neuron_is_the_median_and_keeps_its_size_in_microns():
    known = neuron_area([labelled_with([40, 80, 400], 2.0)])
    assert known == {"pixels": 80, "square_microns": 20}
    assert expected_area(known, 1.0) == 20 and expected_area(known, 3.0) == 180
    assert expected_area(known, None) == 80
    some = neuron_area([labelled_with([40, 80], 2.0), labelled_with([100], None)])
    assert some == {"pixels": 80, "square_microns": None} and expected_area(some, 3.0) == 80
    two = neuron_area([labelled_with([100], 1.0), labelled_with([400, 400], 2.0)])
    assert two["square_microns"] == 100


def test_without_labelled_neurons_there_is_no_typical_one():
    assert expected_area(neuron_area([labelled_with([], 1.0)]), 1.0) is None
    assert expected_area({}, 2.0) is None
