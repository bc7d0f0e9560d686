from __future__ import annotations

import io
import json
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
from neurodetect.formats.labels import find_labels, find_truths, read_estimate, read_labels, read_neurons
from neurodetect.formats.pickles import read_objects
from neurodetect.formats.rois import fill_polygons
from neurodetect.regions import read_regions, regions_to_labels, write_regions, write_submission

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


def refused(path, match, shape=SHAPE):
    with pytest.raises(UserError, match=match) as error:
        read_labels(path, shape)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


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
    rectangle, freehand, oval, ring = (as_mask(region) for region, _ in read)
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


def test_points_and_lines_among_outlines_are_left_out(tmp_path):
    point = roifile.ImagejRoi.frompoints([(3, 4)])
    point.roitype = roifile.ROI_TYPE.POINT
    picture = roi_of("RECT", 1, 1, 9, 9, subtype=roifile.ROI_SUBTYPE.IMAGE)
    none = {"pt.roi": point.tobytes(), "li.roi": roi_of("LINE").tobytes(), "im.roi": picture.tobytes()}
    write_zip(tmp_path / "a.zip", {**none, "fine.roi": roi_of("RECT", 0, 0, 5, 5).tobytes()})
    with pytest.warns(UserWarning, match=r"\(3\): pt.roi \(point\), li.roi \(line\), im.roi \(image\)"):
        assert [len(region) for region in read_labels(tmp_path / "a.zip", SHAPE)] == [25]
    refused(write_zip(tmp_path / "a.zip", none), "nothing but ROIs without an area .*pt.roi")


def test_rois_of_several_slices_are_all_taken_with_a_word(tmp_path, recwarn):
    for kind in ("position", "z_position", "c_position"):
        rois = [roi_of("RECT", i, 0, i + 3, 5, **{kind: 1 + i % 2}) for i in range(4)]
        roifile.roiwrite(tmp_path / f"{kind}.zip", rois, name=list("abcd"))
        assert len(read_labels(tmp_path / f"{kind}.zip", SHAPE)) == 4
    words = [str(warning.message) for warning in recwarn]
    assert [word.split("different ")[1].split(";")[0] for word in words] == [
        "slices (1, 2)",
        "planes (1, 2)",
        "channels (1, 2)",
    ]


def test_a_folder_of_rois_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        roi_of("RECT", number, 0, number + 2, 2).tofile(tmp_path / f"cell{number}.roi")
    (tmp_path / "notes.txt").write_text("text")
    assert [region[0].tolist() for region in read_labels(tmp_path, SHAPE)] == [[0, 1], [0, 2], [0, 10]]
    (tmp_path / "cell2.roi").write_bytes(b"Iout")
    refused(tmp_path, "ROI cell2 cannot be read")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "holds no labels")


def test_a_neuron_that_is_there_twice_is_taken_once(tmp_path):
    a, b, c = np.array([[1, 2], [3, 4]]), np.array([[5, 6]]), np.array([[1, 2]])
    write_regions(tmp_path / "a.json", [a, b, a[::-1], c, b])
    with pytest.warns(UserWarning, match="a.json: 2 of 5 neurons"):
        read = read_labels(tmp_path / "a.json", SHAPE)
    assert [region.tolist() for region in read] == [region.tolist() for region in (a, b, c)]


def test_neurons_of_a_submission(tmp_path):
    path, a, b = tmp_path / "submission.json", np.array([[1, 2]]), np.array([[3, 4]])
    write_submission(path, {"neurofinder.00.00": [a], "mouse": [b]})
    assert read_labels(path, SHAPE, name="neurofinder.00.00")[0].tolist() == a.tolist()
    assert read_labels(path, SHAPE, name="mouse")[0].tolist() == b.tolist()
    refused(path, "2 recordings, 00.00, mouse, and only one can be read")
    with pytest.raises(UserError, match="none of them is rat"):
        read_labels(path, SHAPE, name="rat")
    write_submission(path, {"mouse": [a]})
    assert len(read_labels(path, SHAPE)) == 1
    with pytest.warns(UserWarning, match="neurons of mouse, which are taken for rat"):
        assert len(read_labels(path, SHAPE, name="rat")) == 1
    path.write_text(json.dumps({"regions": [{"coordinates": [[1, 2]]}]}))
    assert read_labels(path, SHAPE)[0].tolist() == [[1, 2]]


# Suite2p and Cellpose

NEURONS = [np.array([[2, 39], [3, 39]]), np.array([[29, 0]]), np.array([[0, 0], [0, 1]])]


def stat_of(regions, **others):
    """What Suite2p keeps of ROIs, as far as it matters."""
    return [
        {
            "ypix": region[:, 0],
            "xpix": region[:, 1].astype(np.int32),
            "overlap": np.ones(len(region), bool),
            "med": list(region.mean(axis=0)),
            "radius": np.float32(3),
            "npix": len(region),
            **others,
        }
        for region in regions
    ]


def save_objects(path, value):
    np.save(path, np.array(value, object), allow_pickle=True)
    return path


def is_same(read, regions):
    return [region.tolist() for region in read] == [region.tolist() for region in regions]


def test_suite2p(tmp_path):
    path = save_objects(tmp_path / "stat.npy", stat_of(NEURONS))
    assert is_same(read_labels(path, SHAPE), NEURONS)
    np.save(tmp_path / "F.npy", np.zeros((3, 100)))
    np.save(tmp_path / "iscell.npy", np.array([[1, 0.9], [0, 0.1], [1, 0.8]]))
    for source in (path, tmp_path):  # Suite2p's folder as a whole too
        with pytest.warns(UserWarning, match="stat.npy: of 3 ROIs 2 are taken"):
            assert is_same(read_labels(source, SHAPE), NEURONS[::2])
    np.save(tmp_path / "iscell.npy", np.zeros((3, 2)))
    refused(tmp_path, "iscell.npy: calls none of 3 ROIs a cell")
    np.save(tmp_path / "iscell.npy", np.ones((4, 2)))
    refused(tmp_path, "iscell.npy: is not of the 3 ROIs")
    (tmp_path / "iscell.npy").unlink()
    refused(path, r"ROI 0 has pixel \[2, 39\], which is no pixel of the image of 30 rows and 30", (30, 30))
    planes = [*stat_of(NEURONS[:1], iplane=np.int64(0)), *stat_of(NEURONS[1:], iplane=np.int64(1))]
    refused(save_objects(path, planes), "several planes")
    refused(save_objects(path, [{"ypix": [1, 2], "xpix": [1]}]), "ROI 0 has more ypix than xpix")
    refused(save_objects(path, [{"ypix": 3}]), "neither ROIs of Suite2p")
    refused(save_objects(path, []), "neither ROIs of Suite2p")


@pytest.mark.parametrize("order", "CF")
def test_cellpose(tmp_path, order):
    masks = np.asarray(regions_to_labels(NEURONS, SHAPE).astype(np.uint16), order=order)
    flows = [np.zeros((3, *SHAPE), np.uint8), np.zeros(SHAPE, ">f4"), [np.array(["a"], object)]]
    others = {"outlines": masks * 0, "flows": flows, "filename": "m.tif", "diameter": np.float64(9)}
    path = save_objects(tmp_path / "m_seg.npy", {"masks": masks, **others})
    read = read_labels(path, SHAPE)
    assert is_same(read, NEURONS)
    refused(path, "is 30 x 40 px, but the recording is 40 x 30 .*rows and columns exchanged", (40, 30))
    refused(save_objects(path, {"masks": np.zeros((2, *SHAPE), int)}), "is 2 x 30 x 40; a label image")
    np.save(tmp_path / "masks.npy", masks)
    assert is_same(read_labels(tmp_path / "masks.npy", SHAPE), NEURONS)
    np.save(tmp_path / "masks.npy", np.float32(masks) + 0.5)
    refused(tmp_path / "masks.npy", "no whole numbers from 0")


@pytest.mark.parametrize("dtype", ["?", "i1", ">i2", "<u4", "i8", "f2", ">f8", "c16", "U3", "S2"])
@pytest.mark.parametrize("order", "CF")
def test_pickled_arrays_are_what_numpy_reads(tmp_path, dtype, order):
    numbers = np.asarray(np.arange(-3, 9).reshape(3, 4).astype(dtype), order=order)
    value = [numbers, numbers[1, 2], numbers[:, 1], numbers[:0], np.array(["x", None], object)]
    save_objects(tmp_path / "a.npy", [{"a": entry} for entry in value])
    expected = np.load(tmp_path / "a.npy", allow_pickle=True)
    for read, right in zip(read_objects(tmp_path / "a.npy"), expected, strict=True):
        stored, array = read["a"].value, right["a"]
        assert np.array_equal(stored, array)
        if array.dtype != object:
            assert stored.dtype.newbyteorder("=") == array.dtype and stored.shape == array.shape


class Calls:
    """A pickle of it makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_pickle_is_run_and_the_line_that_converts_it_works(tmp_path):
    folder = tmp_path / "my 'own' data"
    folder.mkdir()
    save_objects(folder / "stat.npy", stat_of(NEURONS, from_file=Path("a")))
    masks = regions_to_labels(NEURONS, SHAPE)
    save_objects(folder / "m_seg.npy", {"masks": masks, "filename": Path("a")})
    for file, written, expected in (
        ("stat.npy", "regions.json", NEURONS),
        ("m_seg.npy", "m_seg_masks.npy", NEURONS),
        ("stat.npy", "regions.json", NEURONS[1:]),
    ):
        refused(folder / file, "it would run pathlib")
        with pytest.raises(UserError) as error:
            read_labels(folder / file, SHAPE)
        line = str(error.value).split("run in Python: ")[1]
        subprocess.run([sys.executable, "-c", line], check=True)
        assert is_same(read_labels(folder / written, SHAPE), expected)
        np.save(folder / "iscell.npy", np.array([[0, 0.1], [1, 0.9], [1, 0.9]]))
    refused(save_objects(tmp_path / "other.npy", [Path("a")]), "save its neurons as a label image")

    save_objects(tmp_path / "stat.npy", [Calls(tmp_path / "called")])
    header = (tmp_path / "stat.npy").read_bytes()[:128]
    refused(tmp_path / "stat.npy", "it would run .*open")
    for code in (
        b"cos\nsystem\n(S'touch called'\ntR.",
        b"cnumpy\nload\n(S'called'\ntR.",
        b"cnumpy\nndarray.tofile\n.",
        b"cneurodetect.formats.pickles\nStored\n.",
        b"Pmine\n.",  # an object outside the pickle
    ):
        (tmp_path / "stat.npy").write_bytes(header + code)
        refused(tmp_path / "stat.npy", "cannot be read without running code")
    for code in (b"", b"N.", b"cnumpy\nndarray\n(i\n", b"\x80\x04r\xff\xff\xff\xff.", b"]."):
        (tmp_path / "stat.npy").write_bytes(header + code)
        refused(tmp_path / "stat.npy", "cut short or damaged|without running code")
    assert not list(tmp_path.rglob("called"))


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


def test_label_images_whose_background_is_a_number(tmp_path):
    path, labels = tmp_path / "cells.tif", regions_to_labels(NEURONS, SHAPE)
    tifffile.imwrite(path, labels + 1)  # as a watershed numbers the outside
    refused(path, "has no pixel of 0, and number 1 covers 100% of the image")
    lines = labels + 1
    lines[:, 20] = 0
    tifffile.imwrite(path, lines)
    refused(path, "cells.tif: number 1 covers 97% of the image; the background must be 0")
    tifffile.imwrite(path, labels - 1)
    refused(path, "has -1 as background, which must be 0")
    halves = np.repeat([[3, 4]], 20, axis=1) * np.ones((30, 1), int)
    tifffile.imwrite(path, halves)
    refused(path, "no pixel of 0")
    halves[:, 19] = 0  # two large neurons are neurons
    tifffile.imwrite(path, halves)
    assert [len(region) for region in read_labels(path, SHAPE)] == [19 * 30, 20 * 30]


@pytest.mark.parametrize("value", [True, 1, 255])
def test_masks_are_called_so_and_one_piece_is_a_neuron(tmp_path, value):
    mask = np.zeros(SHAPE, bool if value is True else np.uint8)
    mask[3:6, 4:9] = value
    for pieces in (1, 2):
        tifffile.imwrite(tmp_path / "mask.tif", mask)
        Image.fromarray(mask).save(tmp_path / "mask.png")
        np.save(tmp_path / "mask.npy", mask)
        for name in ("mask.tif", "mask.png", "mask.npy"):
            if pieces == 1:
                assert [len(region) for region in read_labels(tmp_path / name, SHAPE)] == [15]
            else:
                refused(tmp_path / name, "is a mask")
        mask[20, 20] = value


def test_a_number_in_pieces_is_named(tmp_path, recwarn):
    path, labels = tmp_path / "cells.png", np.zeros(SHAPE, np.uint8)
    labels[2:4, 2:4] = labels[4:8, 4:8] = 1  # they touch at a corner
    labels[20:25, 20:25] = 2
    Image.fromarray(labels).save(path)
    assert len(read_labels(path, SHAPE)) == 2 and not len(recwarn)
    labels[4, 4] = 0
    labels[2, 30] = 2
    Image.fromarray(labels).save(path)
    assert len(read_labels(path, SHAPE)) == 2
    assert [str(w.message) for w in recwarn] == [
        f"{path}: number 2 is in 2 pieces, far apart, but taken for one neuron",
        f"{path}: number 1 is in 2 pieces, that do not touch, but taken for one neuron",
    ]
    picture = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 2)
    Image.fromarray((255 * (picture - picture.min()) / np.ptp(picture)).astype(np.uint8)).save(path)
    refused(path, "far apart; is it a label image?")


def test_numbers_are_read_as_they_are_stored(tmp_path):
    labels = regions_to_labels(NEURONS, SHAPE).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="miniswhite")  # as ImageJ shows masks
    black = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "b.tif", labels, photometric="palette", colormap=black)
    for name in "ab":
        assert is_same(read_labels(tmp_path / f"{name}.tif", SHAPE), NEURONS)
    tifffile.imwrite(tmp_path / "a.tif", np.stack([labels] * 3, axis=-1), photometric="rgb")
    refused(tmp_path / "a.tif", "is a colour image")
    tifffile.imwrite(tmp_path / "b.tif", labels)
    (tmp_path / "b.tif").write_bytes((tmp_path / "b.tif").read_bytes()[:-300])
    refused(tmp_path / "b.tif", "cut short")
    tifffile.imwrite(tmp_path / "a.tif", np.where(labels, labels, np.nan).astype(np.float32))
    refused(tmp_path / "a.tif", "no whole numbers from 0")


def test_json_is_read_too(tmp_path):
    regions = [np.array([[1, 2], [3, 4]])]
    write_regions(tmp_path / "any.json", regions)
    assert np.array_equal(read_labels(tmp_path / "any.json", SHAPE)[0], regions[0])


# What a user can get wrong


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


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["a.roi", "a.zip", "a.png", "a.tif", "stat.npy", "a_seg.npy"]))
def test_damaged_bytes_are_read_or_refused_but_never_a_traceback(tmp_path, data, kind):
    roi = roifile.ImagejRoi.frompoints([(3.5, 4.5), (20, 4), (20, 20), (3, 20)], name="cell")
    labels = np.arange(30 * 40, dtype=np.uint16).reshape(SHAPE) // 100
    good = io.BytesIO()
    if kind == "a.roi":
        good.write(roi.tobytes())
    elif kind == "a.zip":
        with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.roi", roi.tobytes())
    elif kind == "stat.npy":
        np.save(good, np.array(stat_of(NEURONS), object), allow_pickle=True)
    elif kind == "a_seg.npy":
        np.save(good, np.array({"masks": labels, "diameter": np.float64(3)}), allow_pickle=True)
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


# Where labels are


def put(folder, *names):
    """Empty files, and folders where a name ends in a slash."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()


@pytest.mark.parametrize(
    "names, labels, unread",
    [
        (["regions/regions.json", "images/a.tif"], "regions/regions.json", []),
        (["Regions/Regions.JSON", "a.tif"], "Regions/Regions.JSON", []),
        (["REGIONS/c10.roi", "REGIONS/c9.roi"], ["REGIONS/c9.roi", "REGIONS/c10.roi"], []),
        (
            ["regions/a.zip", "regions/b.csv", "regions/a.mat"],
            "regions/a.zip",
            ["regions/a.mat", "regions/b.csv"],
        ),
        (["regions/regions_training.json"], None, ["regions/regions_training.json"]),
        (["regions/.hidden.zip", "regions/Thumbs.db", "regions/a_seg.npy"], "regions/a_seg.npy", []),
        (["regions/stat.npy", "regions/iscell.npy", "regions/F.npy"], "regions/stat.npy", []),
        (["regions/masks.npy"], "regions/masks.npy", []),
        (["regions/centers.npy", "regions/regions.json"], "regions/regions.json", ["regions/centers.npy"]),
        (["regions/F.npy"], None, ["regions/F.npy"]),
        (["RoiSet.zip", "cell.roi", "f1.tif", "f1_masks.tif"], None, ["cell.roi", "RoiSet.zip"]),
        (["f_seg.npy", "stat.npy", "sources/sources.json"], None, ["f_seg.npy", "sources", "stat.npy"]),
        (["images/m.tif", "images/m_cp_masks.png", "suite2p/"], None, ["suite2p", "images/m_cp_masks.png"]),
        (["images/a.tif", "info.json", "notes.txt", "ops.npy", "roidal.tif"], None, []),
    ],
)
def test_where_the_labels_of_a_folder_are_and_what_is_not_read(tmp_path, names, labels, unread):
    put(tmp_path, *names)
    found, others = find_labels(tmp_path)
    assert others == [tmp_path / name for name in unread]
    assert found == (
        [tmp_path / name for name in labels] if isinstance(labels, list) else labels and tmp_path / labels
    )


@pytest.mark.parametrize(
    "movie, names, labels, unread",
    [
        ("m.tif", ["m.regions.json", "m2.regions.zip", "m.regions.tif.txt"], "m.regions.json", []),
        ("m.tif", ["M.Regions.ZIP"], "M.Regions.ZIP", []),
        ("m.ome.tif", ["m.regions.zip"], "m.regions.zip", []),
        ("m.ome.tif", ["m.ome.regions.zip", "m_RoiSet.zip"], "m.ome.regions.zip", ["m_RoiSet.zip"]),
        (
            "m.h5",
            ["m_seg.npy", "m_cp_masks.png", "m.zip", "m.roi"],
            None,
            ["m_cp_masks.png", "m_seg.npy", "m.roi", "m.zip"],
        ),
        ("m.tif", ["m_2.tif", "m_2_RoiSet.zip", "m10_seg.npy", "other.zip", "m.png"], None, []),
        ("m.tif", ["RoiSet.zip", "regions/regions.json"], None, ["regions", "RoiSet.zip"]),
        ("a+b(1.tif", ["a+b(1.regions.csv"], None, ["a+b(1.regions.csv"]),
    ],
)
def test_where_the_labels_of_a_file_are_and_what_is_not_read(tmp_path, movie, names, labels, unread):
    put(tmp_path, movie, *names)
    found, others = find_labels(tmp_path / movie)
    assert found == (labels and tmp_path / labels)
    assert sorted(others) == sorted(tmp_path / name for name in unread)


@pytest.mark.parametrize(
    "names, words",
    [
        (["regions/a.tif", "regions/regions.json"], "a.tif and regions.json"),
        (["regions/RoiSet.zip", "regions/1.roi", "regions/2.roi"], "RoiSet.zip and 2 .roi files"),
        (["regions/a.npy", "regions/b.npy"], "a.npy and b.npy"),
        (["m.ome.tif", "m.ome.regions.zip", "m.regions.zip"], "m.ome.regions.zip and m.regions.zip"),
    ],
)
def test_labels_of_two_kinds_are_refused(tmp_path, names, words):
    put(tmp_path, *names)
    with pytest.raises(UserError, match=f"more than once, {words}; .*--labels FILE"):
        find_labels(tmp_path / "m.ome.tif" if "m.ome.tif" in names else tmp_path)


def test_truths_of_every_kind(tmp_path):
    write_regions(tmp_path / "a" / "Regions" / "regions.json", NEURONS)
    for number in (1, 2):
        path = tmp_path / "b" / "regions" / f"{number}.roi"
        path.parent.mkdir(parents=True, exist_ok=True)
        roi_of("RECT", number, 0, 9, 9).tofile(path)
    save_objects(tmp_path / "stat.npy", [])  # no recording
    truths = find_truths(tmp_path)
    assert {name: len(read_labels(truth.labels)) for name, truth in truths.items()} == {"a": 3, "b": 2}
    assert truths["b"].info == tmp_path / "b" / "info.json"
    (truth,) = find_truths(tmp_path / "b" / "regions").values()
    assert len(read_labels(truth.labels)) == 2
    assert len(read_estimate(tmp_path / "b" / "regions")) == 2


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
