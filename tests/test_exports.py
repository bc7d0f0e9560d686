from __future__ import annotations

import csv
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tifffile
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from roifile import ROI_TYPE, ImagejRoi
from scipy import ndimage
from skimage import io as skimage_io
from skimage.draw import disk, ellipse, polygon2mask
from skimage.measure import regionprops

from neurodetect.files import UserError
from neurodetect.formats import exports
from neurodetect.formats.exports import (
    FORMATS,
    WITH_IMAGE,
    export,
    export_imagej,
    export_labels,
    imagej_roi,
    suite2p_stat,
)
from neurodetect.regions import labels_to_regions, mean_probability

SHAPE = (40, 60)
# Pixels anywhere: in one piece, in several, with holes, meeting at corners.
blobs = hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def shapes(*parts):
    """One (n, 2) array of pixels per (rows, columns) pair of skimage.draw."""
    return [np.argwhere(painted(part)) for part in parts]


def painted(part):
    mask = np.zeros(SHAPE, bool)
    mask[part] = True
    return mask


REGIONS = shapes(disk((8, 9), 5.5), ellipse(25, 40, 5, 12), ([39], [59]))
PROBABILITY = np.random.default_rng(0).random(SHAPE, np.float32)
IMAGE = np.random.default_rng(1).random(SHAPE, np.float32)


def exported(format, stem, regions=REGIONS, scale=None):
    return export(format, stem, regions, PROBABILITY, IMAGE, scale)


def content(path):
    """Every byte below a file or folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


# All of them


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("imagej", "found_a.00.10_rois.zip"),
        ("labels", "found_a.00.10_labels.tif"),
        ("suite2p", "found_a.00.10_suite2p"),
        ("csv", "found_a.00.10.csv"),
    ],
)
def test_each_format_has_its_name_and_the_same_bytes_every_time(tmp_path, format, name):
    stem = tmp_path / "new" / "found_a.00.10"
    path = exported(format, stem, scale=1.5)
    assert path == tmp_path / "new" / name
    names = {name, "found_a.00.10_mean.tif"} if format in WITH_IMAGE else {name}
    assert {file.name for file in path.parent.iterdir()} == names
    before = content(path)
    assert before and exported(format, stem, scale=1.5) == path
    assert content(path) == before
    assert exported(format, stem, REGIONS[:1]) == path  # what is there already is not added to
    assert content(path) != before
    assert {file.name for file in path.parent.iterdir()} == names
    exported(format, stem, [])  # a recording without neurons ends no command


def test_every_format_is_known_and_no_other(tmp_path):
    for format in FORMATS:
        assert exported(format, tmp_path / "found").exists()
    with pytest.raises(ValueError, match="tiff"):
        exported("tiff", tmp_path / "found")


@pytest.mark.parametrize("format", FORMATS)
def test_what_cannot_be_written_leaves_the_old_as_it_was(tmp_path, monkeypatch, format):
    path = exported(format, tmp_path / "found")
    before, there = content(path), sorted(tmp_path.iterdir())
    real = os.replace

    def fail(source, target):
        if str(target) == str(path) and "partial" in str(source):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="found.*No space left"):
        exported(format, tmp_path / "found", REGIONS[:1])
    assert content(path) == before
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_where_the_folder_should_be_is_refused(tmp_path, format):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        exported(format, tmp_path / "out" / "found")


def test_the_formats_are_known_without_heavy_imports():
    code = (
        "import sys, neurodetect.formats.exports; "
        "print([m for m in ('numpy', 'scipy', 'matplotlib', 'roifile', 'tifffile') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "[]"


# ImageJ


def filled(roi, shape):
    """Pixels of a ROI by ImageJ's rules: even-odd, a pixel belongs to it if its middle does."""
    mask = np.zeros(shape, bool)
    for ring in roi.coordinates(multi=True):
        mask ^= polygon2mask(shape, np.asarray(ring)[:, ::-1] - 0.5)  # its points are pixels' middles
    return mask


@given(blobs, st.integers(0, 400), st.integers(0, 300))
def test_a_roi_covers_exactly_the_neurons_pixels(blob, row, column):
    region = np.argwhere(blob) + [row, column]
    if not len(region):
        return
    roi = ImagejRoi.frombytes(imagej_roi(region, "neuron-0001").tobytes())
    expected = np.zeros((row + 11, column + 11), bool)
    expected[region[:, 0], region[:, 1]] = True
    assert np.array_equal(filled(roi, expected.shape), expected)
    assert (roi.top, roi.left) == tuple(region.min(axis=0))
    assert (roi.bottom, roi.right) == tuple(region.max(axis=0) + 1)
    assert roi.name == "neuron-0001"
    assert roi.position == roi.c_position == roi.z_position == roi.t_position == 0
    if ndimage.label(blob)[1] == ndimage.label(~np.pad(blob, 1))[1] == 1:  # one piece without holes
        assert roi.roitype == ROI_TYPE.TRACED  # a plain polygon, which every program reads


def test_x_is_the_column():
    region = np.array([[3, 7], [3, 8], [3, 9]])
    corners = imagej_roi(region, "one").coordinates().tolist()
    assert sorted(corners) == [[7, 3], [7, 4], [10, 3], [10, 4]]


def test_a_hole_makes_a_composite():
    ring = np.argwhere(np.pad([[0]], 1, constant_values=1)) + [3, 7]
    roi = imagej_roi(ring, "ring")
    assert roi.roitype == ROI_TYPE.RECT and roi.composite and len(roi.coordinates(multi=True)) == 2


def test_the_zip_has_every_neuron_by_its_number(tmp_path):
    path = export_imagej(tmp_path / "rois.zip", REGIONS)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # not now
    assert names == ["neuron-0001.roi", "neuron-0002.roi", "neuron-0003.roi"]
    for roi, name, region in zip(ImagejRoi.fromfile(path), names, REGIONS, strict=True):
        assert f"{roi.name}.roi" == name
        assert np.array_equal(np.argwhere(filled(roi, SHAPE)), region)


# Labels


def test_the_label_image_is_read_back_as_it_was(tmp_path):
    path = export_labels(tmp_path / "labels.tif", REGIONS, SHAPE)
    for labels in (tifffile.imread(path), skimage_io.imread(path)):
        assert labels.dtype == np.uint16 and labels.shape == SHAPE
        assert labels.max() == len(REGIONS)
        back = labels_to_regions(labels)
        assert all(np.array_equal(a, b) for a, b in zip(back, REGIONS, strict=True))
    with tifffile.TiffFile(path) as file:
        assert "unit" not in file.imagej_metadata


def test_the_label_image_has_the_scale(tmp_path):
    path = export_labels(tmp_path / "labels.tif", REGIONS, SHAPE, 1.25)
    with tifffile.TiffFile(path) as file:
        assert file.imagej_metadata["unit"] == "um"
        for tag in ("XResolution", "YResolution"):
            numerator, denominator = file.pages[0].tags[tag].value
            assert numerator / denominator == pytest.approx(1.25)


def test_a_label_image_cannot_show_neurons_that_overlap(tmp_path):
    with pytest.raises(UserError, match="labels.tif.*overlap"):
        export_labels(tmp_path / "labels.tif", [REGIONS[0], REGIONS[0][:1]], SHAPE)
    doubled = np.concatenate([REGIONS[0], REGIONS[0]])  # the same pixel twice in one neuron is no overlap
    export_labels(tmp_path / "labels.tif", [doubled], SHAPE)


def test_a_label_image_has_as_many_neurons_as_numbers(tmp_path):
    pixels = list(np.argwhere(np.ones((256, 257)))[:, None])
    path = export_labels(tmp_path / "labels.tif", pixels[:65535], (256, 257))
    assert np.array_equal(tifffile.imread(path).ravel()[:65535], np.arange(1, 65536))
    with pytest.raises(UserError, match="65535.*65536"):
        export_labels(tmp_path / "labels.tif", pixels[:65536], (256, 257))


# suite2p


def test_suite2p_finds_what_its_gui_loads(tmp_path):
    path = exported("suite2p", tmp_path / "found")
    # The steps of suite2p.gui.io.load_files and views.init_views, versions 0.14 and 1.1.
    stat = np.load(path / "stat.npy", allow_pickle=True)
    ops = np.load(path / "ops.npy", allow_pickle=True).item()
    traces = [np.load(path / name) for name in ("F.npy", "Fneu.npy", "spks.npy")]
    iscell = np.load(path / "iscell.npy")
    assert (ops["Ly"], ops["Lx"]) == SHAPE
    assert np.array_equal(ops["meanImg"], IMAGE)
    view = np.zeros(SHAPE, np.float32)
    view[ops["yrange"][0] : ops["yrange"][1], ops["xrange"][0] : ops["xrange"][1]] = ops["Vcorr"]
    assert np.array_equal(view, PROBABILITY)
    assert int(ops["tau"] * ops["fs"] / 2) >= 0 and len(ops["diameter"]) == 2
    for trace in traces:
        assert trace.shape == (len(REGIONS), ops["nframes"]) and trace.dtype == np.float32
        assert not trace.any()
    assert iscell[:, 0].astype(bool).all()
    assert np.array_equal(iscell[:, 1], mean_probability(PROBABILITY, REGIONS))
    for neuron, region in zip(stat, REGIONS, strict=True):
        assert np.array_equal(np.column_stack([neuron["ypix"], neuron["xpix"]]), region)
        assert neuron["lam"].sum() == neuron["npix"] == len(region)
        assert neuron["overlap"].shape == neuron["ypix"].shape and not neuron["overlap"].any()
        assert neuron["med"] in region.tolist()


def test_suite2p_shape_statistics():
    round_one, long_one, pixel = (suite2p_stat(region, 100.0) for region in REGIONS)
    assert round_one["med"] == [8, 9] and long_one["med"] == [25, 40] and pixel["med"] == [39, 59]
    assert round_one["aspect_ratio"] == pytest.approx(1.0, abs=1e-9)
    assert round_one["radius"] == pytest.approx(5.5, rel=0.05)
    assert round_one["compact"] == pytest.approx(1.0, abs=0.03)
    # The mean distance from the middle of an ellipse, from its radius in every direction.
    angles = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    radius = 1 / np.hypot(np.cos(angles) / 12, np.sin(angles) / 5)
    distance = 2 * np.pi * np.mean(radius**3 / 3) / (np.pi * 12 * 5)
    assert long_one["compact"] == pytest.approx(distance / (2 / 3 * np.sqrt(12 * 5)), rel=0.02)
    properties = regionprops(painted(ellipse(25, 40, 5, 12)).astype(int))[0]
    # scikit-image takes pixels for points; with their own variance of 1/12, squared semiaxes are 4/12 more.
    long, short = (
        np.sqrt((length / 2) ** 2 + 4 / 12)
        for length in (properties.axis_major_length, properties.axis_minor_length)
    )
    assert long_one["radius"] == pytest.approx(long)
    assert long_one["aspect_ratio"] == pytest.approx(2 * long / (long + short))
    assert pixel["radius"] > 0 and np.isfinite(pixel["compact"])
    assert round_one["npix_norm"] == len(REGIONS[0]) / 100


def test_a_suite2p_folder_with_other_files_is_not_replaced(tmp_path):
    path = exported("suite2p", tmp_path / "found")
    (path / ".DS_Store").write_text("what macOS leaves")
    exported("suite2p", tmp_path / "found")
    (path / "notes.txt").write_text("mine")
    before = content(path)
    with pytest.raises(UserError, match="found_suite2p.*notes.txt"):
        exported("suite2p", tmp_path / "found", REGIONS[:1])
    assert content(path) == before and list(tmp_path.iterdir()) == [path]


def test_a_half_written_suite2p_folder_is_removed(tmp_path, monkeypatch):
    real = np.save

    def fail(path, array):
        if path.name == "F.npy":
            raise OSError(28, "No space left on device")
        real(path, array)

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(UserError, match="No space left"):
        exported("suite2p", tmp_path / "found")
    assert not list(tmp_path.iterdir())


def test_the_files_of_the_folder_are_those_that_may_be_replaced(tmp_path):
    assert set(content(exported("suite2p", tmp_path / "found"))) == set(exports.SUITE2P_FILES)


# Spreadsheets


def test_the_table_says_what_the_pixels_say(tmp_path):
    with open(exported("csv", tmp_path / "found", scale=2.0), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = np.zeros(SHAPE, int)
    for number, region in enumerate(REGIONS, start=1):
        labels[tuple(region.T)] = number
    for row, expected in zip(rows, regionprops(labels, PROBABILITY), strict=True):
        assert int(row["neuron"]) == expected.label
        assert (float(row["row"]), float(row["column"])) == pytest.approx(expected.centroid, abs=5e-4)
        assert int(row["area_px"]) == expected.area
        assert float(row["area_um2"]) == expected.area / 4
        first = (int(row["first_row"]), int(row["first_column"]))
        last = (int(row["last_row"]), int(row["last_column"]))
        assert first == expected.bbox[:2] and last == tuple(end - 1 for end in expected.bbox[2:])
        assert float(row["probability"]) == pytest.approx(expected.intensity_mean, abs=5e-5)


def test_without_a_scale_there_is_no_column_of_micrometres(tmp_path):
    lines = exported("csv", tmp_path / "found", [np.array([[3, 7], [3, 8]])]).read_text().splitlines()
    assert lines[0] == "neuron,row,column,area_px,first_row,first_column,last_row,last_column,probability"
    assert lines[1].startswith("1,3.000,7.500,2,3,7,3,8,0.") and len(lines) == 2
