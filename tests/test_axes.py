"""Channels, planes and flyback frames of TIFF files and folders; scale; files of none of our formats."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tifffile
from conftest import assert_refused
from hypothesis import given
from hypothesis import strategies as st

from neurodetect.files import UserError
from neurodetect.formats.axes import Axes, Choice, chosen_pages
from neurodetect.formats.tiff import require_codec
from neurodetect.recording import open_recording
from neurodetect.regions import regions_to_mask, write_regions
from neurodetect.synthetic import simulate_frames, simulate_regions

SHAPE = (6, 9)


def movie(*leading, dtype=np.uint16, seed=0):
    """Random frames: the leading axes, then (H, W)."""
    return np.random.default_rng(seed).integers(1, 2000, (*leading, *SHAPE)).astype(dtype)


def write_pages(path, frames, texts=None, software=None, **options):
    """One directory a frame, each with a description of its own."""
    with tifffile.TiffWriter(path, **options) as writer:
        for index, frame in enumerate(frames):
            text = texts(index) if callable(texts) else texts
            writer.write(frame, contiguous=False, metadata=None, description=text, software=software)


def refused(path, *words, **options):
    with pytest.raises(UserError) as error:
        len(open_recording(path, **options))
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    assert all(word in message for word in words), message


def read(path, **options):
    recording = open_recording(path, **options)
    frames = list(recording)
    assert len(recording) == len(frames)
    middle = len(frames) // 2
    assert np.array_equal(recording.frame(middle), frames[middle])
    return np.array(frames)


@given(
    sizes=st.lists(st.tuples(st.sampled_from("TZC"), st.integers(1, 4)), min_size=1, max_size=4).filter(
        lambda axes: all([name for name, _ in axes].count(kind) < 2 for kind in "ZC")
    ),
    before=st.integers(0, 1),
)
def test_chosen_pages_are_those_of_a_reshaped_array(sizes, before):
    shape = [size for _, size in sizes]
    numbers = np.arange(np.prod(shape)).reshape(shape)
    lengths = {"Z": 1, "C": 1} | dict(sizes)
    axes = Axes(tuple(sizes), [""] * lengths["C"], [""] * lengths["Z"])
    for channel in range(lengths["C"]):
        for plane in range(lengths["Z"]):
            index = tuple({"C": channel, "Z": plane}.get(name, slice(None)) for name, _ in sizes)
            expected = np.atleast_1d(numbers[index]).ravel()
            pages = chosen_pages(axes, Choice(channel, plane), numbers.size - before, before)
            assert list(pages) == [page - before for page in expected if page >= before] or before


# ScanImage


def scanimage(channels="1", slices=1, flyback=0, fast=True, frames=1):
    return "\n".join(
        [
            "SI.VERSION_MAJOR = 2021",
            f"SI.hChannels.channelSave = {channels}",
            f"SI.hFastZ.enable = {'true' if fast and slices > 1 else 'false'}",
            f"SI.hFastZ.numDiscardFlybackFrames = {flyback}",
            f"SI.hStackManager.enable = {'true' if slices > 1 else 'false'}",
            f"SI.hStackManager.actualNumSlices = {slices}",
            "SI.hStackManager.numSlices = 41",
            f"SI.hStackManager.framesPerSlice = {frames}",
            "SI.hRoiManager.imagingFovUm = [-9 -6;9 -6;9 6;-9 6]",
        ]
    )


@pytest.mark.parametrize("bigtiff", [True, False])
def test_scanimage_interleaves_channels_planes_and_flyback_frames(tmp_path, bigtiff):
    stack = movie(5, 4, 2, dtype=np.int16)  # T, Z with a flyback frame, C
    path = tmp_path / "volumes.tif"
    header = scanimage("[1;3]", slices=3, flyback=1)
    write_pages(
        path, stack.reshape(-1, *SHAPE), lambda i: f"frameNumbers = {i // 2 + 1}", header, bigtiff=bigtiff
    )
    refused(path, "has 2 channels", "--channel N, of 1, 3")
    refused(path, "has 3 planes", "--plane N", channel=1)
    refused(path, "has no channel 2", channel=2)
    refused(path, "has no plane 4", channel=3, plane=4)
    for number, channel in ((1, 0), (3, 1)):
        for plane in range(3):
            assert np.array_equal(read(path, channel=number, plane=plane + 1), stack[:, plane, channel])
    notes = open_recording(path, channel=3, plane=2).notes
    assert "channel 3" in notes[0] and "plane 2 of 3" in notes[1] and "1 flyback frame" in notes[2]
    assert open_recording(path, channel=1, plane=1).pixels_per_micron == pytest.approx(0.5)


def test_scanimage_goes_on_in_the_next_file(tmp_path):
    stack = movie(7, 3)  # volumes of three planes; the first file ends within one
    header = scanimage(slices=3)
    for number, part in enumerate(np.split(stack.reshape(-1, *SHAPE), [10])):
        path = tmp_path / f"run_{number + 1:05d}.tif"
        write_pages(
            path, part, lambda i, first=10 * number + 1: f"frameNumbers = {first + i}", header, bigtiff=True
        )
    for plane in range(3):
        assert np.array_equal(read(tmp_path, plane=plane + 1), stack[:, plane])
    path.with_name("run_00001.tif").unlink()  # the second begins in the middle of a volume
    for plane in range(3):
        expected = stack.reshape(-1, *SHAPE)[10:][(np.arange(10, 21) % 3) == plane]
        assert np.array_equal(read(tmp_path, plane=plane + 1), expected)


def test_scanimage_takes_one_plane_after_the_other_in_a_slow_stack(tmp_path):
    stack = movie(3, 4, 2)  # Z, T, C
    header = scanimage("[1;2]", slices=3, fast=False, frames=4)
    write_pages(
        tmp_path / "slow.tif", stack.reshape(-1, *SHAPE), lambda i: f"frameNumbers = {i // 2 + 1}", header
    )
    assert np.array_equal(read(tmp_path / "slow.tif", channel=2, plane=3), stack[2, :, 1])


def test_scanimage_of_one_channel_and_plane_is_a_movie(tmp_path):
    stack = movie(5, dtype=np.int16)
    write_pages(tmp_path / "one.tif", stack, lambda i: f"frameNumbers = {i + 1}", scanimage("2"))
    recording = open_recording(tmp_path / "one.tif")
    assert np.array_equal(list(recording), stack) and recording.notes == []
    assert np.array_equal(read(tmp_path / "one.tif", channel=2), stack)


def test_pages_of_one_frame_are_channels_though_each_header_names_one(tmp_path):
    stack = movie(4, 2)
    with tifffile.TiffWriter(tmp_path / "each.tif") as writer:
        for index, frame in enumerate(stack.reshape(-1, *SHAPE)):
            text = f"frameNumbers = {index // 2 + 1}\nframeTimestamps_sec = {index}"
            header = scanimage(f"{index % 2 + 1}")
            writer.write(frame, contiguous=False, metadata=None, description=text, software=header)
    refused(tmp_path / "each.tif", "has 2 channels")
    assert np.array_equal(read(tmp_path / "each.tif", channel=2), stack[:, 1])


def test_scanimage_3_and_5_say_so_in_the_description(tmp_path):
    stack = movie(6, 2)
    old = "state.configName='x'\rstate.acq.numberOfChannelsSave=2\rstate.acq.numberOfZSlices=1\r"
    write_pages(tmp_path / "three.tif", stack.reshape(-1, *SHAPE), old)
    refused(tmp_path / "three.tif", "has 2 channels")
    assert np.array_equal(read(tmp_path / "three.tif", channel=1), stack[:, 0])
    text = "scanimage.SI5.channelsSave = [1;2]\nscanimage.SI5.stackNumSlices = 1\n"
    write_pages(tmp_path / "five.tif", stack.reshape(-1, *SHAPE), text)
    assert np.array_equal(read(tmp_path / "five.tif", channel=2), stack[:, 1])


# ImageJ, tifffile


def test_imagej_hyperstacks(tmp_path):
    stack = movie(5, 3, 2)
    path = tmp_path / "hyper.tif"
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "TZCYX"})
    refused(path, "has 2 channels")
    refused(path, "has 3 planes", channel=1)
    assert np.array_equal(read(path, channel=2, plane=3), stack[:, 2, 1])
    # Two channels over slices only: the slices are the frames, as Fiji calls those of any stack.
    tifffile.imwrite(path, stack[:, 0], imagej=True, metadata={"axes": "ZCYX"})
    assert np.array_equal(read(path, channel=1), stack[:, 0, 0])


@pytest.mark.parametrize("axes", ["TYX", "ZYX", "CYX"])
def test_an_imagej_stack_is_a_movie_whatever_its_pages_are_called(tmp_path, axes):
    frames = movie(7)
    tifffile.imwrite(tmp_path / "a.tif", frames, imagej=True, metadata={"axes": axes})
    assert np.array_equal(read(tmp_path / "a.tif"), frames)


def test_a_composite_image_has_channels(tmp_path):
    frames = movie(2)
    tifffile.imwrite(tmp_path / "a.tif", frames, imagej=True, metadata={"axes": "CYX", "mode": "composite"})
    refused(tmp_path / "a.tif", "has 2 channels")


def test_a_copied_description_does_not_cut_single_frames_short(tmp_path):
    frames = movie(4)
    for index, frame in enumerate(frames):
        path = tmp_path / "images" / f"{index}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, frame, metadata=None, description="ImageJ=1.49i\nimages=1000\nslices=1000\n")
    assert np.array_equal(read(tmp_path), frames)
    with pytest.warns(UserWarning, match="says that it has 1000 frames, but holds one"):
        assert len(open_recording(path)) == 1


def test_axes_that_tifffile_wrote(tmp_path):
    path = tmp_path / "shaped.tif"
    stack = movie(5, 2)
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "TCYX"})
    refused(path, "has 2 channels")
    assert np.array_equal(read(path, channel=2), stack[:, 1])
    tifffile.imwrite(path, stack, photometric="minisblack")
    refused(path, "has pages in 5 x 2", "--channel N")
    assert np.array_equal(read(path, channel=1), stack[:, 0])
    tifffile.imwrite(path, stack[:, :1], photometric="minisblack")
    assert np.array_equal(read(path), stack[:, 0])
    tifffile.imwrite(path, movie(5, 2, 3), photometric="minisblack")
    refused(path, "has pages in 5 x 2 x 3", channel=1)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_one_colour_of_colour_images(tmp_path, planar):
    stack = movie(4, 3)  # as tifffile takes three frames for one of three colours
    path = tmp_path / "rgb.tif"
    frames = stack if planar == "separate" else np.moveaxis(stack, 1, -1)
    tifffile.imwrite(path, frames, photometric="rgb", planarconfig=planar)
    refused(path, "not RGB", "--channel N, of 1 to 3")
    refused(path, "has no channel 4", channel=4)
    for channel in range(3):
        assert np.array_equal(read(path, channel=channel + 1), stack[:, channel])


# OME


def ome(pages, sizes, order="XYZCT", images=1, physical=""):
    """An OME-XML of `(file, ifd, {"C": .., "Z": .., "T": ..})` pages."""
    data = "".join(
        f'<TiffData IFD="{ifd}" PlaneCount="1" '
        + " ".join(f'First{axis}="{at}"' for axis, at in place.items())
        + f'><UUID FileName="{file}">urn:uuid:{zlib.crc32(file.encode()):032x}</UUID></TiffData>'
        for file, ifd, place in pages
    )
    size = " ".join(f'Size{axis}="{sizes.get(axis, 1)}"' for axis in "ZCT")
    image = (
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="{order}" Type="uint16" '
        'SizeX="9" SizeY="6" '
        f"{size} {physical}>{data}</Pixels></Image>"
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME '
        f'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{image * images}</OME>'
    )


@pytest.mark.parametrize("axes", ["TCZYX", "TZCYX", "CTZYX", "ZTCYX"])
def test_ome_in_any_order(tmp_path, axes):
    sizes = {"T": 4, "C": 2, "Z": 3}
    stack = movie(*(sizes[axis] for axis in axes[:3]))
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, stack, ome=True, photometric="minisblack", metadata={"axes": axes})
    refused(path, "has 2 channels")
    refused(path, "has 3 planes", channel=2)
    ordered = np.moveaxis(stack, [axes.index(axis) for axis in "TCZ"], [0, 1, 2])
    assert np.array_equal(read(path, channel=2, plane=1), ordered[:, 1, 0])


def ome_set(folder, stack):
    """A page a file, (T, C): the first file lists all, the others point to it; no words tell them apart."""
    folder.mkdir()
    names = {(t, c): f"run_{c * len(stack) + t:04d}.ome.tif" for c in range(2) for t in range(len(stack))}
    pages = [(name, 0, {"C": c, "T": t, "Z": 0}) for (t, c), name in names.items()]
    first = names[0, 0]
    for (t, c), name in names.items():
        text = (
            ome(pages, {"C": 2, "T": len(stack)})
            if name == first
            else '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
            f'<BinaryOnly MetadataFile="{first}" UUID="urn:uuid:1"/></OME>'
        )
        tifffile.imwrite(folder / name, stack[t, c], metadata=None, description=text)
    return names


def test_an_ome_set_of_one_page_files(tmp_path):
    stack = movie(5, 2)
    names = ome_set(tmp_path / "set", stack)
    refused(tmp_path / "set", "has 2 channels")
    for channel in range(2):
        assert np.array_equal(read(tmp_path / "set", channel=channel + 1), stack[:, channel])
    # A part of the set has one channel: nothing is left to choose.
    for (_, channel), name in names.items():
        if channel == 0 and name != names[0, 0]:
            (tmp_path / "set" / name).unlink()
    (tmp_path / "set" / names[0, 0]).rename(tmp_path / names[0, 0])
    assert np.array_equal(read(tmp_path / "set"), stack[:, 1])
    (note,) = open_recording(tmp_path / "set").notes
    assert f"{names[0, 0]} with the OME-XML of the files is not there" in note


def test_planes_of_a_part_of_an_ome_set(tmp_path):
    stack = movie(4, 3)
    pages = [(f"p{z}.ome.tif", t, {"C": 0, "Z": z, "T": t}) for z in range(3) for t in range(4)]
    for z in range(3):
        xml = ome(pages, {"Z": 3, "T": 4})
        write_pages(tmp_path / f"p{z}.ome.tif", stack[:, z], lambda i, xml=xml: xml if i == 0 else None)
    (tmp_path / "p0.ome.tif").unlink()
    refused(tmp_path, "has 2 planes")
    for plane in (1, 2):
        assert np.array_equal(read(tmp_path, plane=plane), stack[:, plane])


def test_a_set_whose_files_were_renamed_is_refused(tmp_path):
    ome_set(tmp_path / "set", movie(5, 2))
    for index, file in enumerate(sorted((tmp_path / "set").iterdir())):
        file.rename(tmp_path / "set" / f"renamed_{index:03d}.tif")
    first = tmp_path / "set" / "renamed_000.tif"
    with pytest.raises(UserError, match="lists several channels or planes in files of other names"):
        open_recording(tmp_path / "set")
    assert len(open_recording(first)) == 1


def test_an_ome_set_of_stacks(tmp_path):
    stack = movie(6, 2)
    names = ["x_MMStack_Pos0.ome.tif", "x_MMStack_Pos0_1.ome.tif"]
    pages = [(names[t // 4], (t % 4) * 2 + c, {"C": c, "T": t, "Z": 0}) for t in range(6) for c in range(2)]
    for name, part in zip(names, np.split(stack.reshape(-1, *SHAPE), [8]), strict=True):
        write_pages(tmp_path / name, part, ome(pages, {"C": 2, "T": 6}) if name == names[0] else None)
    refused(tmp_path, "has 2 channels")
    for channel in range(2):
        assert np.array_equal(read(tmp_path, channel=channel + 1), stack[:, channel])


@pytest.mark.parametrize(
    "change", [("</Pixels>", "</Pixel>"), ('SizeT="6"', 'SizeT="600000000"'), ('SizeC="2"', 'SizeC="x"')]
)
def test_a_damaged_ome_xml(tmp_path, change):
    xml = ome([("a.ome.tif", 0, {"C": 0, "Z": 0, "T": 0})], {"C": 2, "T": 6}).replace(*change, 1)
    tifffile.imwrite(tmp_path / "a.ome.tif", movie(1)[0], metadata=None, description=xml)
    refused(tmp_path / "a.ome.tif", "has a damaged OME-XML")


def test_several_images_in_one_ome_file_are_not_averaged(tmp_path):
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as writer:
        first, second = movie(4), movie(4, seed=1)
        for frames in (first, second):
            writer.write(frames, photometric="minisblack", metadata={"axes": "TYX"})
    refused(tmp_path / "two.ome.tif", "has 2 planes", "image 1")
    assert np.array_equal(read(tmp_path / "two.ome.tif", plane=2), second)


# Names


def write_folder(folder, names, frames):
    folder.mkdir(exist_ok=True)
    for name, frame in zip(names, frames, strict=True):
        tifffile.imwrite(folder / name, frame, photometric="minisblack")
    return folder


@pytest.mark.parametrize(
    ("name", "values", "numbers"),
    [
        ("TSeries-01_Cycle00001_Ch{c}_{t:06d}.ome.tif", (2, 3), (2, 3)),
        ("Chan{c}_0001_0001_0001_{t:04d}.tif", "AB", (1, 2)),
        ("img_channel{c}_position000_time{t:09d}_z000.tif", ("000", "001"), (1, 2)),
        ("run_{t:03d}_c{c}.tif", (1, 2), (1, 2)),
        ("{c}_frame{t}.tif", ("green", "red"), (1, 2)),
    ],
)
def test_channels_by_the_names_of_the_files(tmp_path, name, values, numbers):
    stack = movie(11, 2)
    names = [name.format(c=value, t=t + 1) for t in range(11) for value in values]
    write_folder(tmp_path / "rec", names, stack.reshape(-1, *SHAPE))
    first = numbers[0] if numbers == values else f"{numbers[0]} ({values[0]})"
    refused(tmp_path / "rec", "has 2 channels", f"--channel N, of {first}, ")
    for index, number in enumerate(numbers):
        assert np.array_equal(read(tmp_path / "rec", channel=number), stack[:, index])
    (note,) = open_recording(tmp_path / "rec", channel=numbers[1]).notes
    assert note == f"channel {values[1]} of {values[0]}, {values[1]}, the others are left out"
    refused(tmp_path / "rec", "has no channel 7", channel=7)


@pytest.mark.parametrize("name", ["ChanA_0001_0001_{z:04d}_{t:04d}.tif", "img_{t:05d}_z{z:02d}.tif"])
def test_planes_by_the_names_of_the_files(tmp_path, name):
    stack = movie(7, 3)
    names = [name.format(z=z + 1, t=t + 1) for t in range(7) for z in range(3)]
    write_folder(tmp_path / "rec", names, stack.reshape(-1, *SHAPE))
    refused(tmp_path / "rec", "has 3 planes", "--plane N")
    assert np.array_equal(read(tmp_path / "rec", plane=2), stack[:, 1])


def test_positions_by_the_names_of_the_files(tmp_path):
    stack = movie(5, 2, 2)  # T, position, Z
    name = "img_channel000_position{p:03d}_time{t:09d}_z{z:03d}.tif"
    names = [name.format(t=t, p=p, z=z) for t in range(5) for p in range(2) for z in range(2)]
    write_folder(tmp_path / "rec", names, stack.reshape(-1, *SHAPE))
    refused(
        tmp_path / "rec", "has 4 planes", "1 (position 000 000), 2 (position 000 001), 3 (position 001 000)"
    )
    assert np.array_equal(read(tmp_path / "rec", plane=3), stack[:, 1, 0])


@pytest.mark.parametrize(
    "name",
    [
        "s_C{c:03d}T{t:03d}.tif",
        "rec_t{t:03d}c{c}_ORG.tif",
        "recT{t:03d}C{c}.tif",
        "rec_w{c}_t{t}.tif",
        "rec_w{c}GFP_t{t}.tif",
        "rec_CH{c:02d}T{t:03d}.tif",
        "img_{t:09d}_dye{c}_000.tif",
    ],
)
def test_channels_in_names_that_run_together(tmp_path, name):
    stack = movie(6, 2)
    names = [name.format(c=c, t=t) for t in range(1, 7) for c in (1, 2)]
    write_folder(tmp_path / "rec", names, stack.reshape(-1, *SHAPE))
    refused(tmp_path / "rec", "has 2 channels")
    assert np.array_equal(read(tmp_path / "rec", channel=2), stack[:, 1])


@pytest.mark.parametrize(
    "name",
    [
        "ChanA_0001_0001_{z:04d}_{t:04d}.tif",
        "rec_t{t:03d}_z{z:03d}_ch00.tif",
        "img_{t:09d}_Default_{z:03d}.tif",
    ],
)
def test_many_planes(tmp_path, name):
    stack = movie(3, 20)
    names = [name.format(z=z, t=t) for t in range(3) for z in range(20)]
    write_folder(tmp_path / "rec", names, stack.reshape(-1, *SHAPE))
    refused(tmp_path / "rec", "has 20 planes")
    assert np.array_equal(read(tmp_path / "rec", plane=20), stack[:, 19])


def test_the_only_channel_may_be_named(tmp_path):
    frames = movie(4)
    write_folder(tmp_path / "rec", [f"T-1_Cycle00001_Ch2_{i:06d}.ome.tif" for i in range(4)], frames)
    assert np.array_equal(read(tmp_path / "rec", channel=2), frames)
    refused(tmp_path / "rec", "has no channel 3", channel=3)


def test_parts_of_several_channels_each_have_their_own_axes(tmp_path):
    first, second = movie(2, 6), movie(2, 3, seed=1)
    for ome_xml in (False, True):
        folder = tmp_path / str(ome_xml)
        folder.mkdir()
        for name, stack in (("run_1", first), ("run_2", second)):
            path = folder / (f"{name}.ome.tif" if ome_xml else f"{name}.tif")
            tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "CTYX"}, ome=ome_xml)
        for channel in range(2):
            expected = np.concatenate([first[channel], second[channel]])
            assert np.array_equal(read(folder, channel=channel + 1), expected)
    tifffile.imwrite(
        folder / "run_3.ome.tif", movie(4), photometric="minisblack", ome=True, metadata={"axes": "TYX"}
    )
    refused(folder, "run_3.ome.tif: has 1 channels and 1 planes", channel=1)


def test_a_metamorph_stack_is_not_one_frame(tmp_path):
    tags = [(33629, 5, 10, (1, 1) * 10, True)]
    options = {"photometric": "minisblack", "metadata": None, "truncate": True, "extratags": tags}
    tifffile.imwrite(tmp_path / "a.stk", movie(10), **options)
    refused(tmp_path / "a.stk", "is a MetaMorph stack")


def test_planes_of_a_z_series_over_time(tmp_path):
    stack = movie(9, 3)
    names = [f"Z-01_Cycle{t + 1:05d}_Ch2_{z + 1:06d}.ome.tif" for t in range(9) for z in range(3)]
    write_folder(tmp_path / "rec", names, stack.reshape(-1, *SHAPE))
    refused(tmp_path / "rec", "has 3 planes")
    assert np.array_equal(read(tmp_path / "rec", plane=3), stack[:, 2])
    (tmp_path / "rec" / "Z-01.xml").write_text('<PVScan><Sequence type="TSeries Timed Element"/></PVScan>')
    assert len(open_recording(tmp_path / "rec")) == 27


def test_numbers_of_frames_are_no_channels(tmp_path):
    frames = movie(12)
    write_folder(tmp_path / "a", [f"frame_c{i:03d}.tif" for i in range(12)], frames)
    write_folder(tmp_path / "b", [f"z{i:03d}.tif" for i in range(12)], frames)
    for folder in "ab":
        assert np.array_equal(read(tmp_path / folder), frames)


def test_masks_and_projections_beside_the_frames_are_left_out_and_named(tmp_path):
    frames = movie(3)
    beside = ["frame_000_cp_masks.tif", "MAX_frame.tif", "STD_frame.tif", "ChanA_Preview.tif"]
    write_folder(tmp_path, [*(f"frame_{i:03d}.tif" for i in range(3)), *beside], [*frames, *movie(4)])
    assert np.array_equal(read(tmp_path), frames)
    (note,) = open_recording(tmp_path).notes
    assert all(name in note for name in beside) and "left out" in note


def test_a_folder_of_projections_alone_is_a_recording(tmp_path):
    frames = movie(3)
    write_folder(tmp_path, [f"AVG_A{i:02d}.tif" for i in range(3)], frames)
    assert np.array_equal(read(tmp_path), frames)


def test_two_movies_in_a_folder_are_not_one(tmp_path):
    first, second = movie(4), movie(4, seed=1)
    for names in (["mouse1.tif", "mouse2.tif"], ["green.tif", "other.tif"], ["run_1.tif", "stack.tif"]):
        folder = tmp_path / names[0]
        write_folder(folder, names, [first, second])
        refused(folder, names[1], "images/")
        (folder / names[0]).with_suffix(".txt").write_text("no movie")
    write_folder(tmp_path / "odd", ["f1.tif", "f2.tif", "reference.tif"], movie(3))
    refused(tmp_path / "odd", "reference.tif")
    parts = write_folder(tmp_path / "parts", ["run_2.tif", "run_10.tif"], [first, second])
    assert np.array_equal(read(parts), np.concatenate([first, second]))
    assert "run_2.tif, run_10.tif" in open_recording(parts).notes[0]
    registered = write_folder(
        tmp_path / "suite2p", ["file000_chan0.tif", "file001_chan0.tif"], [first, second]
    )
    assert len(open_recording(registered)) == 8
    numbered = write_folder(tmp_path / "numbered", ["part1.tif", "part2.tif"], [first, second])
    assert len(open_recording(numbered)) == 8
    write_folder(tmp_path / "house", [], [])
    write_folder(tmp_path / "house" / "images", ["mouse1.tif", "mouse2.tif"], [first, second])
    assert len(open_recording(tmp_path / "house")) == 8


# Values, scale, other formats


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_where_zero_is_white_bright_is_made_large(tmp_path, dtype):
    frames = movie(3, dtype=np.uint8).astype(dtype)
    tifffile.imwrite(tmp_path / "white.tif", frames, photometric="miniswhite")
    bright = read(tmp_path / "white.tif")
    assert bright.dtype == dtype
    whole = 255 if dtype == np.uint8 else 65535 if dtype == np.uint16 else -1 if dtype == np.int16 else 0
    assert np.array_equal(bright, whole - frames.astype(np.float64))


@pytest.mark.parametrize(
    ("unit", "resolution", "expected"),
    [
        ("micron", (1.25, 1.25), 1.25),
        ("um", (2, 2), 2),
        ("\\u00B5m", (0.8, 0.8), 0.8),
        ("nm", (0.002, 0.002), 2),
        ("inch", (72, 72), None),
        ("um", (1, 2), None),
        (None, (3, 3), None),
    ],
)
def test_the_size_of_a_pixel_in_imagej_files(tmp_path, unit, resolution, expected):
    metadata = {"axes": "TYX"} | ({"unit": unit} if unit else {})
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, movie(2), imagej=True, resolution=resolution, metadata=metadata)
    scale = open_recording(path).pixels_per_micron
    assert scale == pytest.approx(expected) if expected else scale is None


@pytest.mark.parametrize(
    ("physical", "expected"),
    [
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.5"', 2),
        ('PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="0.5" PhysicalSizeYUnit="µm"', 2),
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.7"', None),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1" PhysicalSizeYUnit="pixel"', None),
        ("", None),
    ],
)
def test_the_size_of_a_pixel_in_ome_files(tmp_path, physical, expected):
    xml = ome([("a.ome.tif", 0, {"C": 0, "Z": 0, "T": 0})], {}, physical=physical)
    tifffile.imwrite(tmp_path / "a.ome.tif", movie(1)[0], metadata=None, description=xml.encode())
    scale = open_recording(tmp_path / "a.ome.tif").pixels_per_micron
    assert scale == pytest.approx(expected) if expected else scale is None


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"finterval": 0.1}, 10),
        ({"finterval": 50.0, "tunit": "ms"}, 20),
        ({"finterval": 0.0}, None),
        ({"finterval": 2.0, "tunit": "fortnight"}, None),
        ({"fps": 7.0}, None),  # how fast it was played
    ],
)
def test_the_frames_a_second_in_imagej_files(tmp_path, metadata, expected):
    tifffile.imwrite(tmp_path / "a.tif", movie(2), imagej=True, metadata=metadata)
    rate = open_recording(tmp_path / "a.tif").rate_hz
    assert rate == pytest.approx(expected) if expected else rate is None


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ('TimeIncrement="0.05"', 20),
        ('TimeIncrement="40" TimeIncrementUnit="ms"', 25),
        ('TimeIncrement="1" TimeIncrementUnit="reference frame"', None),
        ('TimeIncrement="soon"', None),
        ("", None),
    ],
)
def test_the_frames_a_second_in_ome_files(tmp_path, attributes, expected):
    xml = ome([("a.ome.tif", 0, {"C": 0, "Z": 0, "T": 0})], {}, physical=attributes)
    tifffile.imwrite(tmp_path / "a.ome.tif", movie(1)[0], metadata=None, description=xml.encode())
    rate = open_recording(tmp_path / "a.ome.tif").rate_hz
    assert rate == pytest.approx(expected) if expected else rate is None


@pytest.mark.parametrize(
    ("slices", "lines", "expected"),
    [
        (1, "SI.hRoiManager.scanFrameRate = 30.5", 30.5),
        (1, "SI.hRoiManager.scanFrameRate = 30\nSI.hScan2D.logAverageFactor = 4", 7.5),
        (3, "SI.hRoiManager.scanFrameRate = 30\nSI.hRoiManager.scanVolumeRate = 7.5", 7.5),
        (3, "SI.hRoiManager.scanFrameRate = 30", None),
    ],
)
def test_the_frames_a_second_in_scanimage_files(tmp_path, slices, lines, expected):
    header = scanimage(slices=slices, flyback=slices > 1) + "\n" + lines
    write_pages(tmp_path / "a.tif", movie(8), lambda i: f"frameNumbers = {i + 1}", header)
    recording = open_recording(tmp_path / "a.tif", plane=1)
    assert recording.rate_hz == pytest.approx(expected) if expected else recording.rate_hz is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a.tif").rename(tmp_path / "a" / "a.tif")
    (tmp_path / "a" / "info.json").write_text('{"rate-hz": 3}')
    assert open_recording(tmp_path / "a", plane=1).rate_hz == 3


@pytest.mark.parametrize(("axes", "kind"), [("CYX", "channel"), ("ZYX", "plane")])
def test_few_pages_in_each_of_several_files_are_frames_but_it_is_said(tmp_path, axes, kind):
    images, stack = tmp_path / "images", movie(4, 3)
    images.mkdir()
    for number, pages in enumerate(stack):
        tifffile.imwrite(images / f"{number}.tif", pages, imagej=True, metadata={"axes": axes})
    recording = open_recording(tmp_path)
    assert np.array_equal(list(recording), stack.reshape(-1, *SHAPE))
    (note,) = recording.notes
    assert "the 3 pages of a file are taken for frames" in note and f"--{kind} N" in note
    assert np.array_equal(read(tmp_path, **{kind: 2}), stack[:, 1])
    tifffile.imwrite(tmp_path / "one.tif", stack[0], imagej=True, metadata={"axes": axes})
    assert open_recording(tmp_path / "one.tif").notes == [note]
    for number, pages in enumerate(movie(2, 40)):
        tifffile.imwrite(images / f"{number}.tif", pages, imagej=True, metadata={"axes": axes})
    for number in (2, 3):
        (images / f"{number}.tif").unlink()
    assert open_recording(tmp_path).notes == []


def test_info_json_wins_over_the_frames(tmp_path):
    (tmp_path / "images").mkdir()
    tifffile.imwrite(
        tmp_path / "images/a.tif", movie(2), imagej=True, resolution=(2, 2), metadata={"unit": "um"}
    )
    assert open_recording(tmp_path).pixels_per_micron == 2
    (tmp_path / "info.json").write_text('{"pixels-per-micron": 1.15}')
    assert open_recording(tmp_path).pixels_per_micron == 1.15
    recording = open_recording(tmp_path, pixels_per_micron=3)
    assert recording.pixels_per_micron == 1.15 and "info.json says 1.15" in recording.notes[-1]
    (tmp_path / "info.json").unlink()
    assert open_recording(tmp_path, pixels_per_micron=3).pixels_per_micron == 3


def test_rows_and_columns_exchanged_on_request(tmp_path):
    frames = movie(3)
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack")
    recording = open_recording(tmp_path / "a.tif", transpose=True)
    assert recording.shape == (9, 6) and np.array_equal(list(recording), frames.transpose(0, 2, 1))


@pytest.mark.parametrize("words", ["requires the 'imagecodecs' package", "'NoneType' object is not callable"])
def test_a_missing_codec_names_the_package_whatever_python_says(tmp_path, monkeypatch, words):
    class Broken(dict):
        def __missing__(self, key):
            raise AttributeError(words)

    tifffile.imwrite(tmp_path / "a.tif", movie(3), compression="zlib", photometric="minisblack")
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", Broken({1: None}), raising=False)
    refused(tmp_path / "a.tif", "ADOBE_DEFLATE", "pip install imagecodecs")


def test_a_compression_of_several_lines_is_refused_in_one(tmp_path):
    """As a file has it whose tag was damaged: tifffile gives the text that stands there."""
    page = SimpleNamespace(compression="ImageJ=1.11a\nimages=4", predictor=1)
    with pytest.raises(UserError, match=r"a\.tif: is compressed \(ImageJ=1\.11a images=4\)"):
        require_codec(page, tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.avi", "is a video"),
        ("a.sbx", "is a Scanbox file"),
        ("a.raw", "raw numbers"),
        ("a.npy", "NumPy array"),
        ("a.mat", "MATLAB file older than version 7.3"),
        ("a.zip", "archive"),
        ("a.xyz", "neither TIFF nor HDF5"),
    ],
)
def test_what_is_none_of_our_formats_is_named(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"something else entirely")
    refused(tmp_path / name, words, "TIFF stack")
    refused(tmp_path, "holds no frames", "" if name == "a.xyz" else f"{name} is ")


def test_a_tiff_is_known_by_its_content(tmp_path):
    frames = movie(3)
    tifffile.imwrite(tmp_path / "a.stk", frames, photometric="minisblack")
    assert np.array_equal(read(tmp_path / "a.stk"), frames)


def test_the_command_says_what_was_left_out(tmp_path, command):
    stack = movie(5, 2)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "TCYX"})
    result = command("preprocessing.py", "a.tif", "out")
    assert result.returncode == 2 and "choose one with --channel N, of 1, 2" in result.stderr
    assert not Path(tmp_path / "out").exists()
    result = command(
        "preprocessing.py", "a.tif", "out", "--channel", 2, "--frames", "2:4", "--pixels-per-micron", 2
    )
    assert result.returncode == 0, result.stderr
    assert "a: channel 2 of 2, the others are left out" in result.stdout
    mean = stack[1:4, 1].mean(0)
    limit = mean.mean() + 3 * mean.std()
    assert np.allclose(np.load(tmp_path / "out" / "X_a.npy"), np.minimum(mean, limit))
    assert '"pixels-per-micron": 2' in (tmp_path / "out" / "info_a.json").read_text()
    result = command("preprocessing.py", "a.tif", "out", "--channel", 2, "--frames", "9:12")
    assert result.returncode == 2 and "has frames 1 to 5" in result.stderr


def test_labels_from_anywhere_and_what_was_not_read(tmp_path, command):
    frames = movie(3)
    tifffile.imwrite(tmp_path / "a.tif", frames, imagej=True)
    (tmp_path / "a_RoiSet.zip").write_bytes(b"anything")
    region = [[1, 2], [1, 3], [2, 2]]
    submission = [
        {"dataset": "other", "regions": []},
        {"dataset": "a", "regions": [{"coordinates": region, "probability": 0.9}]},
    ]
    (tmp_path / "corrected.json").write_text(json.dumps(submission))
    result = command("preprocessing.py", "a.tif", "out")
    assert "a: a_RoiSet.zip: not read; --labels FILE" in result.stdout and "no labels" in result.stdout
    result = command("preprocessing.py", "a.tif", "out", "--labels", "corrected.json")
    assert result.returncode == 0 and "3 frames of 6 x 9 px, 1 neuron\n" in result.stdout
    assert json.loads((tmp_path / "out/regions_a.json").read_text()) == [{"coordinates": region}]
    result = command("preprocessing.py", "a.tif", "a.tif", "out", "--labels", "corrected.json")
    assert result.returncode == 2 and "--labels is for one RECORDING" in result.stderr


def test_labels_with_rows_and_columns_exchanged_bring_a_warning(tmp_path, command):
    rng = np.random.default_rng(3)
    neurons = simulate_regions((150, 150), 60, rng)
    frames = np.array(list(simulate_frames(neurons, (150, 150), 10, rng)))
    folder = tmp_path / "mouse" / "images"
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "m.tif", frames, photometric="minisblack")
    for exchanged in (False, True):
        regions = [region[:, ::-1] if exchanged else region for region in neurons]
        write_regions(tmp_path / "labels.json", regions)
        result = command("preprocessing.py", "mouse", "out", "--labels", "labels.json")
        assert result.returncode == 0
        assert ("fit the image much better with rows and columns exchanged" in result.stderr) == exchanged
        assert ("much better with rows and columns exchanged\n" in result.stdout) == exchanged


def test_labels_beside_their_cells_bring_a_warning_and_can_be_moved(tmp_path, command):
    rng = np.random.default_rng(3)
    neurons = simulate_regions((150, 150), 60, rng)
    folder = tmp_path / "mouse" / "images"
    folder.mkdir(parents=True)
    frames = np.array(list(simulate_frames(neurons, (150, 150), 10, rng)))
    tifffile.imwrite(folder / "m.tif", frames, photometric="minisblack")
    corner = np.array([[0, 0], [0, 1], [1, 0]])
    counted_from_1 = [*(region + 1 for region in neurons if region.max() < 149), corner]
    content = [{"id": f"cell {i}", "coordinates": r.tolist()} for i, r in enumerate(counted_from_1)]
    (tmp_path / "mouse" / "regions").mkdir()
    (tmp_path / "mouse" / "regions" / "regions.json").write_text(json.dumps(content))

    result = command("preprocessing.py", "mouse", "out")
    assert result.returncode == 0
    assert "mouse: the cells lie -1 rows (down) and -1 columns (right)" in result.stderr
    assert "preprocessing.py --move-labels -1 -1 mends the labels\n" in result.stderr
    assert len(json.loads((tmp_path / "out/regions_mouse.json").read_text())) == len(counted_from_1)

    result = command("preprocessing.py", "mouse", "out", "--move-labels", -1, -1)
    assert result.returncode == 0 and result.stderr == ""
    assert (
        "labels moved by -1 rows (down) and -1 columns (right); cut or left out at the image's edges: 1\n"
        in result.stdout
    )
    moved = json.loads((tmp_path / "out/regions_mouse.json").read_text())
    expected = [region for region in neurons if region.max() < 149]  # and not the corner's
    assert [region["coordinates"] for region in moved] == [region.tolist() for region in expected]
    assert [region["id"] for region in moved] == [f"cell {i}" for i in range(len(expected))]
    assert np.array_equal(np.load(tmp_path / "out/y_mouse.npy"), regions_to_mask(expected, (150, 150)))
    # The part of an image has those that lie there after they were moved.
    crop = "--crop", "20:90,30:120"
    assert command("preprocessing.py", "mouse", "out", *crop, "--move-labels", -1, -1).returncode == 0
    part = np.load(tmp_path / "out/y_mouse.rows20-90.columns30-120.npy")
    assert np.array_equal(part, regions_to_mask(expected, (150, 150))[20:90, 30:120])
    result = command("preprocessing.py", "mouse", "out", "--move-labels", 200, 0)
    assert_refused(result, "mouse", "--move-labels 200 0 moves all labels out of the image")
    result = command("preprocessing.py", "mouse/images/m.tif", "out", "--move-labels", 1, 0)
    assert result.returncode == 0 and "m: no labels that could be moved\n" in result.stdout


def test_a_dataset_of_an_hdf5_file_in_chunks_long_in_time(tmp_path, command):
    stack = np.random.default_rng(0).integers(1, 2000, (80, 30, 50)).astype(np.int16)
    with h5py.File(tmp_path / "a.mesc", "w") as file:
        file.create_dataset("green", data=stack, chunks=(80, 4, 4), compression="gzip")
        file.create_dataset("red", data=stack[:, ::-1])
        file.create_dataset("last", data=np.moveaxis(stack, 0, -1))
    result = command("preprocessing.py", "a.mesc", "out")
    assert result.returncode == 2 and "--dataset NAME, of green (80 x 30 x 50 int16)" in result.stderr
    for options, expected in (
        (["--dataset", "green"], stack),
        (["--dataset", "red"], stack[:, ::-1]),
        (["--dataset", "last", "--axes", "YXT"], stack),
        (["--dataset", "green", "--transpose", "--frames", "3:20"], stack[2:20].transpose(0, 2, 1)),
    ):
        assert command("preprocessing.py", "a.mesc", "out", *options).returncode == 0
        mean = expected.mean(0)
        image = np.load(tmp_path / "out" / "X_a.npy")
        np.testing.assert_allclose(image, np.minimum(mean, mean.mean() + 3 * mean.std()), rtol=1e-6)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    result = command("preprocessing.py", "a.tif", "out", "--dataset", "green")
    assert result.returncode == 2 and "a.tif: is TIFF, which has no datasets" in result.stderr
