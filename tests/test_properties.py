"""Properties that hold for any input: what is written is read back, and no file crashes a reader."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurodetect import network as network_module
from neurodetect.files import UserError, read_array, read_json
from neurodetect.network import NeuronNet
from neurodetect.prepared import read_prepared, write_prepared
from neurodetect.recording import open_recording
from neurodetect.regions import read_regions, read_submission, write_regions, write_submission
from neurodetect.sliding_window import probability_map
from neurodetect.weights import load_network, save_network

SHAPE = (9, 12)
FRAMES = np.random.default_rng(0).integers(0, 1000, (4, *SHAPE), np.uint16)
REGIONS = [np.array([[1, 2], [1, 3], [2, 2]]), np.array([[7, 10], [8, 10], [8, 11]])]

pixels = st.tuples(st.integers(0, 599), st.integers(0, 299))
regions_lists = st.lists(
    st.lists(pixels, min_size=1, max_size=20, unique=True).map(sorted).map(np.array), max_size=8
)


@given(
    found=st.dictionaries(
        st.text(max_size=10).filter(lambda s: not s.startswith("neuro")), regions_lists, max_size=3
    )
)
def test_neurons_survive_writing_and_reading(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("regions")
    write_submission(folder / "submission.json", found)
    for name, regions in found.items():
        write_regions(folder / "regions.json", regions)
        for back in (
            read_regions(folder / "regions.json", (600, 300)),
            read_submission(folder / "submission.json", name, (600, 300)),
        ):
            assert len(back) == len(regions)
            assert all(np.array_equal(a, b) for a, b in zip(back, regions, strict=True))


# Readers and files from strangers


def tiff(**options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, FRAMES, photometric="minisblack", **options)
    return stream.getvalue()


def paged_tiff(**options) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, **options) as writer:
        for frame in FRAMES:
            writer.write(frame, metadata=None)
    return stream.getvalue()


def array(value: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


def read_frames(path):
    recording = open_recording(path)
    return [recording.frame(0), *recording][:20]


def read_beside(path):
    """Read a prepared recording of which one file is `path`, the others as they should be."""
    content = path.read_bytes()
    write_prepared(path.parent, "a", FRAMES[0], REGIONS, 1.0)
    path.write_bytes(content)
    return read_prepared(path.parent, "a")


REGIONS_JSON = json.dumps([{"coordinates": region.tolist()} for region in REGIONS]).encode()
SUBMISSION = b'[{"dataset": "a", "regions": ' + REGIONS_JSON + b"}]"
READERS = {
    "JSON": ("a.json", b'{"rate-hz": 7.5, "a": [true, null, "\\u00fc"]}', read_json),
    "regions": ("regions.json", REGIONS_JSON, lambda path: read_regions(path, SHAPE)),
    "submission": ("submission.json", SUBMISSION, lambda path: read_submission(path, "a", SHAPE)),
    "array": ("a.npy", array(FRAMES[0]), read_array),
    "image": ("X_a.npy", array(FRAMES[0].astype(np.float32)), read_beside),
    "mask": ("y_a.npy", array(np.zeros(SHAPE, np.uint8)), read_beside),
    "neurons": ("regions_a.json", REGIONS_JSON, read_beside),
    "info": ("info_a.json", b'{"pixels-per-micron": 1.15}', read_beside),
    "TIFF, one directory": ("a.tif", tiff(), read_frames),
    "TIFF, directories": ("a.tif", paged_tiff(), read_frames),
    "BigTIFF": ("a.tif", paged_tiff(bigtiff=True), read_frames),
    "ImageJ": ("a.tif", tiff(imagej=True), read_frames),
    "compressed TIFF": ("a.tif", tiff(compression="zlib"), read_frames),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights for `load_small`."""
    file = tmp_path_factory.mktemp("weights") / "model.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module, "HIDDEN_UNITS", 1)
        save_network(file, NeuronNet(torch.Generator().manual_seed(0)), {"seed": 0, "recordings": ["a"]})
    return file


def load_small(path):
    """Read the weights of a network with one hidden unit."""
    # Not for as long as the tests of this file: they share the whole network with those of other files.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module, "HIDDEN_UNITS", 1)
        return load_network(path)


@st.composite
def damaged(draw, content):
    """Bytes of a file of which some were changed, cut out or added, mostly near its two ends."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        from_start = draw(st.integers(0, min(len(content), draw(st.sampled_from([10, 200, 10**9])))))
        position = draw(st.sampled_from([from_start, len(content) - from_start]))
        some = draw(st.binary(min_size=1, max_size=8))
        change = draw(st.sampled_from(["replace", "insert", "cut", "end"]))
        if change == "replace":
            content[position : position + len(some)] = some
        elif change == "insert":
            content[position:position] = some
        elif change == "cut":
            del content[position : position + draw(st.integers(1, 100))]
        else:
            del content[position:]
    return bytes(content)


def refuses_or_reads(read, path, content):
    """Reading gives something, or a UserError of one line that names the file or one beside it."""
    path.write_bytes(content)
    try:
        read(path)
    except UserError as error:
        assert "\n" not in str(error), error
        assert str(path.parent) in str(error), error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_files_crash_no_reader(tmp_path_factory, kind, data):
    name, content, read = READERS[kind]
    path = tmp_path_factory.mktemp("damaged") / name
    refuses_or_reads(read, path, data.draw(damaged(content)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JSON", "array", "TIFF, directories"])
@given(content=st.binary(max_size=200), magic=st.booleans())
def test_random_bytes_crash_no_reader(tmp_path_factory, kind, content, magic):
    name, valid, read = READERS[kind]
    path = tmp_path_factory.mktemp("random") / name
    refuses_or_reads(read, path, (valid[:8] if magic else b"") + content)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40)
@given(data=st.data())
def test_damaged_weights_crash_nothing(tmp_path_factory, weights, data):
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    refuses_or_reads(load_small, path, data.draw(damaged(weights.read_bytes())))


def test_the_files_that_are_damaged_are_good(tmp_path, weights):
    for name, content, read in READERS.values():
        (tmp_path / name).write_bytes(content)
        if name == "y_a.npy":  # a mask of nothing
            with pytest.raises(UserError, match="does not show"):
                read(tmp_path / name)
        else:
            read(tmp_path / name)
    load_small(weights)


# The probability map


@settings(max_examples=8)
@given(
    shape=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 50.0]),
    seed=st.integers(0, 1000),
)
def test_maps_of_any_image_are_probabilities(network, shape, scale, seed):
    image = np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)
    probability = probability_map(network, image, stride=20)
    assert probability.shape == shape
    assert ((probability >= 0) & (probability <= 1)).all()  # which NaN is not
