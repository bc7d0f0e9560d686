from __future__ import annotations

import io
import json
import re
import warnings
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


def write_pages(path, pages, **file_options):
    """A stack of pages of their own kind: (frame, options of tifffile's `write`)."""
    with tifffile.TiffWriter(path, **file_options) as writer:
        for frame, options in pages:
            writer.write(frame, contiguous=False, metadata=None, **options)


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
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.warns(UserWarning, match="large.tif: is cut short in frame 5, which is left out; 4 are read"):
        assert np.array_equal(list(open_recording(path)), frames[:4])
    path.write_bytes(content[: -frames[0].nbytes - 1])
    with pytest.raises(UserError, match="cut short in frame 3"):
        list(open_recording(path))


@pytest.mark.parametrize("compression", ["zlib", None])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_compressed_frames_come_in_order_too(tmp_path, compression, byteorder):
    # Threads decompress them, several at a time.
    frames = make_frames(30)
    options = {"compression": compression, "byteorder": byteorder, "photometric": "minisblack"}
    write_files(tmp_path / "files", frames, **options)
    tifffile.imwrite(tmp_path / "stack.tif", frames, predictor=compression is not None, **options)
    for path in (tmp_path / "files", tmp_path / "stack.tif"):
        recording = open_recording(path)
        assert np.array_equal(list(recording), frames)
        first = iter(recording)
        assert np.array_equal(next(first), frames[0])
        first.close()  # and nothing waits for ever


def test_files_of_several_kinds_in_one_recording(tmp_path):
    frames = make_frames(100)
    write_files(tmp_path, [frames[0]], "0.tif", compression="zlib")
    write_files(tmp_path, [frames[1:50]], "1.tif", truncate=True, photometric="minisblack")
    write_files(tmp_path, [frames[50:]], "2.tif", compression="zlib", photometric="minisblack", byteorder=">")
    for _ in range(5):
        assert np.array_equal(list(open_recording(tmp_path)), frames)


def test_an_error_in_a_compressed_frame_comes_after_the_frames_before_it(tmp_path):
    frames = make_frames(20, np.float32)
    frames[12, 1, 1] = np.inf
    read = iter(open_recording(write_files(tmp_path, frames, compression="zlib")))
    assert all(np.array_equal(next(read), frame) for frame in frames[:12])
    with pytest.raises(UserError, match=r"image12\.tiff: frame 0 has infinite"):
        next(read)


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_stack_with_a_directory_beside_every_frame(tmp_path, options, compression):
    # As microscopes write them: frame by frame. When that is stopped, or the file cut, the rest is read.
    frames = make_frames(7)
    path = tmp_path / "stack.tif"
    pages = [(frame, {"description": "x" * 999, "compression": compression}) for frame in frames]
    write_pages(path, pages, **options)
    recording = open_recording(path)
    assert len(recording) == 7
    assert np.array_equal(list(recording), frames)
    assert all(np.array_equal(recording.frame(index), frames[index]) for index in (6, 0, 3))
    with tifffile.TiffFile(path) as tiff:
        fifth = tiff.pages[4].offset
    content = path.read_bytes()
    for cut in (fifth, *range(len(content) // 2, len(content), 97)):
        path.write_bytes(content[:cut])
        with pytest.warns(UserWarning, match="stack.tif: is cut short in frame"):
            read = list(open_recording(path))
        assert 2 <= len(read) < 7 and np.array_equal(read, frames[: len(read)])
    damaged = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        position = tiff.pages[3].offset
        entries = tiff.pages[3].tags
        where = position + (8 + 20 * len(entries) if tiff.is_bigtiff else 2 + 12 * len(entries))
    damaged[where : where + 4] = b"\x70" * 4  # the chain leads out of a file that has three frames more
    path.write_bytes(damaged)
    refused(path, "is cut short, frame 4 is missing")


def test_a_chain_of_directories_that_bites_its_tail(tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, make_frames(2), photometric="minisblack", byteorder="<", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        first, second = tiff.pages[0].offset, tiff.pages[1].offset
    content = bytearray(path.read_bytes())
    end = second + 2 + 12 * int.from_bytes(content[second : second + 2], "little")
    content[end : end + 4] = first.to_bytes(4, "little")
    path.write_bytes(content)
    refused(path, "frame 2 leads back")


def test_a_chain_of_many_directories_that_bites_its_tail(tmp_path):
    # tifffile itself looks for such a loop among the first hundred only.
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, make_frames(130), photometric="minisblack", byteorder="<", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        back, last = tiff.pages[110].offset, tiff.pages[129].offset
    content = bytearray(path.read_bytes())
    end = last + 2 + 12 * int.from_bytes(content[last : last + 2], "little")
    content[end : end + 4] = back.to_bytes(4, "little")
    path.write_bytes(content)
    refused(path, "frame 130 leads back")


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_frames_of_a_stack_that_are_not_stored_alike(tmp_path, bigtiff, byteorder):
    kinds = [
        {},
        {"rowsperstrip": 2},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 4},
        {"tile": (16, 16)},
        {"description": "words" * 300, "resolution": (3, 7)},
    ]
    frames = make_frames(3 * len(kinds))
    for first in range(len(kinds)):  # each is the one that the others are compared with
        options = [*kinds[first:], *kinds[:first]]
        pages = list(zip(frames, [kind for kind in options for _ in range(3)], strict=True))
        path = tmp_path / f"{first}.tif"
        write_pages(path, pages, bigtiff=bigtiff, byteorder=byteorder)
        recording = open_recording(path)
        assert np.array_equal(list(recording), frames)
        assert all(np.array_equal(recording.frame(index), frames[index]) for index in (20, 0, 4))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"rowsperstrip": 2}])
@pytest.mark.parametrize(
    "frame, words",
    [
        (np.zeros((7, 9), np.uint16), "7 x 9 uint16"),
        (np.zeros((5, 9), np.uint16), "5 x 9 uint16"),
        (np.zeros((6, 8), np.uint16), "6 x 8 uint16"),
        (np.zeros((9, 6), np.uint16), "9 x 6 uint16"),
        (np.zeros((7, 10), np.uint16), "7 x 10 uint16"),
        (np.zeros(SHAPE, np.int16), "6 x 9 int16"),
        (np.zeros(SHAPE, np.float16), "6 x 9 float16"),
        (np.zeros(SHAPE, np.uint8), "6 x 9 uint8"),
    ],
)
def test_a_frame_of_another_kind_within_a_stack(tmp_path, frame, words, options):
    path = tmp_path / "stack.tif"
    frames = make_frames(6)
    write_pages(path, [(f, options) for f in (*frames[:3], frame, *frames[3:])])
    read = iter(open_recording(path))
    assert all(np.array_equal(next(read), frame) for frame in frames[:3])
    refused(path, f"frame 3 is {words}, but the recording began with 6 x 9 uint16")
    with pytest.raises(UserError, match=f"frame 3 is {words}"):
        open_recording(path).frame(3)


def test_strips_in_another_order_than_those_of_the_first_frame(tmp_path):
    frames = make_frames(3)
    path = tmp_path / "stack.tif"
    write_pages(path, [(frame, {"rowsperstrip": 2}) for frame in frames])
    with tifffile.TiffFile(path, mode="r+") as tiff:
        first, second, third = tiff.pages[1].dataoffsets
        tiff.pages[1].tags["StripOffsets"].overwrite((third, second, first))
    frames[1] = np.concatenate([frames[1, 4:], frames[1, 2:4], frames[1, :2]])
    assert np.array_equal(list(open_recording(path)), frames)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    options=st.sampled_from([{}, {"bigtiff": True}, {"byteorder": ">"}, {"truncate": True}]),
    compression=st.sampled_from([None, "zlib"]),
    beside=st.booleans(),
)
def test_a_stack_cut_anywhere_is_never_a_shorter_movie_without_a_word(
    tmp_path, data, options, compression, beside
):
    frames = make_frames(5)
    path = tmp_path / "stack.tif"
    if beside:  # a directory with each frame; otherwise behind all of them, or one for all
        options = {key: value for key, value in options.items() if key != "truncate"}
        write_pages(path, [(frame, {"compression": compression}) for frame in frames], **options)
    else:
        compression = None if "truncate" in options else compression
        tifffile.imwrite(path, frames, photometric="minisblack", compression=compression, **options)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            read = list(open_recording(path))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert np.array_equal(read, frames[: len(read)])  # a byte behind the last frame is nobody's
        assert len(read) == 5 or [f"cut short in frame {len(read) + 1}" in str(w.message) for w in heard] == [
            True
        ]


def test_files_that_describe_themselves_one_by_one(tmp_path):
    # What a microscope says of each frame in turn, and words that other programs use for stacks.
    frames = make_frames(5)
    words = ["time=1", "time=2", "ImageJ=1.54f\nimages=1\n", "shape of the cell", '{"shape": [6, 9]}']
    for index, (frame, description) in enumerate(zip(frames, words, strict=True)):
        write_files(tmp_path, [frame], f"f{index}.tif", description=description, metadata=None)
    recording = open_recording(tmp_path)
    assert len(recording) == 5
    assert np.array_equal(list(recording), frames)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    options=st.sampled_from(
        [{}, {"bigtiff": True}, {"byteorder": ">"}, {"imagej": True}, {"truncate": True}]
    ),
)
def test_lengths_and_numbers_against_tifffile(tmp_path, counts, options):
    for path in tmp_path.glob("*.tif"):
        path.unlink()
    frames = make_frames(sum(counts))
    ends = np.cumsum(counts)
    for index, part in enumerate(np.split(frames, ends[:-1])):
        tifffile.imwrite(tmp_path / f"{index}.tif", part, photometric="minisblack", **options)
    recording = open_recording(tmp_path)
    assert len(recording) == ends[-1]
    assert np.array_equal(np.array(list(recording)), frames)
    assert all(np.array_equal(recording.frame(index), frame) for index, frame in enumerate(frames))


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


def write_labels(path, labels):
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, np.asarray(labels, np.uint8))


def test_labels_of_other_kinds_and_where_they_are(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[5, 8], labels[2, 1:3] = 1, 2
    expected = [[[5, 8]], [[2, 1], [2, 2]]]
    write_files(tmp_path / "folder", make_frames(1))
    write_labels(tmp_path / "folder" / "regions" / "anything.TIF", labels)
    write_labels(tmp_path / "folder" / "regions" / "._anything.tif", labels)
    (tmp_path / "folder" / "regions" / "notes.json").write_text("{}")
    tifffile.imwrite(tmp_path / "movie.tif", make_frames(2), photometric="minisblack")
    write_labels(tmp_path / "movie.regions.tif", labels)
    for path in (tmp_path / "folder", tmp_path / "movie.tif"):
        assert [region.tolist() for region in open_recording(path).regions] == expected
    assert len(open_recording(tmp_path)) == 2  # the label image is none of the folder's frames


def test_two_kinds_of_labels_are_one_too_many(tmp_path):
    write_files(tmp_path, make_frames(1))
    write_labels(tmp_path / "regions" / "b.tif", np.ones(SHAPE))
    (tmp_path / "regions" / "regions.json").write_text("[]")
    refused(tmp_path, "labels more than once, b.tif and regions.json")
    tifffile.imwrite(tmp_path / "movie.tif", make_frames(1)[0])
    (tmp_path / "movie.regions.json").write_text("[]")
    (tmp_path / "movie.regions.zip").write_text("")
    with pytest.raises(UserError, match="movie.regions.json and movie.regions.zip"):
        open_recording(tmp_path / "movie.tif")


def test_labels_of_another_shape(tmp_path):
    write_files(tmp_path, make_frames(1))
    write_labels(tmp_path / "regions" / "b.png.tif", np.ones(SHAPE).T)
    refused(tmp_path, "b.png.tif: is 9 x 6 px, but the recording is 6 x 9")


@pytest.mark.parametrize("value", ['"1.15"', "0", "-1", "true", "NaN", "Infinity", "[1]"])
def test_an_impossible_pixel_size_is_unknown(tmp_path, value):
    write_files(tmp_path, make_frames(1))
    (tmp_path / "info.json").write_text(f'{{"pixels-per-micron": {value}}}')
    with pytest.warns(UserWarning, match="info.json: pixels-per-micron .* means nothing"):
        assert open_recording(tmp_path).pixels_per_micron is None


def test_what_info_json_means_to_say_is_warned_of(tmp_path):
    """Keys as they are not spelt; not those of others, or what is said to be unknown."""
    write_files(tmp_path, make_frames(1))
    (tmp_path / "info.json").write_text('{"pixels_per_micron": 1.15, "rate-hz": "7"}')
    with pytest.warns(UserWarning) as said:
        assert open_recording(tmp_path).rate_hz is None
    assert ["pixels_per_micron 1.15", "rate-hz '7'"] == [
        re.search(r"info.json: (.*) means nothing", str(each.message))[1] for each in said
    ]
    (tmp_path / "info.json").write_text('{"pixels-per-micron": null, "animal": "7", "rate-hz": 7}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recording = open_recording(tmp_path)
    assert recording.rate_hz == 7 and recording.pixels_per_micron is None


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


def test_infinite_pixels_are_refused_and_missing_ones_are_not(tmp_path):
    frames = make_frames(3, np.float32)
    frames[2, 1, 1] = np.nan
    read = list(open_recording(write_files(tmp_path, frames)))
    assert np.array_equal(read, frames, equal_nan=True)
    frames[2, 1, 1] = np.inf
    refused(write_files(tmp_path, frames), r"image2\.tiff: frame 0 has infinite")


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


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["plain.tif", "zlib.tif", "big.tif"]))
def test_damaged_bytes_are_read_or_refused_but_never_a_traceback(tmp_path, data, kind):
    path = tmp_path / kind
    compression = "zlib" if kind == "zlib.tif" else None
    tifffile.imwrite(
        path, make_frames(2), photometric="minisblack", bigtiff=kind == "big.tif", compression=compression
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for frame in open_recording(path):
            assert frame.ndim == 2
    except UserError as error:
        assert "\n" not in str(error)
