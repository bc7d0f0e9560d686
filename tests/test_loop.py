"""From found neurons to better ones: recordings predicted at once, corrected elsewhere, learned from."""

from __future__ import annotations

import json
import zipfile

import h5py
import numpy as np
import pytest
import roifile
import tifffile
from conftest import assert_refused

from neurodetect.formats.exports import export
from neurodetect.formats.labels import read_named_labels
from neurodetect.formats.tiff import TiffFrames
from neurodetect.prepared import read_prepared
from neurodetect.recording import open_recording
from neurodetect.regions import read_regions, regions_to_labels, regions_to_mask
from neurodetect.synthetic import write_recording

SHAPE = (60, 70)
QUICK = ("--iterations", 2, "--batch-size", 4, "--stride", 20, "--device", "cpu", "--precision", "float32")
CROP = ("--crop", "10:52,20:66")
PART = "mouse0.rows10-52.columns20-66"


@pytest.fixture
def lab(command, tmp_path):
    for number in range(3):
        write_recording(tmp_path, f"mouse{number}", shape=SHAPE, n_frames=5, seed=number)
    return tmp_path


@pytest.fixture
def model(lab, command):
    assert command("preprocessing.py", "mouse1", "mouse2", "train").returncode == 0
    assert command("conv2d_predict.py", "train", "train", *QUICK).returncode == 0
    for file in lab.glob("submission*"):
        file.unlink()
    return "model.pt"


# A part of the image


def test_a_part_is_the_mean_of_that_part_with_its_neurons_cut(lab, command):
    result = command("preprocessing.py", "mouse0", "part", *CROP)
    assert result.returncode == 0, result.stderr
    part, whole = read_prepared("part", PART), open_recording("mouse0")
    mean = np.mean([frame[10:52, 20:66] for frame in whole], axis=0, dtype=np.float64)
    np.testing.assert_allclose(part.image, np.minimum(mean, mean.mean() + 3 * mean.std()), rtol=1e-6)
    assert np.array_equal(part.mask, regions_to_mask(whole.regions, SHAPE)[10:52, 20:66])
    expected = []
    for region in whole.regions:
        inside = [[r - 10, c - 20] for r, c in region.tolist() if 10 <= r < 52 and 20 <= c < 66]
        expected += [inside] if inside else []
    assert [region.tolist() for region in part.regions] == expected
    sizes = sorted(len(region) for region in whole.regions)
    cut = len(expected) - sum(
        all(10 <= r < 52 and 20 <= c < 66 for r, c in region.tolist()) for region in whole.regions
    )
    assert 0 < cut < len(expected) < len(sizes)
    assert f"{len(expected)} of {len(sizes)} labelled neurons lie there, {cut} of them cut" in result.stdout
    assert "[0, 0] of what is written is [10, 20] of the recording" in result.stdout


def test_parts_are_recordings_of_their_own(lab, command):
    assert command("preprocessing.py", "mouse0", "part", *CROP).returncode == 0
    assert command("preprocessing.py", "mouse0", "part", "--crop", "0:30,0:70").returncode == 0
    assert command("preprocessing.py", "mouse1", "part").returncode == 0
    result = command("conv2d_crossvalidation.py", "part", *QUICK, "--groups", "prefix")
    assert result.returncode == 0, result.stderr
    folds = json.loads((lab / "crossvalidation.json").read_text())["folds"]
    assert sorted(len(fold["held_out"]) for fold in folds) == [1, 2]  # both parts of mouse0 are one group
    assert command("conv2d_crossvalidation.py", "part", *QUICK, "--output", "plain.json").returncode == 0
    plain = json.loads((lab / "plain.json").read_text())
    assert sorted(len(fold["held_out"]) for fold in plain["folds"]) == [1, 2]  # without being told, too
    groups = dict.fromkeys((recording["name"] for recording in plain["recordings"]), "A")
    (lab / "groups.json").write_text(json.dumps(groups | {PART: "B"}))
    result = command("conv2d_crossvalidation.py", "part", *QUICK, "--groups", "groups.json")
    assert_refused(result, "is in group", "a part or copy of it in", "put them into one group")
    # Their whole field is no new recording.
    result = command("conv2d_predict.py", "part", "mouse0", *QUICK)
    assert result.returncode == 0 and "mouse0 was trained on" in result.stderr


def test_labels_of_a_part_are_counted_from_its_first_pixel(lab, command):
    """What was found in a part, and corrected, comes back as it was; neither moved nor cut again."""
    assert command("preprocessing.py", "mouse0", "part", *CROP).returncode == 0
    of_part = read_prepared("part", PART)
    found = {"dataset": PART, "regions": json.loads((lab / f"part/regions_{PART}.json").read_text())}
    (lab / "found.json").write_text(json.dumps([found]))
    for crop, name in ((CROP, PART), ((), "mouse0")):
        result = command("preprocessing.py", "mouse0", "again", *crop, "--labels", "found.json")
        assert result.returncode == 0, result.stderr
        assert f"has neurons of {PART}, counted there from [10, 20]" in result.stderr
        rows, columns = (10, 52), (20, 66)
        mask = read_prepared("again", name).mask
        assert np.array_equal(mask if crop else mask[slice(*rows), slice(*columns)], of_part.mask)
        assert crop or mask.sum() == of_part.mask.sum()
    found["dataset"] = "mouse0.rows40-82.columns20-66"
    (lab / "found.json").write_text(json.dumps([found]))
    result = command("preprocessing.py", "mouse0", "again", "--labels", "found.json")
    assert_refused(result, "found.json", "no part of an image of 60 x 70 px")


def test_labels_that_may_be_of_the_part_or_of_the_whole_are_refused(lab, command):
    assert command("preprocessing.py", "mouse0", "part", *CROP).returncode == 0
    labels = f"part/regions_{PART}.json"
    run = ("preprocessing.py", "mouse0", "again", *CROP, "--labels", labels)
    assert_refused(command(*run), labels, "--move-labels 0 0", "--move-labels 10 20")
    assert command(*run, "--move-labels", 10, 20).returncode == 0
    assert np.array_equal(read_prepared("again", PART).mask, read_prepared("part", PART).mask)
    assert command(*run, "--move-labels", 0, 0).returncode == 0
    assert not np.array_equal(read_prepared("again", PART).mask, read_prepared("part", PART).mask)


def test_labels_named_after_a_part_are_not_taken_for_those_of_the_whole(lab, command):
    assert command("preprocessing.py", "mouse0", "part", *CROP).returncode == 0
    labels = lab / f"submission_{PART}_rois.json"
    labels.write_bytes((lab / f"part/regions_{PART}.json").read_bytes())
    run = ("preprocessing.py", "mouse0", "again", "--labels", labels)
    assert_refused(command(*run), labels.name, "--move-labels 0 0", "--move-labels 10 20")
    assert command(*run, "--move-labels", 10, 20).returncode == 0
    found = read_prepared("again", "mouse0").mask[10:52, 20:66]
    assert np.array_equal(found, read_prepared("part", PART).mask)
    # A movie that was cut out, and is called so, has its own labels.
    (lab / "mouse0").rename(lab / PART)
    assert command("preprocessing.py", PART, "again", "--labels", labels).returncode == 0


def test_a_recording_prepared_on_the_way_replaces_nothing_else(lab, command, model):
    """Labels that were corrected, the image of another recording of its name, a mean of all frames."""
    assert command("preprocessing.py", "mouse0", "corrected").returncode == 0
    run = ("conv2d_predict.py", "--model", model, *QUICK[4:], "--output", "corrected/found.json")
    assert command(*run, "mouse0").returncode == 0  # the same once more
    before = {path: path.read_bytes() for path in (lab / "corrected").iterdir()}
    labels = lab / "mouse0" / "regions" / "regions.json"
    labels.write_text(json.dumps(json.loads(labels.read_text())[1:]))
    write_recording(lab / "other", "mouse0", shape=SHAPE, n_frames=5, seed=7)
    for words in (["mouse0"], ["other/mouse0"], ["other/mouse0", "--frames", "1:3"]):
        result = command(*run, *words)
        assert_refused(result, "corrected/X_mouse0.npy", "would be replaced", "--output")
    labels.unlink()
    assert_refused(command(*run, "mouse0"), "corrected/X_mouse0.npy", "would be replaced", "--output")
    assert {path: path.read_bytes() for path in (lab / "corrected").iterdir()} == before


def test_neurons_of_a_part_are_not_drawn_into_the_whole(lab, command, model):
    assert command("conv2d_predict.py", "mouse0", *CROP, "--model", model, *QUICK[4:]).returncode == 0
    show = ("play_animation.py", "mouse0", "--save", "a.gif", "--submission", "submission.json")
    assert_refused(command(*show), f"no neurons of mouse0, but of {PART}", "--crop")
    assert command(*show, *CROP).returncode == 0


def test_a_part_of_every_kind_of_file(tmp_path):
    frames = np.random.default_rng(0).integers(0, 4000, (7, 40, 50), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("movie", data=frames, chunks=(7, 8, 8))
        file["movie"].attrs["axes"] = "TYX"
    for name in ("a.tif", "b.h5"):
        part = open_recording(tmp_path / name, crop=((3, 20), (5, 50)), axes="TYX" if "h5" in name else None)
        assert part.shape == (17, 45) and len(part) == 7
        assert np.array_equal(list(part), frames[:, 3:20, 5:50])
        assert np.array_equal(part.frame(4), frames[4, 3:20, 5:50])
        assert part.tiles() is None or np.array_equal(next(iter(part.tiles()[0][1])), frames[:, 3:20, 5:50])
    turned = open_recording(tmp_path / "a.tif", transpose=True, crop=((0, 50), (3, 20)))
    assert np.array_equal(list(turned), frames.transpose(0, 2, 1)[:, :, 3:20])


def test_traces_of_a_part_are_of_its_pixels(lab, command, model):
    run = ("conv2d_predict.py", "mouse0", "--model", model, *QUICK[4:], "--threshold", 0.1)
    result = command(*run, *CROP, "--export", "csv", "--frames", "2:4")
    assert result.returncode == 0, result.stderr
    (entry,) = json.loads((lab / "submission.json").read_text())
    assert entry["dataset"] == PART and entry["regions"]
    table = np.loadtxt(lab / f"submission_{PART}_traces.csv", delimiter=",", skiprows=1, ndmin=2)
    frames = [frame[10:52, 20:66] for frame in open_recording("mouse0")][1:4]
    assert table[:, 0].tolist() == [2, 3, 4]
    for column, region in zip(table.T[-len(entry["regions"]) :], entry["regions"], strict=True):
        rows, columns = np.transpose(region["coordinates"])
        np.testing.assert_allclose(column, [frame[rows, columns].mean() for frame in frames], rtol=1e-6)
    # The same from what was prepared: the part is found again in the whole recording.
    (lab / "again").mkdir()
    for file in lab.glob(f"*_{PART}.*"):
        if file.name.split("_")[0] in ("X", "y", "regions", "info"):
            file.rename(lab / "again" / file.name)
    before = (lab / f"submission_{PART}_traces.csv").read_bytes()
    again = ("conv2d_predict.py", "again", *run[2:], "--export", "csv", "--recordings", ".")
    result = command(*again)
    assert result.returncode == 0, result.stderr
    assert (lab / f"submission_{PART}_traces.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("crop", "words"),
    [
        ("0:61,0:70", ("rows 0 to 60", "columns 0 to 70", "--crop")),
        ("0:10,60:71", ("columns 0 to 70",)),
        ("10:10,0:5", ("--crop", "100:300,50:250")),
        ("5:10", ("--crop", "100:300,50:250")),
        ("-1:10,0:5", ("--crop",)),
    ],
)
def test_parts_that_are_none(lab, command, crop, words):
    assert_refused(command("preprocessing.py", "mouse0", "part", f"--crop={crop}"), *words)
    assert not (lab / "part").exists()


# Recordings that were not prepared


def test_recordings_give_what_their_preparation_gives(lab, command, model):
    find = (*QUICK[4:], "--model", model, "--export", "imagej,labels,csv")
    tifffile.imwrite(lab / "stack.tif", list(open_recording("mouse1").frames()), photometric="minisblack")
    assert command("preprocessing.py", "stack.tif", "mouse0", "test").returncode == 0
    assert command("conv2d_predict.py", "test", *find, "--output", "one/found.json").returncode == 0
    result = command("conv2d_predict.py", "stack.tif", "mouse0", *find, "--output", "two/found.json")
    assert result.returncode == 0, result.stderr
    prepared = {file.name for file in (lab / "test").iterdir()}
    for file in (lab / "test").iterdir():
        assert file.read_bytes() == (lab / "two" / file.name).read_bytes()
    made = {file.name for file in (lab / "one").iterdir()}
    # With the frames at hand there are traces too.
    traces = {"found_mouse0_traces.csv", "found_stack_traces.csv"}
    assert {file.name for file in (lab / "two").iterdir()} == prepared | made | traces
    for name in made - {"found.log.json", "found.report.html"}:
        assert (lab / "one" / name).read_bytes() == (lab / "two" / name).read_bytes()
    assert [entry["dataset"] for entry in json.loads((lab / "two/found.json").read_text())] == [
        "mouse0",
        "stack",
    ]


def test_frames_are_read_again_for_traces_only(lab, command, model, monkeypatch):
    reads = []
    real = TiffFrames.between
    monkeypatch.setattr(TiffFrames, "between", lambda *args: reads.append(args) or real(*args))
    run = ("conv2d_predict.py", "mouse0", "--model", model, *QUICK[4:], "--export")
    for form, count in (("imagej,labels", 1), ("csv", 2)):
        reads.clear()
        assert command(*run, form).returncode == 0
        assert len(reads) == count


def test_a_prepared_folder_and_recordings_together_after_training(lab, command):
    assert command("preprocessing.py", "mouse0", "train").returncode == 0
    assert command("preprocessing.py", "mouse1", "test").returncode == 0
    result = command("conv2d_predict.py", "train", "test", "mouse2", *QUICK, "--output", "out/found.json")
    assert result.returncode == 0, result.stderr
    found = json.loads((lab / "out/found.json").read_text())
    assert [entry["dataset"] for entry in found] == ["mouse1", "mouse2"]
    assert (lab / "out/X_mouse2.npy").exists() and not (lab / "out/X_mouse1.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "mouse1"), ("mouse1", "one dataset")),
        (("mouse0", "other/mouse0"), ("two recordings are one dataset",)),
        (("train", "--transpose"), ("--transpose", "prepared before", "leave it out")),
        (("train", "--pixels-per-micron", 2), ("--pixels-per-micron", "prepared before")),
        (("mouse0", "--export", "csv", "--recordings", "."), ("--recordings", "leave it out")),
        (("mouse0", "--output", "mouse0/found.json"), ("is the recording itself", "--output")),
        (("mouse0", "--output", "mouse0/regions/f.json"), ("is the recording itself", "--output")),
        (("nowhere",), ("nowhere", "check the path")),
        (("mouse0", "--frames", "90:99"), ("mouse0", "frames 1 to 5")),
    ],
)
def test_mistakes(lab, command, model, arguments, words):
    (lab / "other").mkdir()
    (lab / "other/mouse0").symlink_to(lab / "mouse1")
    before = sorted(lab.rglob("*"))
    assert_refused(command("conv2d_predict.py", *arguments, "--model", model, *QUICK[4:]), *words)
    assert sorted(lab.rglob("*")) == before


# Corrected in other programs


def test_rois_corrected_in_fiji_keep_their_names(lab, command, model):
    run = ("conv2d_predict.py", "mouse0", "--model", model, *QUICK[4:], "--export", "imagej")
    assert command(*run).returncode == 0
    mean = tifffile.imread(lab / "submission_mouse0_mean.tif")
    assert np.array_equal(mean, np.load(lab / "X_mouse0.npy"))
    # Two iterations find nothing that is worth correcting: the marked ones in their place.
    found = read_regions(lab / "mouse0/regions/regions.json", SHAPE)
    export("imagej", "submission_mouse0", found, mean, mean)
    # As the ROI manager saves them: one deleted, one renamed, one added by hand.
    with zipfile.ZipFile(lab / "submission_mouse0_rois.zip") as archive:
        rois = [roifile.ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist()]
    assert [roi.name for roi in rois] == [f"neuron-{number:04d}" for number in range(1, len(found) + 1)]
    added = roifile.ImagejRoi.frompoints(np.array([(3, 4), (9, 4), (9, 8), (3, 8)]), name="0007-0012")
    rois = [*rois[1:], added]
    rois[0].name = "interneuron"
    roifile.roiwrite(lab / "RoiSet.zip", rois)
    result = command("preprocessing.py", "mouse0", "corrected", "--labels", "RoiSet.zip")
    assert result.returncode == 0, result.stderr
    saved = json.loads((lab / "corrected/regions_mouse0.json").read_text())
    names = ["interneuron", *(roi.name for roi in rois[1:-1]), "0007-0012"]
    assert [entry["id"] for entry in saved] == names
    for region, entry in zip(found[1:], saved, strict=False):
        assert sorted(entry["coordinates"]) == sorted(region.tolist())
    assert sorted(saved[-1]["coordinates"]) == [
        [row, column] for row in range(4, 8) for column in range(3, 9)
    ]
    # They stay in what is made of that file, and learning goes on from there.
    assert [name for _, name in read_named_labels(lab / "corrected/regions_mouse0.json")] == names
    result = command(
        "conv2d_predict.py", "corrected", "mouse1", *QUICK, "--start-from", model, "--save-model", "b.pt"
    )
    assert result.returncode == 0, result.stderr


def test_a_label_image_edited_in_napari_keeps_its_numbers(lab, command):
    regions = read_regions(lab / "mouse0/regions/regions.json", SHAPE)
    labels = regions_to_labels(regions, SHAPE).astype(np.uint16)
    numbers = np.unique(labels[labels > 0]).tolist()
    labels[labels == numbers[1]] = 0  # deleted
    labels[labels == numbers[2]] = 500  # painted with a number of the user's own
    rows, columns = np.nonzero(labels == numbers[0])
    far = np.argwhere(labels == 0)
    row, column = far[np.abs(far - (rows[0], columns[0])).sum(axis=1).argmax()]
    labels[row, column] = numbers[0]  # a slip of the brush: a second piece
    tifffile.imwrite(lab / "edited.tif", labels)
    result = command("preprocessing.py", "mouse0", "corrected", "--labels", "edited.tif")
    assert result.returncode == 0, result.stderr
    assert f"number {numbers[0]} is in 2 pieces" in result.stderr
    saved = json.loads((lab / "corrected/regions_mouse0.json").read_text())
    assert [entry["id"] for entry in saved] == [numbers[0], *numbers[3:], 500]
    for entry in saved:
        assert sorted(entry["coordinates"]) == np.argwhere(labels == entry["id"]).tolist()


def test_names_of_suite2p_json_and_duplicates(tmp_path, lab):
    stat = [{"ypix": np.array([n]), "xpix": np.array([2, 3][:1])} for n in range(3)]
    np.save(tmp_path / "stat.npy", np.array(stat, dtype=object))
    np.save(tmp_path / "iscell.npy", np.array([[0, 0.1], [1, 0.9], [1, 0.8]]))
    with pytest.warns(UserWarning, match="of 3 ROIs 2"):
        assert [name for _, name in read_named_labels(tmp_path / "stat.npy")] == [1, 2]
    entries = [
        {"coordinates": [[1, 1]], "id": "b"},
        {"coordinates": [[2, 1]]},
        {"coordinates": [[1, 1]], "id": 3},
    ]
    (tmp_path / "a.json").write_text(json.dumps([*entries, {"coordinates": [[4, 4]], "id": [1]}]))
    with pytest.warns(UserWarning, match="1 of 4 neurons"):
        assert [name for _, name in read_named_labels(tmp_path / "a.json")] == ["b", None, None]
