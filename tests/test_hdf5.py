from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurodetect.files import UserError
from neurodetect.formats.hdf5 import Hdf5Frames, is_hdf5
from neurodetect.formats.segmentation import read_plane_segmentation
from neurodetect.recording import open_recording

SHAPE = (6, 9)


def make_frames(count, dtype=np.uint16, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=(count, *shape)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (count, *shape), dtype, endpoint=True)


def write_hdf5(path, attributes=None, userblock_size=0, **datasets) -> Path:
    """Each dataset is an array, or (array, options of `create_dataset`); `a__b` is dataset b of group a."""
    with h5py.File(path, "w", userblock_size=userblock_size) as file:
        for name, data in datasets.items():
            data, options = data if isinstance(data, tuple) else (data, {})
            dataset = file.create_dataset(name.replace("__", "/"), data=data, **options)
            dataset.attrs.update(attributes or {})
    return path


def write_nwb(path, dimension=None, **series) -> Path:
    """NWB's structure, as its schema names it; each series is (neurodata_type, data)."""
    with h5py.File(path, "w") as file:
        file.attrs["nwb_version"] = "2.7.0"
        for name, (kind, data) in series.items():
            group = file.create_group(name if "/" in name else f"acquisition/{name}")
            group.attrs["neurodata_type"] = kind
            group["data"] = data
            group["starting_time"] = 0.0
            group["starting_time"].attrs["rate"] = 7.5
            if dimension is not None:
                group["dimension"] = dimension
    return path


def refused(path, match, **options):
    with pytest.raises(UserError, match=match) as error:
        list(Hdf5Frames(path, **options))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# Frames and blocks


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "float32"])
@pytest.mark.parametrize("options", [{}, {"chunks": (2, 3, 9)}, {"chunks": (5, 6, 9), "compression": "gzip"}])
def test_an_hdf5_movie(tmp_path, monkeypatch, dtype, options):
    monkeypatch.setattr("neurodetect.formats.hdf5.BLOCK_BYTES", 3 * 6 * 9 * np.dtype(dtype).itemsize)
    frames = make_frames(21, np.dtype(dtype).newbyteorder("="))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("group/mov", data=frames.astype(dtype), **options)
        file["mean"] = frames[0]
        file["names"] = np.full((2, 2, 2), b"text")
        file["masks"] = np.zeros((2, *SHAPE), bool)
    recording = Hdf5Frames(tmp_path / "m.h5")
    assert recording.shape == SHAPE and recording.dtype == frames.dtype and recording.notes == []
    assert recording.rate_hz is None and recording.pixels_per_micron is None
    assert len(recording) == 21
    assert np.array_equal(np.array(list(recording)), frames)
    assert np.array_equal(np.array(list(recording.between(4, 18))), frames[4:18])
    assert all(np.array_equal(recording.frame(index), frames[index]) for index in (20, 0, 5, 4))
    assert all(frame.dtype == recording.dtype for frame in recording)
    with pytest.raises(IndexError):
        recording.frame(21)


def test_a_recording_and_its_labels(tmp_path):
    write_hdf5(tmp_path / "m.h5", mov=make_frames(20))
    (tmp_path / "m.regions.json").write_text(json.dumps([{"coordinates": [[5, 8]]}]))
    recording = open_recording(tmp_path / "m.h5")
    assert recording.name == "m" and recording.shape == SHAPE and len(recording) == 20
    assert [region.tolist() for region in recording.regions] == [[[5, 8]]]


@pytest.mark.parametrize("offset", [0, 512, 1024, 2048, 65536])
def test_hdf5_is_known_by_its_content(tmp_path, offset):
    path = write_hdf5(tmp_path / "movie.tif", userblock_size=offset, mov=make_frames(20))
    assert is_hdf5(path) and h5py.is_hdf5(path)
    assert len(Hdf5Frames(path)) == 20
    path.write_bytes(b"x" + path.read_bytes())
    assert not is_hdf5(path) and not h5py.is_hdf5(path)
    path.write_bytes(b"")
    assert not is_hdf5(path)


# Chunks: axes of the dataset, size of a chunk in that order.
@pytest.mark.parametrize(
    "axes, chunk, count",
    [
        ("TYX", (40, 4, 5), 40),
        ("TYX", (7, 4, 5), 40),
        ("TXY", (40, 3, 2), 40),
        ("YXT", (4, 5, 40), 40),
        ("YXT", None, 40),
        ("TZYX", (40, 2, 4, 5), 40),
        ("ZTYX", (1, 30, 16, 5), 40),
    ],
)
@pytest.mark.parametrize("start, stop", [(0, 40), (3, 38), (39, 40), (5, 5)])
def test_tiles_are_the_movie_and_take_each_chunk_once(tmp_path, monkeypatch, axes, chunk, count, start, stop):
    bound = 1000
    monkeypatch.setattr("neurodetect.formats.hdf5.BLOCK_BYTES", bound)
    frames = make_frames(count, shape=(16, 22))
    order = ["TYX".index(letter) for letter in axes.replace("Z", "")]
    data = frames.transpose(order)
    options = {"axes": axes}
    if "Z" in axes:
        options["plane"] = 2
        data = np.stack([data // 2, data, data // 3], axis=axes.index("Z"))
    kind = {"chunks": chunk, "compression": "gzip"} if chunk else {}
    movie = Hdf5Frames(write_hdf5(tmp_path / "m.h5", mov=(data, kind)), **options)
    assert np.array_equal(np.array(list(movie.between(start, stop))).reshape(-1, 16, 22), frames[start:stop])
    sizes = dict(zip(axes, chunk or (1, *data.shape[1:]), strict=True))
    read = np.zeros((stop - start, 16, 22), np.uint16)
    times_read = np.zeros((stop - start, 16, 22), int)
    chunks_read = set()
    for (rows, columns), blocks in movie.tiles(start, stop):
        at = 0
        for block in blocks:
            assert block.nbytes <= max(bound, 2 * sizes["T"] * sizes["Y"] * sizes["X"])
            place = slice(at, at + len(block)), rows, columns
            read[place], times_read[place] = block, times_read[place] + 1
            spans = zip(
                (start + at, rows.start, columns.start),
                (start + at + len(block), rows.stop, columns.stop),
                (sizes[letter] for letter in "TYX"),
                strict=True,
            )
            touched = set(itertools.product(*(range(a // n, -(-b // n)) for a, b, n in spans)))
            assert not touched & chunks_read
            chunks_read |= touched
            at += len(block)
    assert np.array_equal(read, frames[start:stop]) and np.all(times_read == 1)


@pytest.mark.parametrize("chunk", [None, (1, 16, 22), (20, 16, 22), (2, 4, 5), (40, 16, 22)])
def test_whole_frames_where_those_are_as_cheap(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("neurodetect.formats.hdf5.BLOCK_BYTES", 2000)
    frames = make_frames(40, shape=(16, 22))
    movie = Hdf5Frames(write_hdf5(tmp_path / "m.h5", mov=(frames, {"chunks": chunk})))
    assert movie.tiles(0, 40) is None
    assert np.array_equal(list(movie), frames)


def test_infinite_pixels_are_refused_and_missing_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr("neurodetect.formats.hdf5.BLOCK_BYTES", 100)
    frames = make_frames(20, np.float32)
    frames[3, 1] = np.nan
    path = write_hdf5(tmp_path / "m.h5", mov=(frames, {"chunks": (20, 2, 3)}))
    assert np.array_equal(list(Hdf5Frames(path)), frames, equal_nan=True)
    frames[7, 2, 2] = np.inf
    refused(write_hdf5(path, mov=(frames, {"chunks": (20, 2, 3)})), "frame 7 has infinite")
    with pytest.raises(UserError, match="frame 7 has infinite"):
        for _, blocks in Hdf5Frames(path).tiles(0, 20):
            list(blocks)


# Which dataset


def test_one_of_several_movies(tmp_path):
    red, green = make_frames(20), make_frames(20, np.int16)
    path = write_hdf5(tmp_path / "m.h5", a__red=red, b__green=green, b__mean=green[0])
    refused(path, r"--dataset NAME, of a/red \(20 x 6 x 9 uint16\), b/green \(20 x 6 x 9 int16\)")
    for name, frames in {"red": red, "/a/red": red, "b/green": green}.items():
        movie = Hdf5Frames(path, dataset=name)
        assert np.array_equal(list(movie), frames)
    assert movie.notes == ["b/green is read, left out: a/red (20 x 6 x 9 uint16)"]
    refused(path, "no dataset blue; it holds a/red", dataset="blue")
    refused(path, "/b/mean is 6 x 9 int16", dataset="mean")
    write_hdf5(path, a__mov=red, b__mov=green)
    refused(path, "more than one movie: .* a/mov .*, b/mov", dataset="mov")


def test_a_note_on_datasets_of_any_name_is_a_line(tmp_path):
    path = write_hdf5(tmp_path / "m.h5", **{"a\n warning: b": make_frames(20), "red": make_frames(20)})
    assert open_recording(path, dataset="red").notes == [
        "red is read, left out: a warning: b (20 x 6 x 9 uint16)"
    ]


@pytest.mark.parametrize("beside", [np.zeros((3, *SHAPE), np.uint8), np.zeros((1, *SHAPE), np.float32)])
def test_masks_or_projections_beside_a_movie_are_not_guessed(tmp_path, beside):
    refused(write_hdf5(tmp_path / "m.h5", mov=make_frames(20), other=beside), "--dataset NAME, of mov")


def test_a_file_without_a_movie_says_what_it_holds(tmp_path):
    path = tmp_path / "m.hdf5"
    path.write_bytes(b"no HDF5 file")
    refused(path, "cannot be read as HDF5")
    refused(write_hdf5(path, mean=make_frames(1)[0]), r"has no movie .*mean \(6 x 9 uint16\)")
    refused(
        write_hdf5(path, mov=make_frames(20).reshape(20, -1)), r"rows and columns cannot be told.*20 x 54"
    )
    refused(write_hdf5(path, estimates__A__data=np.ones(5)), "results of an analysis")
    refused(write_hdf5(path, **{f"{n}": np.ones(n + 1) for n in range(30)}), "29 .30 float64.*, 22 more")
    refused(write_hdf5(path), "it holds no arrays")
    refused(write_hdf5(path, **{"a\nb": np.ones(3)}), "a b")


def test_the_series_of_an_nwb_file(tmp_path):
    path = tmp_path / "m.nwb"
    frames = make_frames(4)
    turned = frames.transpose(0, 2, 1)
    write_nwb(path, a=("TwoPhotonSeries", turned), b=("TwoPhotonSeries", turned[:3]))
    refused(path, "--dataset NAME, of acquisition/a/data .*, acquisition/b/data")
    assert len(Hdf5Frames(path, dataset="b")) == 3
    write_nwb(path, a=("ElectricalSeries", turned))
    refused(path, "has no image series")
    write_nwb(path, a=("ImageSeries", np.zeros((0, 0, 0))))  # with `external_file`
    refused(path, "has no frames in it")
    corrected = {"processing/ophys/MotionCorrection/corrected": ("ImageSeries", turned[:2])}
    shown = {"stimulus/presentation/film": ("TwoPhotonSeries", turned)}
    write_nwb(path, raw=("TwoPhotonSeries", turned), **corrected, **shown)
    movie = Hdf5Frames(path)
    assert np.array_equal(list(movie), frames) and "left out: processing/ophys" in movie.notes[0]
    for name in ("corrected", "MotionCorrection/corrected", "corrected/data"):
        assert np.array_equal(list(Hdf5Frames(path, dataset=name)), frames[:2])
    write_nwb(path, raw=("TwoPhotonSeries", np.zeros((0, 0, 0))), **corrected)
    refused(path, "has no frames in it: choose with --dataset NAME, of processing/ophys")
    write_nwb(path, **corrected)
    assert np.array_equal(list(Hdf5Frames(path)), frames[:2])


def test_hdf5_that_leads_to_other_files_is_not_followed(tmp_path):
    path, other = tmp_path / "m.h5", write_hdf5(tmp_path / "other.h5", mov=make_frames(3))
    with h5py.File(path, "w") as file:
        file["mov"] = h5py.ExternalLink(str(other), "mov")
        file["again"] = h5py.SoftLink("/mov")
    refused(path, "has no movie")
    refused(path, "has no dataset", dataset="mov")
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((3, *SHAPE), np.uint16)
        layout[:] = h5py.VirtualSource(str(other), "mov", (3, *SHAPE))
        file.create_virtual_dataset("mov", layout)
    refused(path, "in other files")
    with h5py.File(path, "w") as file:
        file.create_dataset("mov", (3, *SHAPE), "u1", external=[(str(other), 0, h5py.h5f.UNLIMITED)])
    refused(path, "in other files")


def test_hdf5_frames_that_cannot_be(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("mov", (3, 10**6, 10**6), np.uint16, chunks=(1, 64, 64))[0, 0, 0] = 1
    refused(path, "claims 1000000000000 pixels")
    with h5py.File(path, "w") as file:
        file.create_dataset("mov", (10**12, *SHAPE), np.uint16, chunks=(1, *SHAPE))
    refused(path, "has no frames in it")
    write_hdf5(path, mov=make_frames(100))
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "cannot be read as HDF5")


def test_hdf5_without_h5py(tmp_path, monkeypatch):
    path = write_hdf5(tmp_path / "m.h5", mov=make_frames(1))
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, "pip install h5py")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["movie.h5", "series.nwb", "masks.nwb"]))
def test_damaged_bytes_are_read_or_refused_but_never_a_traceback(tmp_path, data, kind):
    path = tmp_path / kind
    if kind == "movie.h5":
        write_hdf5(path, {"element_size_um": [1, 1, 1]}, mov=(make_frames(2), {"compression": "gzip"}))
    else:
        write_nwb(path, [9, 6], movie=("TwoPhotonSeries", make_frames(2)))
    if kind == "masks.nwb":
        write_segmentation(path, pixels=[[[0, 0]], [[5, 8], [4, 8]]])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for frame in Hdf5Frames(path):
            assert frame.ndim == 2
        read_plane_segmentation(path, (9, 6))
    except UserError as error:
        assert "\n" not in str(error)


# Which axis is which


@pytest.mark.parametrize("axes", ["".join(letters) for letters in itertools.permutations("TYX")])
@pytest.mark.parametrize("transpose", [False, True])
def test_axes_that_the_user_names(tmp_path, axes, transpose):
    frames = make_frames(8)
    data = frames.transpose(["TYX".index(letter) for letter in axes])
    movie = Hdf5Frames(write_hdf5(tmp_path / "m.h5", mov=data), axes=axes.lower(), transpose=transpose)
    expected = frames.transpose(0, 2, 1) if transpose else frames
    assert movie.shape == expected.shape[1:] and movie.notes == []
    assert np.array_equal(list(movie), expected) and np.array_equal(movie.frame(3), expected[3])


@pytest.mark.parametrize("axes", ["TZYXC", "CTZXY", "YXZTC"])
@pytest.mark.parametrize("labels", [False, True])
def test_channels_and_planes_that_have_a_name(tmp_path, axes, labels):
    volume = make_frames(5 * 3 * 2).reshape(5, 3, *SHAPE, 2)
    data = volume.transpose(["TZYXC".index(letter) for letter in axes])
    path = write_hdf5(tmp_path / "m.h5", mov=data)
    if labels:
        with h5py.File(path, "r+") as file:
            names = dict(zip("TZYXC", ["time", "z", "y", "X", "channel"], strict=True))
            for axis, letter in enumerate(axes):
                file["mov"].dims[axis].label = names[letter]
    named = {} if labels else {"axes": axes}
    movie = Hdf5Frames(path, channel=2, plane=3, **named)
    assert np.array_equal(list(movie), volume[:, 2, :, :, 1])
    assert movie.notes == [
        "channel 2 of 2 is read, the others are left out",
        "plane 3 of 3 is read, the others are left out",
    ]
    refused(path, "has 2 channels.*--channel N", plane=1, **named)
    refused(path, "has 3 planes.*--plane N", channel=1, **named)
    if not labels:
        refused(path, "--axes", channel=1, plane=1)
        for wrong in ("TYX", "TZYX?", "TTZYX", "TZYXCC", "TZCXX", ""):
            refused(path, "does not fit", axes=wrong)


def test_a_stack_of_planes_is_no_movie(tmp_path):
    frames = make_frames(20)
    path = write_hdf5(tmp_path / "m.h5", mov=frames)
    with h5py.File(path, "r+") as file:
        for axis, label in enumerate("zyx"):
            file["mov"].dims[axis].label = label
    refused(path, "of axes ZYX, so it is no movie")
    assert np.array_equal(list(Hdf5Frames(path, axes="TYX")), frames)


@pytest.mark.parametrize("shape", [(20, 6, 9, 1), (20, 1, 6, 9), (20, 1, 1, 6, 9), (1, 20, 1, 6, 9)])
def test_axes_of_length_one_are_no_axes(tmp_path, shape):
    frames = make_frames(20)
    path = write_hdf5(tmp_path / "m.h5", mov=frames.reshape(shape))
    assert np.array_equal(list(Hdf5Frames(path)), frames)
    assert np.array_equal(list(Hdf5Frames(path, axes="TYX")), frames)
    refused(path, "plane", plane=2)


@pytest.mark.parametrize("kind, word", [("plane", "Z"), ("channel", "C")])
@pytest.mark.parametrize("axis", [1, 3])
def test_a_fourth_axis_that_says_nothing(tmp_path, kind, word, axis):
    several = [make_frames(80, shape=(24, 32), seed=seed) for seed in range(3)]
    path = write_hdf5(tmp_path / "m.h5", mov=np.stack(several, axis=axis))
    refused(path, "3 planes or channels.*--plane N or --channel N, of 1 to 3")
    movie = Hdf5Frames(path, **{kind: 2})
    assert np.array_equal(list(movie), several[1])
    refused(path, f"no.* --?{kind} 4|no {kind} 4", **{kind: 4})
    refused(path, "3 planes or channels", plane=1, channel=1)
    # Time last: rows x columns x time with the other axis somewhere.
    several = [frames[:20] for frames in several]
    data = np.stack([frames.transpose(1, 2, 0) for frames in several], axis=axis)
    axes = f"Y{word}XT" if axis == 1 else f"YXT{word}"
    refused(write_hdf5(path, mov=data), f"--axes {axes}", **{kind: 2})
    assert np.array_equal(list(Hdf5Frames(path, axes=axes, **{kind: 2})), several[1])


@pytest.mark.parametrize("shape", [(2, 100, 24, 32), (2, 10, 24, 32), (10, 2, 24, 32), (40, 20, 24, 32)])
def test_four_axes_that_cannot_be_told_are_not_guessed(tmp_path, shape):
    refused(write_hdf5(tmp_path / "m.h5", mov=np.ones(shape, np.uint8)), "--axes", channel=2)


@pytest.mark.parametrize(
    "shape, options",
    [
        ((64, 64, 40), {}),
        ((96, 128, 40), {}),
        ((128, 256, 20), {}),
        ((96, 128, 300), {}),
        ((64, 64, 300), {}),
        ((40, 60, 50), {"maxshape": (40, 60, None)}),
        ((40, 60, 50), {"chunks": (40, 60, 1)}),
        ((40, 60, 50), {"chunks": (40, 60, 7)}),
        ((40, 60, 50), {"chunks": (8, 8, 50)}),
        ((96, 128, 40), {"chunks": (1, 128, 40)}),
        ((96, 128, 40), {"chunks": True}),
    ],
)
def test_rows_x_columns_x_time_is_never_read_as_frames(tmp_path, shape, options):
    data = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    path = write_hdf5(tmp_path / "m.h5", mov=(data, options))
    refused(path, rf"{shape[0]} x {shape[1]} x {shape[2]} uint32, .*rows x columns x time: --axes YXT")
    refused(path, "--axes YXT", transpose=True)
    movie = Hdf5Frames(path, axes="YXT")
    assert np.array_equal(movie.frame(3), data[..., 3]) and len(movie) == shape[2]
    assert Hdf5Frames(path, axes="TYX").shape == shape[1:]


@pytest.mark.parametrize(
    "shape, options, note",
    [
        ((40, 96, 128), {}, None),
        ((1000, 30, 40), {}, None),
        ((1000, 16, 64), {}, None),
        ((500, 8, 8), {}, None),
        ((7, 64, 64), {}, None),
        ((60, 64, 64), {}, None),
        ((64, 64, 64), {}, None),
        ((1, 64, 80), {}, None),
        ((30, 40, 50), {"chunks": (1, 40, 50)}, None),
        ((60, 60, 70), {"chunks": (8, 60, 70)}, None),
        ((30, 40, 70), {"chunks": (30, 8, 8)}, None),
        ((60, 60, 70), {"maxshape": (None, 60, 70)}, None),
        ((60, 96, 128), {}, "read as 60 frames of 96 x 128; where time is its last axis: --axes YXT"),
        ((500, 80, 50), {}, "80 rows x 50 columns; --transpose"),
    ],
)
def test_a_movie_of_frames_is_read_and_what_was_assumed_is_said(tmp_path, shape, options, note):
    data = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    path = write_hdf5(tmp_path / "m.h5", mov=(data, options))
    movie = Hdf5Frames(path)
    assert len(movie) == shape[0] and np.array_equal(movie.frame(shape[0] - 1), data[-1])
    assert len(movie.notes) == (note is not None) and (note or "") in "".join(movie.notes)
    assert np.array_equal(Hdf5Frames(path, transpose=True).frame(0), data[0].T)


def test_matlab_stores_axes_in_reverse(tmp_path):
    # MATLAB's movie(row, column, time) is (time, column, row) here, and it says that MATLAB wrote it.
    frames = make_frames(60, shape=(18, 27))
    turned = frames.transpose(0, 2, 1)
    path = tmp_path / "m.mat"

    def write(data):
        write_hdf5(path, {"MATLAB_class": np.bytes_("uint16")}, 512, Y=data)
        with open(path, "r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))

    write(turned)
    with h5py.File(path, "r+") as file:
        file["#refs#/a"] = turned  # of a cell array
    movie = Hdf5Frames(path)
    assert np.array_equal(list(movie), frames) and "MATLAB" in movie.notes[0]
    assert np.array_equal(list(Hdf5Frames(path, transpose=True)), turned)
    write(np.stack([turned // 2, turned], axis=1))
    assert np.array_equal(list(Hdf5Frames(path, plane=2)), frames)
    write(frames[:10].transpose(2, 1, 0))  # movie(time, row, column)
    refused(path, "columns x rows x time: --axes XYT")
    # What is called .mat but was not written by MATLAB is as any HDF5.
    write_hdf5(path, Y=frames)
    assert np.array_equal(list(Hdf5Frames(path)), frames)


@pytest.mark.parametrize("dimension", [None, [9, 6], [6, 9], [5, 5], [9], [9, 6, 1]])
@pytest.mark.parametrize("order", ["schema", "frames"])
def test_rows_and_columns_of_an_nwb_series(tmp_path, dimension, order):
    # `dimension` is (width, height): where the data are (time, x, y) or (time, y, x), it tells which.
    frames = make_frames(4)
    data = frames.transpose(0, 2, 1) if order == "schema" else frames
    path = write_nwb(tmp_path / "m.nwb", dimension, movie=("TwoPhotonSeries", data))
    movie = Hdf5Frames(path)
    told = dimension in ([9, 6], [9, 6, 1])
    if told or dimension == [6, 9]:
        tall = frames.transpose(0, 2, 1) if dimension == [6, 9] else frames
        assert movie.notes == [] and np.array_equal(list(movie), tall)
    else:
        assert np.array_equal(list(movie), data.transpose(0, 2, 1))
        assert movie.notes == [
            "rows and columns are as NWB's schema orders them, (time, x, y); --transpose turns them"
        ]
    turned = Hdf5Frames(path, transpose=True)
    assert np.array_equal([frame.T for frame in turned], list(movie)) and turned.notes == []


def test_a_square_nwb_series_says_that_its_order_was_assumed(tmp_path):
    frames = make_frames(3, shape=(9, 9))
    path = write_nwb(tmp_path / "m.nwb", [9, 9], movie=("TwoPhotonSeries", frames))
    movie = Hdf5Frames(path)
    assert np.array_equal(list(movie), frames.transpose(0, 2, 1)) and "--transpose" in movie.notes[0]


def test_planes_of_an_nwb_series_are_its_last_axis(tmp_path):
    frames = make_frames(4)
    volume = np.stack([frames // 2, frames], axis=-1)
    path = write_nwb(tmp_path / "m.nwb", [9, 6], movie=("TwoPhotonSeries", volume))
    refused(path, "has 2 planes")
    assert np.array_equal(list(Hdf5Frames(path, plane=2)), frames)
    write_nwb(path, movie=("TwoPhotonSeries", volume[..., 1:]))
    assert np.array_equal(list(Hdf5Frames(path, transpose=True)), frames)


# Rate and scale


def test_rate_and_an_eye_camera(tmp_path):
    camera = np.zeros((3, 5, 5), np.uint8)
    movie = ("TwoPhotonSeries", make_frames(4))
    path = write_nwb(tmp_path / "m.nwb", eye=("ImageSeries", camera), Movie=movie)
    assert Hdf5Frames(path).rate_hz == 7.5 and Hdf5Frames(path).shape == SHAPE[::-1]
    write_nwb(path, eye=("ImageSeries", camera))
    assert Hdf5Frames(path).shape == (5, 5)


@pytest.mark.parametrize(
    "spacing, unit, expected",
    [
        ([8e-7, 8e-7], "meters", 1.25),
        ([8e-7, 8e-7, 5e-6], None, 1.25),
        ([2.0, 2.0], "micrometers", 0.5),
        ([0.002, 0.002], b"mm", 0.5),
        ([2.0, 2.0], "meters", None),  # nobody's microscope
        ([8e-7, 9e-7], "meters", None),
        ([8e-7, 8e-7], "pixels", None),
        ([np.nan, np.nan], "meters", None),
        ([0.0, 0.0], "meters", None),
        ([8e-7], "meters", None),
        ([b"a", b"b"], "meters", None),
    ],
)
def test_the_scale_of_an_imaging_plane(tmp_path, spacing, unit, expected):
    path = write_nwb(tmp_path / "m.nwb", movie=("TwoPhotonSeries", make_frames(4)))
    with h5py.File(path, "r+") as file:
        for name, values in {"plane": spacing, "other": [1e-6, 1e-6]}.items():
            group = file.create_group(f"general/optophysiology/{name}")
            group.attrs["neurodata_type"] = "ImagingPlane"
            group["grid_spacing"] = values
            if unit is not None:
                group["grid_spacing"].attrs["unit"] = unit
        file["acquisition/movie/imaging_plane"] = h5py.SoftLink("/general/optophysiology/plane")
    assert Hdf5Frames(path).pixels_per_micron == pytest.approx(expected)
    with h5py.File(path, "r+") as file:
        del file["acquisition/movie/imaging_plane"]
        file["acquisition/movie/imaging_plane"] = h5py.ExternalLink("elsewhere.h5", "/plane")
    assert Hdf5Frames(path).pixels_per_micron is None


def test_the_scale_of_a_plain_dataset(tmp_path):
    path = write_hdf5(tmp_path / "m.h5", {"element_size_um": [3.0, 0.5, 0.5]}, mov=make_frames(20))
    assert Hdf5Frames(path).pixels_per_micron == 2
    write_hdf5(path, {"element_size_um": "half"}, mov=make_frames(20))
    assert Hdf5Frames(path).pixels_per_micron is None


# Neurons of an NWB file


def write_segmentation(path, name="ophys/PlaneSegmentation", masks=None, pixels=None, iscell=None, weights=1):
    """Masks (n, x, y), or pixels of each neuron as [row, column]."""
    with h5py.File(path, "a") as file:
        file.attrs["nwb_version"] = "2.7.0"
        group = file.create_group(f"processing/{name}")
        group.attrs["neurodata_type"] = "PlaneSegmentation"
        if masks is not None:
            group["image_mask"] = masks
        if pixels is not None:
            kind = [("x", np.uint32), ("y", np.uint32), ("weight", np.float32)]
            flat = [(column, row, weights) for neuron in pixels for row, column in neuron]
            group["pixel_mask"] = np.array(flat, kind)
            group["pixel_mask_index"] = np.cumsum([len(neuron) for neuron in pixels]).astype(np.uint8)
        if iscell is not None:
            group["iscell"] = iscell
    return path


NEURONS = [[[0, 8], [1, 7], [1, 8]], [[5, 0]]]


def as_lists(regions):
    return [region.tolist() for region in regions]


def make_masks(shape, dtype=np.float32):
    masks = np.zeros((len(NEURONS), *shape), dtype)
    for mask, neuron in zip(masks, NEURONS, strict=True):
        mask[tuple(np.transpose(neuron))] = 1 if mask.dtype == bool else 0.25
    return masks


@pytest.mark.parametrize("dtype", [np.float32, bool])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("at_once", [1, 2**20])
def test_masks_of_neurons(tmp_path, monkeypatch, dtype, turned, at_once):
    monkeypatch.setattr("neurodetect.formats.segmentation.MASKS_BYTES", at_once)
    masks = make_masks(SHAPE, dtype)
    path = write_segmentation(tmp_path / "m.nwb", masks=masks.transpose(0, 2, 1) if turned else masks)
    assert as_lists(read_plane_segmentation(path, SHAPE)) == NEURONS  # either way: only one fits
    with pytest.raises(UserError, match="masks of .* px, but the recording is 6 x 8"):
        read_plane_segmentation(path, (6, 8))


def test_masks_of_a_square_image_are_as_the_movie_is(tmp_path):
    masks = make_masks((9, 9))
    path = write_segmentation(tmp_path / "schema.nwb", masks=masks.transpose(0, 2, 1))
    assert as_lists(read_plane_segmentation(path, (9, 9))) == NEURONS
    path = write_segmentation(tmp_path / "turned.nwb", masks=masks)
    write_nwb(tmp_path / "movie.nwb", movie=("TwoPhotonSeries", make_frames(3, shape=(9, 9))))
    for options in ({"transpose": True}, {"axes": "TYX"}, {"axes": "TXY", "transpose": True}):
        movie = Hdf5Frames(tmp_path / "movie.nwb", **options)
        assert as_lists(read_plane_segmentation(path, movie.shape, movie.turned)) == NEURONS
    assert not Hdf5Frames(tmp_path / "movie.nwb").turned


def test_pixels_of_neurons(tmp_path):
    path = write_segmentation(tmp_path / "m.nwb", pixels=NEURONS)
    assert as_lists(read_plane_segmentation(path, SHAPE)) == NEURONS
    exchanged = [sorted([column, row] for row, column in neuron) for neuron in NEURONS]
    assert as_lists(read_plane_segmentation(path, SHAPE[::-1])) == exchanged
    assert as_lists(read_plane_segmentation(path, (9, 9), transpose=True)) == exchanged
    with pytest.raises(UserError, match="has pixels that are not in the recording's 5 x 9"):
        read_plane_segmentation(path, (5, 9))
    with h5py.File(path, "r+") as file:
        file["processing/ophys/PlaneSegmentation/pixel_mask_index"][0] = 200
    with pytest.raises(UserError, match="pixel_mask_index that does not fit"):
        read_plane_segmentation(path, SHAPE)
    with h5py.File(path, "r+") as file:
        del file["processing/ophys/PlaneSegmentation/pixel_mask_index"]
    with pytest.raises(UserError, match=r"is not \(x, y, weight\)"):
        read_plane_segmentation(path, SHAPE)


def test_what_is_no_neuron_is_left_out_with_a_warning(tmp_path):
    path = write_segmentation(tmp_path / "a.nwb", pixels=NEURONS, iscell=np.array([[0, 0.1], [1, 0.9]]))
    with pytest.warns(UserWarning, match="1 of 2 are cells"):
        assert as_lists(read_plane_segmentation(path, SHAPE)) == NEURONS[1:]
    path = write_segmentation(tmp_path / "b.nwb", pixels=NEURONS, weights=0)
    with pytest.warns(UserWarning, match="2 neurons have no pixel"):
        assert read_plane_segmentation(path, SHAPE) == []
    with pytest.warns(UserWarning, match="neither image_mask nor pixel_mask"):
        assert read_plane_segmentation(write_segmentation(tmp_path / "c.nwb"), SHAPE) is None


def test_none_and_several_segmentations(tmp_path):
    path = write_nwb(tmp_path / "m.nwb", movie=("TwoPhotonSeries", make_frames(2)))
    assert read_plane_segmentation(path, SHAPE) is None
    for name in ("ophys/a", "ophys/b"):
        write_segmentation(path, name, pixels=NEURONS)
    with pytest.raises(UserError, match="processing/ophys/a, processing/ophys/b; .*--labels FILE"):
        read_plane_segmentation(path, SHAPE)


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((12, 16, 24), "doubtful"),  # few frames, of a usual form
        ((500, 16, 24), "sure"),
        ((40, 16, 16), "sure"),
        ((16, 24, 8), "refused"),  # 16 frames of 24 x 8?
        ((16, 16, 10), "refused"),
        ((16, 16, 100), "refused"),
    ],
)
def test_frames_of_a_usual_form_are_read_and_narrow_ones_are_not(tmp_path, shape, read):
    movie = np.random.default_rng(0).integers(1, 99, shape).astype(np.uint8)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["mov"] = movie
    if read == "refused":
        with pytest.raises(UserError, match="--axes YXT reads it so"):
            open_recording(tmp_path / "m.h5")
        return
    recording = open_recording(tmp_path / "m.h5")
    assert np.array_equal(list(recording), movie)
    assert any("--axes YXT" in note for note in recording.notes) == (read == "doubtful")


def test_neurons_of_another_imaging_plane_are_not_this_movies(tmp_path):
    movie = np.random.default_rng(0).integers(1, 99, (20, 9, 6)).astype(np.uint16)
    masks = np.zeros((2, 9, 6), np.uint8)
    masks[0, 1:3, 1:3] = masks[1, 5:8, 2:5] = 1
    with h5py.File(tmp_path / "m.nwb", "w") as file:
        file.attrs["nwb_version"] = "2.6.0"
        for number in range(2):
            file.create_group(f"general/optophysiology/P{number}").attrs["neurodata_type"] = "ImagingPlane"
            series = file.create_group(f"acquisition/plane{number}")
            series.attrs["neurodata_type"] = "TwoPhotonSeries"
            series["data"] = movie
            series["imaging_plane"] = h5py.SoftLink(f"/general/optophysiology/P{number}")
        table = file.create_group("processing/ophys/ImageSegmentation/PlaneSegmentation")
        table.attrs["neurodata_type"] = "PlaneSegmentation"
        table["image_mask"] = masks
        table["imaging_plane"] = h5py.SoftLink("/general/optophysiology/P0")
    assert [len(region) for region in open_recording(tmp_path / "m.nwb", dataset="plane0").regions] == [4, 9]
    assert open_recording(tmp_path / "m.nwb", dataset="plane1").regions is None
