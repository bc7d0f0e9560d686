from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import roifile
import skimage.draw
import skimage.measure
import tifffile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from PIL import Image
from scipy.ndimage import gaussian_filter

from neurodetect.files import UserError
from neurodetect.formats.labels import read_labels, read_neurons
from neurodetect.formats.rois import fill_polygons
from neurodetect.regions import read_regions, regions_to_labels, write_regions

SHAPE = (30, 40)


def as_mask(pixels, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[tuple(np.asarray(pixels).T)] = True
    assert mask.sum() == len(pixels)  # no pixel twice
    return mask


def a_polygon(rng, corners=7, size=12):
    """A star-shaped polygon, as a neuron's outline is; (x, y) that no centre of a pixel lies on."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    lengths = rng.uniform(size / 4, size, corners)
    centre = rng.uniform([5, 5], [35, 25])
    return centre + np.column_stack([lengths * np.cos(angles), lengths * np.sin(angles)]).round(3)


def roi_of(roitype, left=0, top=0, right=0, bottom=0, **attributes):
    roi = roifile.ImagejRoi()
    roi.roitype = roifile.ROI_TYPE[roitype]
    roi.left, roi.top, roi.right, roi.bottom = left, top, right, bottom
    for name, value in attributes.items():
        setattr(roi, name, value)
    return roi


def write_zip(path: Path, contents) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


# Filling outlines


@pytest.mark.parametrize("seed", range(20))
def test_polygons_against_matplotlib_and_scikit_image(seed):
    polygon = a_polygon(np.random.default_rng(seed))
    mask = as_mask(fill_polygons([polygon], SHAPE))
    rows, columns = np.indices(SHAPE)
    centres = np.column_stack([columns.ravel() + 0.5, rows.ravel() + 0.5])
    assert np.array_equal(mask, Outline(polygon).contains_points(centres).reshape(SHAPE))
    corners = polygon[:, ::-1] - 0.5  # scikit-image counts (row, column) from the centre of the first pixel
    assert np.array_equal(mask, skimage.draw.polygon2mask(SHAPE, corners))


@given(st.integers(-5, 45), st.integers(-5, 35), st.integers(1, 30), st.integers(1, 30))
def test_a_rectangle_has_the_pixels_between_its_corners(left, top, width, height):
    right, bottom = left + width, top + height
    pixels = fill_polygons([np.array([(left, top), (right, top), (right, bottom), (left, bottom)])], SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    assert np.array_equal(as_mask(pixels), expected)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=3, max_size=8))
def test_the_two_halves_of_an_image_share_no_pixel_and_miss_none(corners):
    # A polygon and the image with that polygon cut out, edges running through the centres of pixels.
    polygon = np.array(corners) + 0.5
    frame = np.array([(0, 0), (40, 0), (40, 30), (0, 30)])
    inside = as_mask(fill_polygons([polygon], SHAPE))
    outside = as_mask(fill_polygons([polygon, frame], SHAPE))
    assert np.array_equal(inside, ~outside)


def test_the_outlines_of_a_region_give_it_back():
    rng = np.random.default_rng(0)
    for _ in range(20):
        blobs = gaussian_filter(rng.normal(size=SHAPE), 1.5) > 0.02  # in pieces and with holes
        outlines = skimage.measure.find_contours(np.pad(blobs, 1).astype(float), 0.5)
        # They are (row, column) from the centre of the first pixel of the padded image.
        polygons = [outline[:, ::-1] - 1 + 0.5 for outline in outlines]
        assert np.array_equal(as_mask(fill_polygons(polygons, SHAPE)), blobs)


# ImageJ ROIs


def test_a_zip_of_the_roi_manager(tmp_path):
    rng = np.random.default_rng(0)
    polygons = [a_polygon(rng) for _ in range(12)]
    rois = [roifile.ImagejRoi.frompoints(polygon, name=str(i)) for i, polygon in enumerate(polygons)]
    roifile.roiwrite(tmp_path / "RoiSet.zip", rois)
    regions = read_labels(tmp_path / "RoiSet.zip", SHAPE)
    assert len(regions) == 12
    for region, polygon in zip(regions, polygons, strict=True):
        corners = polygon.astype(np.float32)[:, ::-1] - 0.5
        assert np.array_equal(as_mask(region), skimage.draw.polygon2mask(SHAPE, corners))
        assert np.array_equal(region, np.unique(region, axis=0))


def test_kinds_of_outlines_by_hand(tmp_path):
    hole = [
        (0, 10, 5),
        (1, 14, 5),
        (1, 14, 9),
        (1, 10, 9),
        (4,),
        (0, 11, 6),
        (1, 13, 6),
        (1, 13, 8),
        (1, 11, 8),
    ]
    path = np.array([value for step in hole for value in step], np.float32)
    composite = roi_of("RECT", 10, 5, 14, 9, multi_coordinates=path, shape_roi_size=len(path))
    square = np.array([(3, 4), (6, 4), (6, 6), (3, 6)])
    traced = roifile.ImagejRoi.frompoints(square)
    traced.roitype = roifile.ROI_TYPE.TRACED
    rois = [roi_of("RECT", 3, 4, 6, 6), traced, roi_of("OVAL", 2, 3, 6, 7), composite]
    roifile.roiwrite(tmp_path / "a.zip", rois, name=["a", "b", "c", "d"])
    read = read_neurons(tmp_path / "a.zip", SHAPE)
    rectangle, freehand, oval, ring = (as_mask(region) for region in read)
    expected = np.zeros(SHAPE, bool)
    expected[4:6, 3:6] = True
    assert np.array_equal(rectangle, expected) and np.array_equal(freehand, expected)
    assert oval[3:7, 2:6].astype(int).tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    assert oval.sum() == 12
    assert ring[5:9, 10:14].astype(int).tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert ring.sum() == 12


@given(st.floats(-10, 40), st.floats(-10, 30), st.floats(0.5, 30), st.floats(0.5, 30))
@example(0, 0.25, 0.5, 0.5)  # with one pixel's centre on it, and none inside
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ovals_against_the_equation_of_the_ellipse(tmp_path, x, y, width, height):
    roi = roi_of("OVAL", xd=x, yd=y, widthd=width, heightd=height, version=227)
    roi.options = roifile.ROI_OPTIONS.SUB_PIXEL_RESOLUTION
    roi.tofile(tmp_path / "oval.roi")
    x, y, width, height = (float(np.float32(value)) for value in (x, y, width, height))  # as it is stored
    rows, columns = np.indices(SHAPE) + 0.5
    half = (2 * (columns - x) / width - 1) ** 2 + (2 * (rows - y) / height - 1) ** 2
    clear = abs(half - 1) > 1e-6
    if (half <= 1).any():
        mask = as_mask(read_labels(tmp_path / "oval.roi", SHAPE)[0])
        assert np.array_equal(mask[clear], half[clear] <= 1)
    elif clear.all():
        refused(tmp_path / "oval.roi", "has no pixel in an image of 30 rows and 40 columns")


def test_a_centre_on_an_oval_belongs_to_it(tmp_path):
    roi = roi_of("OVAL", xd=0.5, yd=2.5, widthd=10, heightd=8, version=227)
    roi.options = roifile.ROI_OPTIONS.SUB_PIXEL_RESOLUTION
    roi.tofile(tmp_path / "oval.roi")
    rows, columns = np.indices(SHAPE)
    # By whole numbers: the box has its centre at pixel (6, 5), and half sides of 4 and 5 pixels.
    inside = 25 * (rows - 6) ** 2 + 16 * (columns - 5) ** 2 <= 25 * 16
    assert np.array_equal(as_mask(read_labels(tmp_path / "oval.roi", SHAPE)[0]), inside)


def test_what_reaches_over_the_border_is_cut_there(tmp_path):
    roi_of("RECT", 38, 27, 50, 50).tofile(tmp_path / "over.roi")
    assert len(read_labels(tmp_path / "over.roi", SHAPE)[0]) == 2 * 3
    assert len(read_labels(tmp_path / "over.roi")[0]) == 12 * 23


# Label images


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_label_image(tmp_path, dtype):
    regions = [np.array([[2, 39], [3, 39]]), np.array([[29, 0]]), np.array([[0, 0], [1, 1]])]
    labels = regions_to_labels(regions, SHAPE).astype(dtype) * 3
    tifffile.imwrite(tmp_path / "cells.tif", labels)
    files = [tmp_path / "cells.tif"]
    if dtype in (np.uint8, np.uint16):
        Image.fromarray(labels).save(tmp_path / "cells.png")
        files.append(tmp_path / "cells.png")
    for file in files:
        read = read_labels(file, SHAPE)
        assert [region.tolist() for region in read] == [region.tolist() for region in regions]


def test_json_is_read_too(tmp_path):
    regions = [np.array([[1, 2], [3, 4]])]
    write_regions(tmp_path / "any.json", regions)
    assert np.array_equal(read_labels(tmp_path / "any.json", SHAPE)[0], regions[0])


# What a user can get wrong


def refused(path, match, shape=SHAPE):
    with pytest.raises(UserError, match=match) as error:
        read_labels(path, shape)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_rois_outside_or_damaged(tmp_path):
    lost = roifile.ImagejRoi.frompoints([(3.5, 2.5), (9, 9), (1, 9)])
    lost.subpixel_coordinates[0, 0] = np.nan
    fine = roi_of("RECT", 0, 0, 5, 5).tobytes()
    for roi, match in [
        (roi_of("RECT", 41, 2, 50, 9), "has no pixel in an image"),
        (roi_of("RECT", 5, 5, 5, 5), "has no pixel in an image"),
        (roi_of("OVAL", 5, 5, 5, 5), "has no pixel in an image"),
        (lost, "no numbers"),
    ]:
        write_zip(tmp_path / "a.zip", {"fine.roi": fine, "bad.roi": roi.tobytes()})
        refused(tmp_path / "a.zip", f"ROI bad.roi .*{match}")


def test_zips_that_are_none_or_empty_or_dangerous(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    refused(path, "cannot be read")
    path.write_bytes(b"PK and no more")
    refused(path, "cannot be read as zip")
    refused(write_zip(path, {"notes.txt": "text"}), "holds no .roi")
    refused(write_zip(path, {"a.roi": b"Iout" + bytes(10)}), "ROI a.roi cannot be read")
    monkeypatch.setattr("neurodetect.formats.rois.MOST_ROIS", 3)
    square = roi_of("RECT", 0, 0, 5, 5).tobytes()
    refused(write_zip(path, {f"{i}.roi": square for i in range(4)}), "holds 4 ROIs")
    # Names are names, not paths; what macOS packs beside is none of ours.
    other = roi_of("RECT", 0, 0, 6, 5).tobytes()
    write_zip(path, {"../../../evil.roi": square, "__MACOSX/._a.roi": b"Mac", "sub/b.ROI": other})
    assert len(read_labels(path, SHAPE)) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zip"]


def test_a_zip_that_unpacks_to_gigabytes_is_read_no_further_than_a_roi(tmp_path, monkeypatch):
    monkeypatch.setattr("neurodetect.formats.rois.LARGEST_ROI", 1000)
    read = []
    monkeypatch.setattr(
        roifile.ImagejRoi,
        "frombytes",
        lambda content: read.append(len(content)) or roi_of("RECT", 0, 0, 5, 5),
    )
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.roi", bytes(10**7))
    read_labels(tmp_path / "bomb.zip", SHAPE)
    (tmp_path / "large.roi").write_bytes(bytes(5000))
    read_labels(tmp_path / "large.roi", SHAPE)
    assert read == [1000, 1000]


def test_label_images_that_are_none(tmp_path):
    path = tmp_path / "cells.tif"
    labels = np.zeros(SHAPE, np.int16)
    tifffile.imwrite(path, labels)
    refused(path, "marks no neuron")
    labels[3, 3] = labels[9, 9] = 255
    tifffile.imwrite(path, labels)
    refused(path, "is a mask")
    labels[3, 3] = -1
    tifffile.imwrite(path, labels)
    refused(path, "no whole numbers from 0")
    tifffile.imwrite(path, labels.astype(np.float32) + 1.5)
    refused(path, "no whole numbers from 0")
    tifffile.imwrite(path, labels.T)
    refused(path, "is 40 x 30 px, but the recording is 30 x 40")
    tifffile.imwrite(path, np.ones((2, *SHAPE), np.uint8), photometric="minisblack")
    refused(path, "has 2 frames; a label image is one")
    Image.fromarray(np.ones((*SHAPE, 3), np.uint8)).save(tmp_path / "colours.png")
    refused(tmp_path / "colours.png", "colour image")
    (tmp_path / "none.png").write_bytes(b"no picture")
    refused(tmp_path / "none.png", "cannot be read")
    refused(tmp_path / "cells.csv", "no file of labels")
    one = np.zeros(SHAPE, np.uint8)
    one[3:5, 3] = one[5, 4] = 7  # a recording may have a single neuron
    tifffile.imwrite(path, one)
    assert [len(region) for region in read_labels(path, SHAPE)] == [3]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), kind=st.sampled_from(["a.roi", "a.zip", "a.png", "a.tif"]))
def test_damaged_bytes_are_read_or_refused_but_never_a_traceback(tmp_path, data, kind):
    roi = roifile.ImagejRoi.frompoints([(3.5, 4.5), (20, 4), (20, 20), (3, 20)], name="cell")
    labels = np.arange(30 * 40, dtype=np.uint16).reshape(SHAPE) // 100
    good = io.BytesIO()
    if kind == "a.roi":
        good.write(roi.tobytes())
    elif kind == "a.zip":
        with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.roi", roi.tobytes())
    elif kind == "a.png":
        Image.fromarray(labels).save(good, "PNG")
    else:
        tifffile.imwrite(good, labels)
    content = bytearray(good.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / kind).write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        for region in read_labels(tmp_path / kind, SHAPE):
            assert len(region) and (region >= 0).all() and (region < SHAPE).all()
    except UserError as error:
        assert "\n" not in str(error)


# The command


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "neurodetect.labels", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        capture_output=True,
        text=True,
    )


def test_the_command_converts(tmp_path):
    roifile.roiwrite(tmp_path / "RoiSet.zip", [roi_of("RECT", 3, 4, 60, 6)], name=["a"])
    result = command("RoiSet.zip", "mouse/regions/regions.json", "--shape", 30, 40, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout == "Wrote mouse/regions/regions.json: 1 neuron\n"
    regions = read_regions(tmp_path / "mouse" / "regions" / "regions.json")
    assert np.array_equal(regions[0], np.argwhere(as_mask(regions[0]))) and len(regions[0]) == 2 * 37
    for arguments in (
        ["RoiSet.zip", "out.zip"],
        ["nowhere.zip", "a.json"],
        ["RoiSet.zip", "a.json", "--shape", 2, 2],
    ):
        result = command(*arguments, cwd=tmp_path)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RoiSet.zip", "mouse"]
