from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurodetect.files import UserError
from neurodetect.recording import open_recording

SHAPE = (6, 9)


def make_frames(count, dtype=np.uint16, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=(count, *SHAPE)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (count, *SHAPE), dtype, endpoint=True)


def write_files(folder: Path, frames, name="image{}.tiff", **options) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        tifffile.imwrite(folder / "images" / name.format(index), frame, **options)
    return folder


def test_frames_come_in_natural_order(tmp_path):
    frames = make_frames(12)
    recording = open_recording(write_files(tmp_path / "rec", frames))  # image2 is after image1, not image11
    assert recording.name == "rec"
    assert recording.shape == SHAPE
    assert len(recording) == 12
    assert np.array_equal(list(recording.frames()), frames)
    assert np.array_equal(list(recording), frames)
    assert all(np.array_equal(recording.frame(index), frame) for index, frame in enumerate(frames))
    with pytest.raises(IndexError):
        recording.frame(12)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "int32", "float32", "float64"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_every_number_type_and_byte_order(tmp_path, dtype, byteorder):
    frames = make_frames(3, dtype)
    recording = open_recording(write_files(tmp_path, frames, "f{}.TIF", byteorder=byteorder))
    assert recording.dtype == np.dtype(dtype)
    assert np.array_equal(list(recording), frames)


def test_several_frames_a_file_and_one(tmp_path):
    frames = make_frames(8)
    write_files(tmp_path, [frames[:3], frames[3:4], frames[4:]], photometric="minisblack")
    recording = open_recording(tmp_path)
    assert len(recording) == 8
    assert np.array_equal(list(recording), frames)
    assert all(np.array_equal(recording.frame(index), frame) for index, frame in enumerate(frames))


@pytest.mark.parametrize(
    "options", [{}, {"bigtiff": True}, {"imagej": True}, {"rowsperstrip": 2}, {"truncate": True}]
)
def test_a_stack_is_a_recording(tmp_path, options):
    frames = make_frames(5)
    tifffile.imwrite(tmp_path / "stack.tif", frames, photometric="minisblack", **options)
    recording = open_recording(tmp_path / "stack.tif")
    assert recording.name == "stack"
    assert recording.regions is None and recording.pixels_per_micron is None
    assert len(recording) == 5
    assert np.array_equal(list(recording), frames)
    assert np.array_equal(recording.frame(3), frames[3])


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_an_imagej_stack_that_describes_its_first_frame_only(tmp_path, byteorder):
    # What ImageJ writes above 4 GB: one header, then all frames one behind the other.
    frames = make_frames(5)
    path = tmp_path / "large.tif"
    description = "ImageJ=1.54f\nimages=5\nframes=5\nhyperstack=true\n"
    tifffile.imwrite(path, frames[0], byteorder=byteorder, description=description, metadata=None)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].dataoffsets[0] + tiff.pages[0].nbytes == path.stat().st_size
    with open(path, "ab") as file:
        file.write(frames[1:].astype(frames.dtype.newbyteorder(byteorder)).tobytes())
    recording = open_recording(path)
    assert len(recording) == 5
    assert np.array_equal(list(recording), frames)
    assert np.array_equal(recording.frame(2), frames[2])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cut short in frame 4"):
        list(open_recording(path))


def test_a_folder_of_tiff_files_and_what_macos_leaves_there(tmp_path):
    frames = make_frames(3)
    write_files(tmp_path, frames)
    (tmp_path / "images" / "._image0.tiff").write_bytes(b"not an image")
    (tmp_path / "images" / "notes.txt").write_text("text")
    recording = open_recording(tmp_path / "images")
    assert recording.name == "images"
    assert np.array_equal(list(recording), frames)


def test_labels_and_info(tmp_path, monkeypatch):
    write_files(tmp_path / "neurofinder.00.00", make_frames(1))
    (tmp_path / "neurofinder.00.00" / "regions").mkdir()
    regions = [{"coordinates": [[5, 8], [0, 1]], "id": 1}]
    (tmp_path / "neurofinder.00.00" / "regions" / "regions.json").write_text(json.dumps(regions))
    (tmp_path / "neurofinder.00.00" / "info.json").write_text('{"pixels-per-micron": 1.15, "rate-hz": 7}')
    monkeypatch.chdir(tmp_path / "neurofinder.00.00")
    recording = open_recording(".")
    assert recording.name == "neurofinder.00.00"
    assert [region.tolist() for region in recording.regions] == [[[0, 1], [5, 8]]]
    assert recording.pixels_per_micron == 1.15
    assert recording.rate_hz == 7


@pytest.mark.parametrize("value", ['"1.15"', "0", "-1", "null", "true", "NaN", "Infinity", "[1]"])
def test_an_impossible_pixel_size_is_unknown(tmp_path, value):
    write_files(tmp_path, make_frames(1))
    (tmp_path / "info.json").write_text(f'{{"pixels-per-micron": {value}}}')
    assert open_recording(tmp_path).pixels_per_micron is None


# What a user can get wrong


def refused(path, match):
    with pytest.raises(UserError, match=match) as error:
        list(open_recording(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_nothing_there(tmp_path):
    refused(tmp_path / "nowhere", "no such file")
    refused(tmp_path, "no frames")
    (tmp_path / "images").mkdir()
    refused(tmp_path, "no frames")


def test_frames_of_two_kinds(tmp_path):
    frames = make_frames(3)
    write_files(tmp_path / "shapes", frames)
    tifffile.imwrite(tmp_path / "shapes" / "images" / "image1.tiff", frames[1].T)
    refused(tmp_path / "shapes", r"image1.tiff: frame 0 is 9 x 6 uint16, .* 6 x 9 uint16")
    write_files(tmp_path / "types", frames)
    tifffile.imwrite(tmp_path / "types" / "images" / "image2.tiff", frames[2].astype(np.float32))
    refused(tmp_path / "types", "image2.tiff: frame 0 is 6 x 9 float32")


@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 2}])
def test_a_truncated_file(tmp_path, options):
    write_files(tmp_path, make_frames(3), **options)
    path = tmp_path / "images" / "image1.tiff"
    path.write_bytes(path.read_bytes()[:-5])
    refused(tmp_path, r"image1\.tiff")
    path.write_bytes(b"")
    refused(tmp_path, r"image1\.tiff")


def test_no_tiff_and_colours_and_complex_numbers(tmp_path):
    (tmp_path / "text.tiff").write_text("this is no image")
    refused(tmp_path / "text.tiff", "TIFF")
    tifffile.imwrite(tmp_path / "rgb.tiff", np.zeros((6, 9, 3), np.uint8), photometric="rgb")
    refused(tmp_path / "rgb.tiff", "RGB")
    tifffile.imwrite(tmp_path / "complex.tiff", np.zeros(SHAPE, np.complex64))
    refused(tmp_path / "complex.tiff", "integer nor float")


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}])
def test_channels_are_not_mixed_into_one_mean(tmp_path, options):
    path = tmp_path / "two.tif"
    stack = make_frames(10).reshape(5, 2, *SHAPE)
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "TCYX"}, **options)
    refused(path, "two.tif: has 2 channels")
    tifffile.imwrite(path, stack[:, 0], photometric="minisblack", metadata={"axes": "TYX"}, **options)
    assert np.array_equal(list(open_recording(path)), stack[:, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_frames_that_are_not_finite(tmp_path, value):
    frames = make_frames(3, np.float32)
    frames[2, 1, 1] = value
    refused(write_files(tmp_path, frames), r"image2\.tiff: frame 0 has NaN or infinite")


def test_a_header_that_promises_the_world_is_refused_before_memory_is_asked_for(tmp_path):
    path = tmp_path / "huge.tiff"
    tifffile.imwrite(path, make_frames(1)[0])
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["ImageLength"].overwrite(2**20)
        tiff.pages[0].tags["ImageWidth"].overwrite(2**20)
    refused(path, "huge.tiff")


def test_malformed_labels_and_info(tmp_path):
    write_files(tmp_path, make_frames(1))
    (tmp_path / "info.json").write_text("[]")
    refused(tmp_path, "info.json")
    (tmp_path / "info.json").unlink()
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions" / "regions.json").write_text('[{"coordinates": [[8, 5]]}]')
    refused(tmp_path, r"regions.json: neuron 0 has pixel \[8, 5\]")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused_but_never_a_traceback(tmp_path, data):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, make_frames(2), photometric="minisblack")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for frame in open_recording(path):
            assert frame.ndim == 2
    except UserError as error:
        assert "\n" not in str(error)
