"""What a user or a stranger's file can do wrong: one line that names it, exit code 2, nothing written.

The scripts run in this process, whole, from their arguments to their exit code: a row takes
milliseconds. That they do the same in processes of their own is tested in test_commands.py.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile
import torch
from conftest import assert_refused

from neurodetect import network as network_module
from neurodetect.files import UserError, write_json
from neurodetect.network import NeuronNet
from neurodetect.prepared import read_folder, read_prepared, write_prepared
from neurodetect.regions import write_regions
from neurodetect.weights import load_network, save_network

SHAPE = (40, 60)
REGIONS = [np.array([[3, 4], [3, 5], [4, 4], [4, 5]]), np.array([[20, 30], [20, 31], [21, 30]])]
QUICK = ("--iterations", 1, "--batch-size", 2, "--stride", 20, "--device", "cpu")


def noise(shape=SHAPE, dtype=np.uint16, seed=0):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def write_frames(folder, *frames):
    """A recording of one file a frame, as a folder of TIFF files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        tifffile.imwrite(folder / f"image{index}.tif", frame, metadata=None)


def listing(folder):
    """Everything below a folder, with the bytes of the files."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


class Payload:
    """Pickled, it leaves a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


# Recordings, through preprocessing.py


def two_shapes(recording):
    write_frames(recording, noise(), noise((40, 61)))


def two_types(recording):
    write_frames(recording, noise(), noise(dtype=np.uint8))


def two_shapes_in_a_stack(recording):
    recording.mkdir()
    with tifffile.TiffWriter(recording / "image0.tif") as tiff:
        tiff.write(noise(), metadata=None)
        tiff.write(noise((41, 60)), metadata=None)


def cut_short(recording):
    write_frames(recording, noise(), noise())
    file = recording / "image1.tif"
    file.write_bytes(file.read_bytes()[:-2000])


def a_stack_cut_short(recording):
    recording.mkdir()
    tifffile.imwrite(recording / "image0.tif", noise((5, *SHAPE)), photometric="minisblack")
    os.truncate(recording / "image0.tif", 15_000)


def no_tiff(recording):
    write_frames(recording, noise())
    (recording / "image1.tif").write_bytes(b"GIF89a, though the name says otherwise" * 10)


def an_empty_file(recording):
    write_frames(recording, noise())
    (recording / "image0.tif").write_bytes(b"")


def rgb(recording):
    recording.mkdir()
    tifffile.imwrite(recording / "image0.tif", noise((*SHAPE, 3), np.uint8), photometric="rgb")


def not_a_number(recording):
    write_frames(recording, *np.full((2, *SHAPE), np.nan, np.float32))


def nothing_but_zeros(recording):
    write_frames(recording, *np.zeros((2, *SHAPE), np.uint8))


def infinite(recording):
    frame = noise(dtype=np.float64)
    frame[7, 8] = -np.inf
    write_frames(recording, frame)


def complex_numbers(recording):
    write_frames(recording, noise(dtype=np.complex64))


def beyond_float32(recording):
    write_frames(recording, noise(dtype=np.float64) * 1e300)


def one_pixel(recording):
    write_frames(recording, noise((1, 1)), noise((1, 1), seed=1))


def a_million_by_a_million(recording):
    write_frames(recording, noise())
    with tifffile.TiffFile(recording / "image0.tif", mode="r+") as tiff:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tiff.pages[0].tags[tag].overwrite(10**6, dtype="I")


def another_folder(recording):
    (recording / "images").mkdir(parents=True)
    (recording / "images" / "image0.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def labels(text):
    def make(recording):
        write_frames(recording / "images", noise())
        (recording / "regions").mkdir()
        (recording / "regions" / "regions.json").write_text(text)

    return make


def info(text):
    def make(recording):
        write_frames(recording / "images", noise())
        (recording / "info.json").write_text(text)

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (two_shapes, ["image1.tif", "40 x 61", "40 x 60"]),
        (two_types, ["image1.tif", "uint8", "uint16"]),
        (two_shapes_in_a_stack, ["image0.tif", "frame 1", "41 x 60"]),
        (cut_short, ["image1.tif", "cut short"]),
        (a_stack_cut_short, ["image0.tif", "cut short"]),
        (no_tiff, ["image1.tif", "TIFF"]),
        (an_empty_file, ["image0.tif", "TIFF"]),
        (rgb, ["image0.tif", "RGB", "export"]),
        (not_a_number, ["recording", "all pixels", "NaN"]),
        (nothing_but_zeros, ["recording", "all pixels", "0"]),
        (infinite, ["image0.tif", "infinite"]),
        (complex_numbers, ["image0.tif", "neither integer nor float"]),
        (beyond_float32, ["recording", "beyond float32"]),
        (one_pixel, ["recording", "constant"]),
        (a_million_by_a_million, ["image0.tif", "1000000000000 pixels", "damaged"]),
        (another_folder, ["recording", "no frames", "TIFF"]),
        (labels('[{"coordinates": [[1, 2]'), ["regions.json", "JSON"]),
        (labels('{"neurons": 3}'), ["regions.json", "list"]),
        (
            labels('[{"coordinates": [[3, 4], [39, 60]]}]'),
            ["regions.json", "neuron 0", "[39, 60]", "60 columns"],
        ),
        (labels('[{"coordinates": [[3, 4]]}, {"coordinates": [[-1, 2]]}]'), ["neuron 1", "[-1, 2]"]),
        (labels('[{"coordinates": [[3.5, 4]]}]'), ["regions.json", "[3.5, 4]", "whole numbers"]),
        (labels('[{"coordinates": []}]'), ["regions.json", "neuron 0", "no pixels"]),
        (labels('[{"coordinates": [["3", "4"], [5, 6]]}]'), ["regions.json", "not pairs of numbers"]),
        (labels('[{"coordinates": [[true, false]]}]'), ["regions.json", "not pairs of numbers"]),
        (labels('[{"coordinates": [[1, 2], [3]]}]'), ["regions.json", "not pairs of numbers"]),
        (info("not json"), ["info.json", "JSON"]),
        (info("[1.0, 7]"), ["info.json", "object"]),
    ],
    ids=lambda value: getattr(value, "__name__", " ".join(value) if isinstance(value, list) else None),
)
def test_a_recording_that_cannot_be_used(command, tmp_path, make, words):
    make(tmp_path / "recording")
    before = listing(tmp_path)
    assert_refused(command("preprocessing.py", "recording", "out"), *words)
    # The output folder may have been made to see whether it can be; nothing is in it.
    after = listing(tmp_path)
    assert after.pop(tmp_path / "out", None) is None
    assert after == before


@pytest.mark.parametrize("scale", ['"1.15"', "null", "true", "-1", "0", "NaN", "1e400", 400 * "9", "[1]"])
def test_a_scale_that_is_none_is_as_no_scale(command, tmp_path, scale):
    info(f'{{"pixels-per-micron": {scale}, "rate-hz": {scale}}}')(tmp_path / "recording")
    result = command("preprocessing.py", "recording", "out")
    assert result.returncode == 0, result.stderr
    assert read_prepared(tmp_path / "out", "recording").pixels_per_micron is None


def test_a_list_without_neurons_is_no_mistake(command, tmp_path):
    labels("[]")(tmp_path / "recording")
    result = command("preprocessing.py", "recording", "out")
    assert result.returncode == 0, result.stderr
    prepared = read_prepared(tmp_path / "out", "recording")
    assert prepared.regions == [] and not prepared.mask.any()


# Prepared data


@pytest.fixture
def folder(tmp_path):
    """A folder of two prepared recordings, `a` labelled and `b` not."""
    write_prepared(tmp_path, "a", noise(), REGIONS, 1.0)
    write_prepared(tmp_path, "b", noise(seed=1))
    return tmp_path


def header(shape, dtype="'<f4'"):
    """The beginning of a `.npy` file, and some bytes of what it promises."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(100)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("X_a.npy", b"", "X_a.npy: .* preprocessing.py again"),
        ("X_a.npy", header("(1000000, 1000000)"), "cut short"),
        ("X_a.npy", header(f"({10**30}, 7)"), "cut short"),
        ("X_a.npy", header("(-40, -60)"), "damaged"),
        ("X_a.npy", header("(True, 25)"), "damaged"),
        ("X_a.npy", header("()"), "no \\(H, W\\) image"),
        ("X_a.npy", header("(5,)"), "no \\(H, W\\) image"),
        ("X_a.npy", header("(0, 60)"), "no \\(H, W\\) image"),
        ("X_a.npy", header("(5, 5)", "'|O'"), "no plain array"),
        ("X_a.npy", header("(5, 2)", "[('a', '<f4'), ('b', '<f4')]"), "no plain array"),
        ("X_a.npy", header("(2, 2)", "'<M8[s]'"), "no plain array"),
        ("X_a.npy", header(f"({10**9}, {10**9})", "'|V0'"), "no plain array"),
        ("X_a.npy", header("(2, 2)", "-" * 5000 + "1"), "damaged"),
        ("X_a.npy", header("(2, 2)", "(" * 5000 + ")" * 5000), "damaged"),
        ("X_a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "no plain array"),
        ("X_a.npy", b"PK\x03\x04" + bytes(100), "no plain array"),
        ("X_a.npy", np.full(SHAPE, np.nan), "NaN"),
        ("X_a.npy", np.full(SHAPE, 1e300) * noise(), "beyond float32"),
        ("X_a.npy", np.full(SHAPE, 5.0), "constant"),
        ("X_a.npy", np.full((1, 1), 5.0), "constant"),
        ("X_a.npy", noise((60, 40)), r"y_a.npy: is \(40, 60\), but X_a.npy is \(60, 40\)"),
        ("y_a.npy", np.zeros((40, 61), np.uint8), r"y_a.npy: is \(40, 61\)"),
        ("y_a.npy", noise(), "y_a.npy: .* other than 0 and 1"),
        ("y_a.npy", np.zeros(SHAPE, np.uint8), "y_a.npy: does not show the neurons of regions_a.json"),
        ("regions_a.json", b"[]", "y_a.npy: does not show the neurons of regions_a.json"),
        ("regions_a.json", b'[{"coordinates": [[40, 2]]}]', "regions_a.json: neuron 0"),
        ("regions_a.json", None, "regions_a.json: is missing"),
        ("info_a.json", b"{", "info_a.json: is not valid JSON"),
        ("valid_a.npy", np.ones((40, 61), np.uint8), r"valid_a.npy: is \(40, 61\)"),
        ("valid_a.npy", noise(), "valid_a.npy: .* other than 0 and 1"),
        ("valid_a.npy", np.zeros(SHAPE, np.uint8), "valid_a.npy: .* nothing to see"),
        ("valid_a.npy", np.eye(*SHAPE, dtype=np.uint8), "X_a.npy: is not the image"),
    ],
)
def test_prepared_data_that_cannot_be_used(folder, file, content, words):
    if content is None:
        (folder / file).unlink()
    elif isinstance(content, bytes):
        (folder / file).write_bytes(content)
    else:
        np.save(folder / file, content)
    with pytest.raises(UserError, match=words) as error:
        read_folder(folder)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda array: np.asfortranarray(array),
        lambda array: array.astype(">f8"),
        lambda array: array.astype(np.uint8),
    ],
    ids=["columns first", "big-endian", "bytes"],
)
def test_arrays_of_other_programs_are_read(folder, change):
    expected = read_prepared(folder, "a")
    for file in ("X_a.npy", "y_a.npy"):
        np.save(folder / file, change(np.load(folder / file)))
    prepared = read_prepared(folder, "a")
    for array, dtype in ((prepared.image, np.float32), (prepared.mask, np.uint8)):
        assert array.dtype == dtype and array.flags.c_contiguous
    assert np.array_equal(prepared.image, expected.image) and np.array_equal(prepared.mask, expected.mask)


def test_a_pickle_is_refused_and_runs_nothing(command, folder):
    trace = folder / "trace"
    np.save(folder / "X_a.npy", np.array([Payload(trace)], dtype=object), allow_pickle=True)
    (folder / "y_b.npy").write_bytes(pickle.dumps(Payload(trace)))
    before = listing(folder)
    assert_refused(command("conv2d_crossvalidation.py", "."), "X_a.npy", "preprocessing.py")
    (folder / "X_a.npy").unlink()
    before.pop(folder / "X_a.npy")
    assert_refused(command("conv2d_predict.py", ".", "."), "y_b.npy", "preprocessing.py")
    assert listing(folder) == before
    # The payloads do work.
    pickle.loads((folder / "y_b.npy").read_bytes()).close()
    assert trace.exists()


def test_a_mask_of_another_shape_is_refused(command, folder):
    np.save(folder / "y_a.npy", np.zeros((40, 61), np.uint8))
    before = listing(folder)
    result = command("conv2d_predict.py", folder, folder)
    assert_refused(result, "y_a.npy", "(40, 61)", "X_a.npy", "(40, 60)")
    assert listing(folder) == before


# Weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of the weights of a network with few hidden units: 16 MB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module, "HIDDEN_UNITS", 100)
        file = tmp_path_factory.mktemp("weights") / "model.pt"
        save_network(file, NeuronNet(torch.Generator().manual_seed(0)), {"seed": 0})
    return file


@pytest.fixture
def few_hidden_units(monkeypatch):
    monkeypatch.setattr(network_module, "HIDDEN_UNITS", 100)


def test_the_weights_themselves_are_read(weights, few_hidden_units):
    assert load_network(weights)[1] == {"seed": 0}


def test_weights_of_another_network(weights):
    with pytest.raises(UserError, match=r"model\.pt: holds the weights of another network"):
        load_network(weights)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_truncated_weights(weights, few_hidden_units, tmp_path, kept):
    content = weights.read_bytes()
    size = kept if isinstance(kept, int) else int(kept * len(content))
    (tmp_path / "model.pt").write_bytes(content[:size])
    with pytest.raises(UserError, match=r"model\.pt: .*--save-model"):
        load_network(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"archive/data.pkl", b"archi\x80e/data.pkl"),
        (b"settings", b"setting\xc2"),
        (b"PK\x01\x02", b"PK\x01\x00"),
    ],
)
def test_damaged_weights(weights, few_hidden_units, tmp_path, old, new):
    content = weights.read_bytes()
    assert old in content
    (tmp_path / "model.pt").write_bytes(content.replace(old, new))
    with pytest.raises(UserError, match=r"model\.pt: .*--save-model"):
        load_network(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"weights": {}},
        {"format": "another", "weights": {}, "settings": {}},
        {"conv1.weight": torch.zeros(3)},
        torch.zeros(2, 2),
    ],
    ids=["a list", "one key", "another format", "plain weights", "a tensor"],
)
def test_files_of_pytorch_that_are_no_weights(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt: holds something else"):
        load_network(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["conv", None])
def test_weights_that_are_no_tensors_or_not_finite(weights, few_hidden_units, tmp_path, name):
    content = torch.load(weights, weights_only=True)
    key = next(iter(content["weights"]))
    content["weights"][key] = "text" if name else content["weights"][key] * float("nan")
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt: "):
        load_network(tmp_path / "model.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_weights_that_would_run_code_are_refused(command, folder, tmp_path, zipped):
    trace = tmp_path / "trace"
    torch.save({"weights": Payload(trace)}, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    before = listing(tmp_path)
    result = command("conv2d_predict.py", folder, "--model", "model.pt")
    assert_refused(result, "model.pt", "--save-model")
    assert listing(tmp_path) == before
    torch.load(tmp_path / "model.pt", weights_only=False)["weights"].close()
    assert trace.exists()


# Options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["conv2d_predict.py", ".", ".", "--device", "cuda"], ["cuda", "--device"]),
        (["conv2d_predict.py", ".", ".", "--device", "gpu"], ["--device", "'gpu'", "cuda"]),
        (["conv2d_predict.py", ".", ".", "--iterations", "1e3"], ["--iterations", "1e3"]),
        (["conv2d_predict.py", ".", ".", "--stride", "-1"], ["--stride", "-1"]),
        (["conv2d_predict.py", ".", ".", "--batch-size", "1"], ["--batch-size", "at least 2"]),
        (["conv2d_predict.py", ".", ".", "--seed", "-1"], ["--seed"]),
        (["conv2d_predict.py", ".", ".", "--checkpoint-every", "nan"], ["--checkpoint-every", "nan"]),
        (["conv2d_crossvalidation.py", ".", "--folds", "two"], ["--folds", "two"]),
        (["conv2d_crossvalidation.py", ".", "--regions", "magic"], ["--regions", "watershed"]),
        (["play_animation.py", "frames", "--frames", "3:1", "--save", "a.gif"], ["--frames", "3:1"]),
        (["play_animation.py", "frames", "--speed", "inf", "--save", "a.gif"], ["--speed", "inf"]),
        (["play_animation.py", "frames", "--save", "a.doc"], ["a.doc", ".gif"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_options_that_cannot_be(command, folder, arguments, words):
    write_frames(folder / "frames", noise())
    before = listing(folder)
    assert_refused(command(*arguments), *words)
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("submission", "words"),
    [
        ([{"dataset": "other", "regions": []}], ["submission.json", "recording", "other"]),
        ([], ["submission.json", "list"]),
        ([{"dataset": "recording", "regions": [{"coordinates": [[40, 0]]}]}], ["submission.json", "[40, 0]"]),
    ],
)
def test_a_submission_of_something_else(command, tmp_path, submission, words):
    write_frames(tmp_path / "recording", noise())
    write_json(tmp_path / "submission.json", submission)
    before = listing(tmp_path)
    result = command("play_animation.py", "recording", "--submission", "submission.json", "--save", "a.gif")
    assert_refused(result, *words)
    assert listing(tmp_path) == before


# Names


NAMES = [
    "a b",
    "new\nline",
    "ünï",
    "-rf",
    "--help",
    "$(touch x)",
    "a'b",
    'a"b',
    "$\\frac$",
    "A",
    "a",
    "...",
    "%s",
]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_any_name_stays_in_its_place(command, tmp_path, monkeypatch):
    lab = tmp_path / "lab"
    for seed, name in enumerate(NAMES):
        write_frames(lab / name / "images", noise((30, 24), seed=seed), noise((30, 24), seed=100 + seed))
        write_regions(lab / name / "regions" / "regions.json", REGIONS[:1])
    monkeypatch.chdir(lab)
    before = listing(tmp_path)
    # Of the two names with a leading dash one is given as a path, the other behind `--`.
    for arguments in (("./-rf", *(name for name in NAMES if name[0] != "-")), ("--", "--help")):
        result = command("preprocessing.py", *arguments, "train")
        assert result.returncode == 0, result.stderr
    result = command("conv2d_predict.py", "train", "train", *QUICK)
    assert result.returncode == 0, result.stderr
    datasets = [entry["dataset"] for entry in json.loads((lab / "submission.json").read_text())]
    assert sorted(datasets) == sorted(NAMES)
    after = listing(tmp_path)
    assert {path: after[path] for path in before} == before
    new = {str(path.relative_to(lab)) for path in after.keys() - before.keys()}
    endings = ("X_{}.npy", "X_{}.png", "y_{}.npy", "regions_{}.json", "info_{}.json")
    prepared = {f"train/{ending.format(name)}" for name in NAMES for ending in endings}
    assert prepared <= new
    results = {path for path in new - prepared if "/" not in path}
    assert {f"submission_{name}.png" for name in NAMES} | {"train", "model.pt", "submission.json"} <= results
    # Nothing is in a folder of its own: no name was taken for a path.
    assert new == prepared | results


def test_a_name_in_letters_that_the_font_lacks_is_no_reason_to_warn(command, tmp_path):
    write_frames(tmp_path / "\u7ec6\u80de" / "images", noise())
    result = command("preprocessing.py", "\u7ec6\u80de", "out")
    assert result.returncode == 0 and result.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no such names")
@pytest.mark.parametrize(
    ("name", "words"), [(b"n" * 255, ["n" * 255, "shorten"]), (b"caf\xe9", ["caf\\udce9", "UTF-8", "rename"])]
)
def test_names_that_files_cannot_have(command, tmp_path, name, words):
    write_frames(tmp_path / os.fsdecode(name), noise())
    before = listing(tmp_path)
    assert_refused(command("preprocessing.py", os.fsdecode(name), "out"), *words)
    after = listing(tmp_path)
    assert after.pop(tmp_path / "out", None) is None and after == before


def test_prepared_data_under_a_name_that_results_could_not_have(folder):
    (folder / "X_a.npy").rename(folder / f"X_{'n' * 201}.npy")
    with pytest.raises(UserError, match="nnn: is a name of 201 bytes, 200 are possible; shorten it"):
        read_folder(folder)


# What belongs to somebody else


@pytest.mark.parametrize("images", ["images", "."])
def test_a_recording_is_no_output_folder(command, tmp_path, images):
    for seed, name in enumerate(("first", "second")):
        write_frames(tmp_path / name / images, noise(seed=seed))
    before = listing(tmp_path)
    assert_refused(
        command("preprocessing.py", "first", "second"), "second", "is a recording", "OUTPUT_FOLDER"
    )
    tifffile.imwrite(tmp_path / "third.tif", noise((3, *SHAPE)), photometric="minisblack")
    assert_refused(command("preprocessing.py", "first", "third.tif"), "third.tif", "is a recording")
    (tmp_path / "third.tif").unlink()
    assert listing(tmp_path) == before


def test_an_output_folder_may_hold_exports_of_an_earlier_run(command, tmp_path):
    write_frames(tmp_path / "first" / "images", noise())
    write_prepared(tmp_path / "out", "a", noise(), REGIONS)
    tifffile.imwrite(tmp_path / "out" / "submission_a_labels.tif", noise())
    assert command("preprocessing.py", "first", "out").returncode == 0


def test_a_folder_of_the_name_of_an_unfinished_run_stays(command, folder, weights):
    (folder / "thesis.unfinished").mkdir()
    (folder / "thesis.unfinished" / "chapter1.docx").write_text("years of work")
    before = listing(folder)
    predict = ("conv2d_predict.py", folder, "--model", weights, *QUICK, "--output", folder / "thesis.json")
    for resume in ((), ("--resume",)):
        assert_refused(command(*predict, *resume), "chapter1.docx", "--output")
        assert listing(folder) == before


def test_recordings_that_would_be_one_dataset_are_refused(command, tmp_path, weights):
    for seed, name in enumerate(("00.00", "neurofinder.00.00")):
        write_frames(tmp_path / name / "images", noise(seed=seed))
    assert_refused(
        command("preprocessing.py", "00.00", "neurofinder.00.00", "out"), "00.00", "one dataset", "rename"
    )
    for name in ("00.00", "neurofinder.00.00"):
        assert command("preprocessing.py", name, "out").returncode == 0
    before = listing(tmp_path)
    assert_refused(command("conv2d_predict.py", "out", "--model", weights), "00.00", "one dataset", "rename")
    assert listing(tmp_path) == before


def test_results_that_differ_after_a_dot_share_no_file(command, tmp_path, folder, weights):
    made = []
    for output in ("run.1", "run.2", "run.3.json", "run"):
        before = set(tmp_path.iterdir())
        result = command("conv2d_predict.py", folder, "--model", weights, *QUICK, "--output", output)
        assert result.returncode == 0, result.stderr
        made.append({path.name for path in set(tmp_path.iterdir()) - before})
    assert made[0] == {"run.1", "run.1.log.json", "run.1.report.html", "run.1_a.png", "run.1_b.png"}
    assert made[2] == {"run.3.json", "run.3.log.json", "run.3.report.html", "run.3_a.png", "run.3_b.png"}
    assert [len(files) for files in made] == [5] * 4


def test_a_folder_to_train_on_beside_a_model_is_refused(command, folder, weights):
    before = listing(folder)
    assert_refused(
        command("conv2d_predict.py", folder, folder, "--model", weights), "--model", "nothing is trained"
    )
    assert listing(folder) == before


def test_weights_say_which_background_and_recipe_count(command, folder, tmp_path, few_hidden_units):
    network = NeuronNet(torch.Generator().manual_seed(0))
    save_network(tmp_path / "model.pt", network, {"background": "subtract", "recipe": "2016"})
    predict = ("conv2d_predict.py", folder, "--model", tmp_path / "model.pt", *QUICK)
    result = command(*predict, "--background", "keep")
    assert result.returncode == 0 and "was trained with --background subtract" in result.stderr
    settings = json.loads((tmp_path / "submission.log.json").read_text())["settings"]
    assert settings["background"] == "subtract" and settings["regions"] == "connected"
    assert command(*predict, "--regions", "watershed").stderr == ""
    settings = json.loads((tmp_path / "submission.log.json").read_text())["settings"]
    assert settings["regions"] == "watershed" and "iterations" not in settings


def test_weights_that_do_not_say_were_trained_with_the_background(command, folder, weights, tmp_path):
    predict = ("conv2d_predict.py", folder, "--model", weights, *QUICK, "--background", "subtract")
    result = command(*predict)
    assert result.returncode == 0 and "was trained with --background keep" in result.stderr
    assert json.loads((tmp_path / "submission.log.json").read_text())["settings"]["background"] == "keep"


@pytest.mark.parametrize("words", ["DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory"])
def test_memory_that_runs_out_anywhere_is_one_line(command, folder, weights, monkeypatch, words):
    def short(*_, **__):
        raise RuntimeError(words)

    monkeypatch.setattr("neurodetect.detection.find_regions", short)
    assert_refused(command("conv2d_predict.py", folder, "--model", weights, *QUICK), "out of memory")


# A full disk


@contextmanager
def file_size_limit(size):
    """No file can be written beyond a number of bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="needs a limit to the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


PREPARED = ["X_recording.npy", "info_recording.json", "regions_recording.json", "y_recording.npy"]


@pytest.mark.parametrize(
    ("size", "fails"),
    [(20, PREPARED[0]), (1000, PREPARED[0]), (5000, PREPARED[0]), (10_000, "X_recording.png")],
)
def test_a_full_disk_leaves_whole_files(command, tmp_path, size, fails):
    """The files of a preparation are all new or all as they were; the picture comes after them."""
    for out, seed in (("out", 0), ("new", 1)):
        write_frames(tmp_path / "recording" / "images", noise(seed=seed))
        write_regions(tmp_path / "recording" / "regions" / "regions.json", REGIONS[seed:])
        assert command("preprocessing.py", "recording", out).returncode == 0
    old = listing(tmp_path / "out")
    assert sorted(path.name for path in old) == sorted([*PREPARED, "X_recording.png"])
    with file_size_limit(size):
        result = command("preprocessing.py", "recording", "out")
    assert_refused(result, fails, "cannot be written (File too large)", "make room")
    written = [tmp_path / "new" / name for name in PREPARED if fails not in PREPARED]
    expected = old | {tmp_path / "out" / path.name: path.read_bytes() for path in written}
    assert listing(tmp_path / "out") == expected


def test_weights_on_a_full_disk(tmp_path, few_hidden_units):
    network = NeuronNet(torch.Generator().manual_seed(0))
    (tmp_path / "model.pt").write_bytes(b"old")
    for size in (1, 1000, 1_000_000):
        with file_size_limit(size), pytest.raises(UserError, match=r"model\.pt: cannot be written"):
            save_network(tmp_path / "model.pt", network, {})
        assert listing(tmp_path) == {tmp_path / "model.pt": b"old"}


# Options


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("conv2d_predict.py", "train", "test", "--output", "."), "'.' is not the name of a file"),
        (("conv2d_predict.py", "train", "test", "--output", ""), "'' is not the name of a file"),
        (("conv2d_predict.py", "train", "test", "--output", "results/"), "'results/' is not the name"),
        (
            ("conv2d_predict.py", "train", "test", "--save-model", "there"),
            "'there' is not the name of a file",
        ),
        (("conv2d_crossvalidation.py", "train", "--output", "there"), "'there' is not the name of a file"),
        (("play_animation.py", "mouse", "--save", "there"), "'there' is not the name of a file"),
        (("conv2d_predict.py", "train", "test", "--output", "o", "--save-model", "./o"), "cannot be both"),
        (("conv2d_predict.py", "there", "--model", ""), "an argument is empty"),
        (("preprocessing.py", "", "out"), "an argument is empty"),
        (("conv2d_predict.py", "train", "test", "--smallest-area", "inf"), "inf is not a number at least 1"),
        (("conv2d_predict.py", "train", "test", "--threshold", "nan"), "nan is not a number from 0 to 1"),
    ],
)
def test_options_that_cannot_be_meant(command, tmp_path, words, said):
    (tmp_path / "there").mkdir()
    assert_refused(command(*words), said, "--help")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("words", "content"),
    [
        (("conv2d_predict.py", "train", "test", "--output"), b"II*\0 a movie"),
        (("conv2d_predict.py", "train", "test", "--output"), b'[{"coordinates": [[0, 1]]}]'),
        (("conv2d_predict.py", "test", "--model", "x.pt", "--output"), b"PK\3\4 of x.pt, x/data.pkl"),
        (("conv2d_predict.py", "train", "test", "--save-model"), b"PK\3\4 ROIs, 1.roi"),
        (("conv2d_crossvalidation.py", "train", "--output"), b'[{"dataset": "a", "regions": []}]'),
        (("play_animation.py", "mouse", "--save"), b"II*\0 a movie"),
        (("neurodetect/labels.py", "RoiSet.zip"), b"{}"),
    ],
)
def test_what_another_program_wrote_is_not_replaced(command, tmp_path, words, content):
    """Be it an input of the command, or the like of it that another command wrote."""
    file = tmp_path / "x.json"
    file.write_bytes(content)
    assert_refused(command(*words, file), "x.json: is no file of this command", "name another file")
    assert listing(tmp_path) == {file: content}


def test_what_the_same_command_wrote_is_replaced(command, folder, weights):
    run = ("conv2d_predict.py", folder, "--model", weights, *QUICK, "--output", "found.json")
    assert command(*run).returncode == 0
    first = (folder / "found.json").read_bytes()
    assert command(*run, "--threshold", 0.999).returncode == 0
    assert (folder / "found.json").read_bytes() != first
    (folder / "found.json").write_bytes(b"")
    assert command(*run).returncode == 0 and (folder / "found.json").read_bytes() == first


def test_a_model_is_said_not_to_be_saved(command, folder, weights):
    result = command("conv2d_predict.py", folder, "--model", weights, *QUICK, "--save-model", "new.pt")
    assert result.returncode == 0 and "new.pt is not written" in result.stderr
    assert not (folder / "new.pt").exists()


def test_weights_keep_their_recipe(command, folder, weights):
    result = command("conv2d_predict.py", folder, "--model", weights, *QUICK, "--recipe", "2016")
    assert result.returncode == 0 and "was trained with --recipe standard, which counts" in result.stderr
    settings = json.loads((folder / "submission.log.json").read_text())["settings"]
    assert settings["regions"] == "watershed"


def test_options_may_stand_between_folders(command, folder, weights):
    """As everywhere else."""
    for options in (("--stride", 20, "again"), ("again", "--stride", 20)):
        result = command("conv2d_predict.py", folder, *options, "--model", weights)
        assert_refused(result, "again", "there is no such file or folder")


def test_a_folder_may_begin_with_a_dash(command, tmp_path):
    write_frames(tmp_path / "-mouse" / "images", noise())
    assert command("preprocessing.py", "-q", "--", "-mouse", "out").returncode == 0
    assert (tmp_path / "out" / "X_-mouse.npy").exists()


@pytest.mark.parametrize(
    "words",
    [("test", "--channel", 0), ("test", "--plane", 0), ("test", "--crop", "0:9,0:9")],
)
def test_options_for_recordings_mean_nothing_for_prepared_ones(command, folder, weights, words):
    write_prepared("test", "a", noise(), REGIONS)
    assert_refused(command("conv2d_predict.py", *words, "--model", weights), words[1], "leave it out")
