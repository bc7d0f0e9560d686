"""Traces of neurons: by their definition, through the exports and through the command."""

from __future__ import annotations

import csv
import json
import os
import shutil

import h5py
import numpy as np
import pytest
import tifffile
import torch
from conftest import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from neurodetect import network as network_module
from neurodetect.averaging import project
from neurodetect.files import UserError, write_json
from neurodetect.formats.exports import SUITE2P_FILES, export
from neurodetect.network import NeuronNet
from neurodetect.prepared import write_prepared
from neurodetect.projection import clip_bright
from neurodetect.recording import find_recording, open_recording
from neurodetect.synthetic import simulate_regions, write_recording
from neurodetect.traces import GroupedMean, extract, neuron_pixels, surround_pixels
from neurodetect.weights import save_network

SHAPE = (70, 90)
REGIONS = simulate_regions(SHAPE, 14, np.random.default_rng(3))
# At corners and edges, of one pixel, in two pieces.
AT_BORDER = [
    np.argwhere(np.ones((6, 7))),
    np.argwhere(np.ones((5, 4))) + [65, 86],
    np.array([[0, 89]]),
    np.array([[30, 0], [31, 0], [45, 3], [45, 4]]),
]


def frames_of(dtype, count=9, shape=SHAPE, seed=0):
    values = np.random.default_rng(seed).integers(1, 120, (count, *shape))
    return (values * 500 if np.dtype(dtype).itemsize > 1 else values).astype(dtype)


def mean_of(frame, pixels):
    """The mean of a frame over flat pixels, one after the other: what a trace is."""
    values = [float(frame.flat[pixel]) for pixel in pixels]
    there = [value for value in values if value == value]
    return np.float32(sum(there) / len(there)) if there else np.float32(np.nan)


def flat(regions, shape=SHAPE):
    return [[row * shape[1] + column for row, column in region.tolist()] for region in regions]


# The surround


def grown_by_one(pixels, shape):
    """Pixels and those above, below, left and right of them."""
    steps = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
    moved = {(row + down, column + right) for row, column in pixels for down, right in steps}
    return {(row, column) for row, column in moved if 0 <= row < shape[0] and 0 <= column < shape[1]}


def rectangle_about(pixels, margin, shape):
    rows, columns = ([pixel[axis] for pixel in pixels] for axis in (0, 1))
    return {
        (row, column)
        for row in range(max(0, min(rows) - margin), min(shape[0], max(rows) + margin + 1))
        for column in range(max(0, min(columns) - margin), min(shape[1], max(columns) + margin + 1))
    }


def plain_surround(regions, number, shape):
    """The steps of suite2p's `create_neuropil_masks`, version 1.1, default settings, on sets of pixels."""
    cells = {tuple(pixel) for region in regions for pixel in region.tolist()}
    inner = {tuple(pixel) for pixel in regions[number].tolist()}
    for _ in range(2):
        inner = grown_by_one(inner, shape)
    area, times = inner, 0
    while times < 100 and len(area - cells) - len(inner - cells) <= 350:
        area, times = rectangle_about(area, 5, shape), times + 1
    return sorted(row * shape[1] + column for row, column in area - cells - inner)


@pytest.mark.parametrize(
    "regions", [REGIONS, AT_BORDER, REGIONS + AT_BORDER], ids=["inside", "border", "both"]
)
def test_surrounds_are_those_of_the_definition(regions):
    surrounds = surround_pixels(regions, SHAPE)
    for number, pixels in enumerate(surrounds):
        assert pixels.tolist() == plain_surround(regions, number, SHAPE)
        assert len(pixels) > 350


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 3)),
)
def test_surrounds_in_small_and_crowded_images(labels):
    # Too small for 350 pixels: all of the image that is free, or nothing.
    regions = [np.argwhere(labels == number) for number in np.unique(labels[labels > 0])]
    for number, pixels in enumerate(surround_pixels(regions, labels.shape)):
        assert pixels.tolist() == plain_surround(regions, number, labels.shape)


def test_350_pixels_are_not_more_than_350():
    shape, one = (11, 80), [np.array([[5, 15]])]
    # Grown three times the rectangle is 11 x 33; 13 of its pixels are the neuron and two pixels about it.
    assert 11 * 33 - 13 == 350
    (pixels,) = surround_pixels(one, shape)
    assert pixels.tolist() == plain_surround(one, 0, shape) and len(pixels) == 11 * 38 - 13


# Traces


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", ">u2", "int32", "uint32", "float32", "float64"]
)
def test_exact_against_a_plain_loop(dtype):
    frames, regions = frames_of(dtype), REGIONS + AT_BORDER[:3]
    if frames.dtype.kind == "i":
        frames = -frames
    if frames.dtype.itemsize == 4 and frames.dtype.kind == "u":
        frames += np.uint32(2**32 - 120 * 500 - 1)  # sums beyond 32 bits, and beyond what float32 holds
    traces, projection = extract(iter(frames), regions, SHAPE)
    assert traces.neurons.dtype == traces.surrounds.dtype == np.float32
    assert traces.neurons.shape == traces.surrounds.shape == (len(regions), len(frames))
    for got, sets in ((traces.neurons, flat(regions)), (traces.surrounds, traces.surround_pixels)):
        expected = np.array([[mean_of(frame, pixels) for frame in frames] for pixels in sets])
        assert np.array_equal(got, expected)
    assert np.array_equal(projection.image, project(frames).image)


def test_sums_beyond_32_bits_of_frames_of_16():
    shape = (200, 200)
    frame = np.full(shape, 2**16 - 1, np.uint16)
    assert frame.sum(dtype=float) > 2**31
    traces, _ = extract([frame, frame], [np.argwhere(frame)], shape)
    assert traces.neurons.tolist() == [[2**16 - 1] * 2]


def test_shared_pixels_are_left_out_unless_there_are_no_others():
    one, two = np.argwhere(np.ones((4, 6))), np.argwhere(np.ones((4, 6))) + [0, 4]
    within = np.array([[1, 1], [2, 2]])  # all of it in the first
    with pytest.warns(UserWarning, match="neuron 3 are in other neurons"):
        pixels = neuron_pixels([one, two, within], SHAPE)
    kept = [[r, c] for r, c in one.tolist() if c < 4 and [r, c] not in within.tolist()]
    assert [pixels[0].tolist()] == flat([np.array(kept)])
    assert [pixels[1].tolist()] == flat([two[two[:, 1] >= 6]])
    assert [pixels[2].tolist()] == flat([within])
    frames = frames_of("uint16")
    with pytest.warns(UserWarning):
        traces, _ = extract(frames, [one, two, within], SHAPE)
    expected = [[mean_of(frame, of) for frame in frames] for of in pixels]
    assert np.array_equal(traces.neurons, expected) and np.isfinite(traces.neurons).all()
    assert not set(np.concatenate(traces.surround_pixels)) & set(sum(flat([one, two]), []))


def test_a_pixel_that_a_neuron_has_twice_counts_once():
    region = np.array([[5, 5], [5, 6], [5, 6]])
    (pixels,) = neuron_pixels([region], SHAPE)
    assert pixels.tolist() == [5 * 90 + 5, 5 * 90 + 6]


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_what_frames_lack_does_not_count(dtype):
    frames = frames_of(dtype)
    whole = frames.copy()
    empty = np.nan if dtype == "float32" else 0
    gone = [(slice(0, 3), slice(None)), (slice(None), slice(80, None)), (slice(None), slice(None)), ((), ())]
    for number, place in enumerate(gone):
        frames[(number, *place)] = empty
    masked = whole.astype(float)
    for number, place in enumerate(gone):
        masked[(number, *place)] = np.nan
    regions = REGIONS + AT_BORDER[:3]
    traces, _ = extract(frames, regions, SHAPE)
    for got, sets in (
        (traces.neurons, flat(regions)),
        (traces.surrounds, traces.surround_pixels),
    ):
        expected = [[mean_of(frame, pixels) for frame in masked] for pixels in sets]
        assert np.array_equal(got, expected, equal_nan=True)
    # The neuron at the right edge is in no pixel of frame 1, no neuron in any of frame 2.
    assert np.isnan(traces.neurons[len(REGIONS) + 1, 1]) and np.isnan(traces.neurons[:, 2]).all()
    assert np.isfinite(traces.neurons[:, 3:]).all()


def test_neither_neurons_nor_surrounds():
    frames = frames_of("uint16", 3, (4, 5))
    none, _ = extract(frames, [], (4, 5))
    assert none.neurons.shape == none.surrounds.shape == (0, 3) and none.surround_pixels == []
    full, _ = extract(frames, [np.argwhere(np.ones((4, 5)))], (4, 5))
    assert np.array_equal(full.neurons[0], frames.mean(axis=(1, 2)).astype(np.float32))
    assert len(full.surround_pixels[0]) == 0 and np.isnan(full.surrounds).all()


def test_frames_of_another_shape_or_none_are_errors():
    with pytest.raises(ValueError, match="shape|frame"):
        extract(frames_of("uint16").transpose(0, 2, 1), REGIONS, SHAPE)
    with pytest.raises(ValueError, match="no frames"):
        extract([], REGIONS, SHAPE)


sets_of_pixels = st.lists(st.sets(st.integers(0, 29), min_size=1), max_size=6)


@given(
    sets_of_pixels,
    hnp.arrays(np.int32, (5, 6), elements=st.integers(1, 10**6)),
    hnp.arrays(np.int32, (5, 6), elements=st.integers(1, 10**6)),
    st.integers(1, 1000),
)
def test_means_of_any_sets_are_linear_and_constant_on_constants(sets, one, other, factor):
    sets = [np.array(sorted(pixels)) for pixels in sets]
    mean = GroupedMean(sets, (5, 6))
    exact = [frame.ravel()[pixels].mean(dtype=np.float64) for frame in (one, other) for pixels in sets]
    assert np.array_equal(np.concatenate([mean(one), mean(other)]), np.array(exact, np.float32))
    both = mean(one.astype(np.float64) + factor * other.astype(np.float64))
    np.testing.assert_allclose(both, mean(one) + factor * mean(other), rtol=1e-6)
    assert (mean(np.full((5, 6), factor, np.uint16)) == factor).all()


# Exports


def simulated_traces(shape=SHAPE, regions=REGIONS, **others):
    return extract(frames_of("uint16", 40), regions, shape)[0]._replace(**others)


def exported(format, folder, traces, regions=REGIONS):
    image = np.random.default_rng(0).random(SHAPE, np.float32)
    return export(format, folder / "found", regions, image, image, None, traces)


def suite2p_files(path):
    return {
        name: np.load(path / name, allow_pickle=name in ("stat.npy", "ops.npy")) for name in SUITE2P_FILES
    }


def test_suite2p_gets_the_traces(tmp_path):
    traces = simulated_traces(rate_hz=12.5)
    files = suite2p_files(exported("suite2p", tmp_path, traces))
    ops = files["ops.npy"].item()
    assert ops["nframes"] == 40 and ops["fs"] == 12.5
    for name, expected in (("F.npy", traces.neurons), ("Fneu.npy", traces.surrounds)):
        assert files[name].dtype == np.float32 and files[name].flags.c_contiguous
        assert np.array_equal(files[name], expected)
    assert files["spks.npy"].shape == (len(REGIONS), 40) and not files["spks.npy"].any()
    corrected = traces.neurons.astype(float) - 0.7 * traces.surrounds
    for number, neuron in enumerate(files["stat.npy"]):
        assert neuron["neuropil_mask"].tolist() == plain_surround(REGIONS, number, SHAPE)
        assert neuron["skew"] == pytest.approx(stats.skew(corrected[number]), rel=1e-3, abs=1e-4)
        assert neuron["std"] == pytest.approx(corrected[number].std(), rel=1e-4)
    assert suite2p_files(exported("suite2p", tmp_path, simulated_traces()))["ops.npy"].item()["fs"] == 1.0


def test_suite2p_gets_no_nan(tmp_path):
    traces = simulated_traces()
    traces.neurons[2, 5:9] = np.nan
    traces.neurons[3] = np.nan
    traces.surrounds[4, 0] = np.nan
    before = traces.neurons.copy()
    files = suite2p_files(exported("suite2p", tmp_path, traces))
    for name, given_ in (("F.npy", traces.neurons), ("Fneu.npy", traces.surrounds)):
        there = ~np.isnan(given_)
        assert np.isfinite(files[name]).all() and np.array_equal(files[name][there], given_[there])
    others = np.delete(traces.neurons[2], range(5, 9)).astype(float)
    assert files["F.npy"][2, 5:9] == pytest.approx(others.mean()) and not files["F.npy"][3].any()
    assert all(np.isfinite([neuron["skew"], neuron["std"]]).all() for neuron in files["stat.npy"])
    assert np.array_equal(traces.neurons, before, equal_nan=True)  # what was given is as it was


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


def test_the_table_gives_every_number_back(tmp_path):
    traces = simulated_traces(first=11, rate_hz=7.0)
    traces.neurons[:3, :3] = [[1e-30, 3.4e38, -1e-7], [16777216.0, 1 / 3, 0.1], [np.nan, 0, 65535.5]]
    path = exported("csv", tmp_path, traces)
    header, rows = read_table(tmp_path / "found_traces.csv")
    assert header == ["frame", "time_s", *(f"neuron_{number}" for number in range(1, len(REGIONS) + 1))]
    assert [int(row[0]) for row in rows] == list(range(11, 51))
    assert [float(row[1]) for row in rows] == pytest.approx([n / 7 for n in range(10, 50)], abs=1e-6)
    assert rows[0][4] == "" and "nan" not in "".join(sum(rows, []))
    values = np.array([[cell or "nan" for cell in row[2:]] for row in rows], np.float32)
    assert np.array_equal(values.T, traces.neurons, equal_nan=True)
    assert len(read_table(path)[1]) == len(REGIONS)
    exported("csv", tmp_path, simulated_traces())
    assert read_table(tmp_path / "found_traces.csv")[0][:2] == ["frame", "neuron_1"]  # no rate, no time


def test_a_table_of_traces_of_other_neurons_does_not_stay(tmp_path):
    exported("csv", tmp_path, simulated_traces())
    exported("csv", tmp_path, None)
    assert [file.name for file in tmp_path.iterdir()] == ["found.csv"]


def test_a_table_without_neurons(tmp_path):
    exported("csv", tmp_path, extract(frames_of("uint16", 3), [], SHAPE)[0], [])
    header, rows = read_table(tmp_path / "found_traces.csv")
    assert header == ["frame"] and rows == [["1"], ["2"], ["3"]]


def test_tables_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    exported("csv", tmp_path, simulated_traces())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    real = os.replace

    def fail(source, target):
        if str(target).endswith("found.csv"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        exported("csv", tmp_path, simulated_traces(first=5), REGIONS)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# The command


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Two simulated recordings, prepared, and weights that find something in them."""
    folder = tmp_path_factory.mktemp("template")
    for seed, name in enumerate(("mouse.1", "mouse2")):
        path = write_recording(
            folder / "movies", name, shape=(44, 58), n_frames=12, seed=seed, labelled=False
        )
        write_prepared(folder / "test", name, clip_bright(project(open_recording(path)).image))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module, "HIDDEN_UNITS", 100)
        network = NeuronNet(torch.Generator().manual_seed(0))
        network.output.weight.data *= 10  # as it starts, it is sure of nothing
        save_network(folder / "model.pt", network, {"neuron_area": {"pixels": 30.0}})
    return folder


@pytest.fixture
def lab(tmp_path, command, template):
    """The folder of the recordings in a copy of the template, in which `command` runs."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "movies"


PREDICT = ("conv2d_predict.py", "test", "--model", "model.pt", "--stride", 10, "--device", "cpu")
EXPORT = (*PREDICT, "--threshold", 0.5, "--export", "suite2p,csv,labels")


def neurons_of(tmp_path, name):
    content = json.loads((tmp_path / "submission.json").read_text())
    (entry,) = (entry for entry in content if entry["dataset"] == name)
    return [np.array(region["coordinates"]) for region in entry["regions"]]


def assert_traces(tmp_path, name, frames, first=1, rate=7.0):
    """The exported traces are the means of these frames over the neurons of the submission."""
    regions = neurons_of(tmp_path, name)
    assert len(regions) > 5
    shape = frames[0].shape
    expected = np.array([[mean_of(frame, pixels) for frame in frames] for pixels in flat(regions, shape)])
    files = suite2p_files(tmp_path / f"submission_{name}_suite2p")
    assert np.array_equal(files["F.npy"], expected)
    for number, trace in enumerate(files["Fneu.npy"]):
        pixels = plain_surround(regions, number, shape)
        assert pixels and np.array_equal(trace, [mean_of(frame, pixels) for frame in frames])
    header, rows = read_table(tmp_path / f"submission_{name}_traces.csv")
    known = rate is not None
    assert [int(row[0]) for row in rows] == list(range(first, first + len(frames)))
    assert np.array_equal(np.array(rows)[:, 1 + known :].astype(np.float32).T, expected)
    assert ("time_s" in header) == known and files["ops.npy"].item()["fs"] == (rate or 1.0)


def test_the_command_writes_traces_of_every_recording(lab, command, tmp_path):
    result = command(*EXPORT, "--recordings", "movies")
    assert result.returncode == 0, result.stderr
    assert "zeros" not in result.stdout + result.stderr
    for name in ("mouse.1", "mouse2"):
        files = sorted((lab / name / "images").iterdir())
        assert_traces(tmp_path, name, [tifffile.imread(file) for file in files])
    assert json.loads((tmp_path / "submission.log.json").read_text())["recordings"] == "movies"
    before = {path: path.read_bytes() for path in tmp_path.rglob("submission*/*")}
    before |= {path: path.read_bytes() for path in tmp_path.glob("submission*.csv")}
    assert command(*EXPORT, "--recordings", "movies").returncode == 0
    assert before and {path: path.read_bytes() for path in before} == before


def test_where_an_export_fails_the_submission_stays_that_of_its_log(lab, command, tmp_path):
    assert command(*EXPORT, "--recordings", "movies").returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("submission*.*") if path.is_file()}
    (tmp_path / "submission_mouse2_suite2p" / "notes.txt").write_text("of somebody")
    result = command(*PREDICT, "--threshold", 0.6, "--export", "suite2p")
    assert_refused(result, "submission_mouse2_suite2p", "notes.txt")
    for name in ("submission.json", "submission.log.json", "submission.report.html"):
        assert (tmp_path / name).read_bytes() == before[tmp_path / name]


def test_without_frames_there_are_zeros_and_one_line_says_so(lab, command, tmp_path):
    (tmp_path / "submission_mouse2_traces.csv").write_text("of an earlier run")
    result = command(*EXPORT)
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if "zeros" in line)
    assert "--recordings" in line
    for name in ("mouse.1", "mouse2"):
        files = suite2p_files(tmp_path / f"submission_{name}_suite2p")
        assert not files["F.npy"].any() and not files["Fneu.npy"].any()
        assert "neuropil_mask" not in files["stat.npy"][0]
        assert not (tmp_path / f"submission_{name}_traces.csv").exists()
    assert "zeros" not in command(*PREDICT, "--export", "csv").stdout


def test_frames_are_read_as_they_were_prepared(command, lab, tmp_path):
    shutil.rmtree(tmp_path / "test")
    rng = np.random.default_rng(0)
    movie = rng.integers(100, 400, (30, 2, 44, 58)).astype(np.uint16)  # time, channel, rows, columns
    tifffile.imwrite(tmp_path / "two.tif", movie, imagej=True, metadata={"axes": "TCYX"})
    with h5py.File(tmp_path / "turned.h5", "w") as file:
        file["other"], file["movie"] = movie[:, 0], movie[:, 1].transpose(2, 1, 0)
    options = (["--channel", 2, "--transpose"], ["--dataset", "movie", "--axes", "XYT"])
    for recording, chosen in zip(("two.tif", "turned.h5"), options, strict=True):
        result = command("preprocessing.py", recording, "test", *chosen, "--frames", "4:23")
        assert result.returncode == 0, result.stderr
    result = command(*EXPORT, "--recordings", ".")
    assert result.returncode == 0, result.stderr
    assert_traces(tmp_path, "two", movie[3:23, 1].transpose(0, 2, 1), first=4, rate=None)
    assert_traces(tmp_path, "turned", movie[3:23, 1], first=4, rate=None)


def test_a_border_of_zeros_is_no_brightness(command, lab, tmp_path):
    shutil.rmtree(tmp_path / "test")
    movie = frames_of("uint16", 12, (44, 58))
    for number, frame in enumerate(movie):
        frame[: number % 5], frame[:, 58 - number % 3 :] = 0, 0
    tifffile.imwrite("shifted.tif", movie, photometric="minisblack")
    assert command("preprocessing.py", "shifted.tif", "test").returncode == 0
    assert command(*EXPORT, "--recordings", "shifted.tif").returncode == 0
    masked = movie.astype(float)
    masked[masked == 0] = np.nan  # its other pixels are from 500 on
    regions = neurons_of(tmp_path, "shifted")
    expected = np.array([[mean_of(frame, of) for frame in masked] for of in flat(regions, (44, 58))])
    assert any(len(of) and np.isnan(masked[4].flat[of]).any() for of in flat(regions, (44, 58)))
    _, rows = read_table(tmp_path / "submission_shifted_traces.csv")
    values = np.array([[cell or "nan" for cell in row[1:]] for row in rows], np.float32)
    assert np.array_equal(values.T, expected, equal_nan=True)


def other_movie(path, seed=5, shape=(44, 58)):
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, frames_of("uint16", 12, shape, seed), photometric="minisblack")


def remove(lab):
    shutil.rmtree(lab / "mouse2")


def exchange(lab):
    remove(lab)
    other_movie(lab / "mouse2.tif")


def turn(lab):
    remove(lab)
    other_movie(lab / "mouse2.tif", shape=(58, 44))


def double(lab):
    other_movie(lab / "mouse2.tif")


def change_one_frame(lab):
    file = lab / "mouse2" / "images" / "image00003.tiff"
    frame = tifffile.imread(file)
    frame[20, 20:24] += 1
    tifffile.imwrite(file, frame, metadata=None)


def lose_a_frame(lab):
    (lab / "mouse2" / "images" / "image00011.tiff").unlink()


def spoil_info(lab):
    write_json(lab.parent / "test" / "info_mouse2.json", {"reading": {"channel": "2"}})


def take_frames_that_are_not_there(lab):
    write_json(lab.parent / "test" / "info_mouse2.json", {"reading": {"frames": [20, 30]}})


@pytest.mark.parametrize(
    ("change", "words", "at_once"),
    [
        (remove, ["movies", "no recording mouse2"], True),
        (double, ["movies/mouse2", "movies/mouse2.tif"], True),
        (turn, ["movies/mouse2.tif", "(58, 44)", "(44, 58)"], True),
        (spoil_info, ["info_mouse2.json", "preprocessing.py"], True),
        (take_frames_that_are_not_there, ["mouse2", "1 to 12"], True),
        (exchange, ["movies/mouse2.tif", "X_mouse2.npy", "mean"], False),
        (change_one_frame, ["movies/mouse2", "X_mouse2.npy", "mean"], False),
        (lose_a_frame, ["movies/mouse2", "X_mouse2.npy", "mean"], False),
    ],
)
def test_other_frames_are_never_used(lab, command, tmp_path, change, words, at_once):
    change(lab)
    before = set(tmp_path.rglob("*"))
    result = command(*EXPORT, "--recordings", "movies", "--quiet")
    assert_refused(result, *words)
    if at_once:  # before any work
        assert set(tmp_path.rglob("*")) == before
    assert not list(tmp_path.glob("submission_mouse2_*"))


def test_a_refused_pass_can_be_resumed(lab, command, tmp_path):
    change_one_frame(lab)
    assert command(*EXPORT, "--recordings", "movies").returncode == 2
    change = tifffile.imread(lab / "mouse2" / "images" / "image00003.tiff")
    change[20, 20:24] -= 1
    tifffile.imwrite(lab / "mouse2" / "images" / "image00003.tiff", change, metadata=None)
    result = command(*EXPORT, "--recordings", "movies", "--resume")
    assert result.returncode == 0 and "Going on" in result.stdout, result.stderr
    files = sorted((lab / "mouse2" / "images").iterdir())
    assert_traces(tmp_path, "mouse2", [tifffile.imread(file) for file in files])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recordings", "nowhere", "--export", "csv"], ["nowhere", "check the path"]),
        (["--recordings", "movies"], ["--recordings", "--export"]),
        (["--recordings", "movies", "--export", "imagej,labels"], ["--recordings", "--export"]),
    ],
)
def test_mistakes_in_the_options(lab, command, arguments, words):
    assert_refused(command(*PREDICT, *arguments), *words)


def test_a_recording_is_found_by_its_name(tmp_path):
    other_movie(tmp_path / "day" / "mouse.tif")
    other_movie(tmp_path / "day" / "mouse.regions.tif")  # its labels
    other_movie(tmp_path / "day" / "mouse2.tif")
    (tmp_path / "day" / "mouse.png").write_bytes(b"\x89PNG")
    (tmp_path / "day" / "mouse").mkdir()  # without frames in it
    movie = tmp_path / "day" / "mouse.tif"
    assert find_recording(tmp_path / "day", "mouse") == find_recording(movie, "mouse") == movie
    folder = tmp_path / "night" / "images"
    folder.mkdir(parents=True)
    other_movie(folder / "1.tif")
    assert find_recording(tmp_path / "night", "night") == find_recording(tmp_path, "night") == folder.parent
    for place, name in ((movie, "mouse2"), (tmp_path, "mouse"), (tmp_path / "day", "Mouse")):
        with pytest.raises(UserError, match="no recording"):
            find_recording(place, name)
    # Of a folder and a movie of its name in it, what is named is meant: either can be.
    file = tmp_path / "twice" / "twice.tif"
    other_movie(file)
    assert find_recording(file.parent, "twice") == find_recording(tmp_path, "twice") == file.parent
    assert find_recording(file, "twice") == file
    other_movie(tmp_path / "both" / "twice.tif")
    other_movie(tmp_path / "both" / "twice" / "1.tif")
    with pytest.raises(UserError, match=r"twice, .*twice\.tif are both called twice"):
        find_recording(tmp_path / "both", "twice")


def test_labels_that_cannot_be_read_do_not_matter(lab, command, tmp_path):
    (lab / "mouse2" / "regions").mkdir()
    (lab / "mouse2" / "regions" / "regions.json").write_text("{")
    assert command(*EXPORT, "--recordings", "movies").returncode == 0
