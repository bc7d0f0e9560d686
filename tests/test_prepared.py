from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest

from neurodetect.files import UserError
from neurodetect.prepared import (
    Prepared,
    digests,
    prepared_names,
    read_groups,
    read_labelled,
    read_prepared,
    write_prepared,
)


class Killed(BaseException):
    """The process is gone; nothing of it runs any more."""


@pytest.fixture
def folder(tmp_path):
    image = np.arange(12.0).reshape(3, 4)
    write_prepared(tmp_path, "b10", image, [np.array([[2, 3]]), np.array([[0, 1], [2, 3]])], 1.15)
    write_prepared(tmp_path, "b2", image)
    return tmp_path


def test_prepared_data_on_disk(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        *("X_b10.npy", "X_b2.npy", "info_b10.json", "regions_b10.json", "y_b10.npy")
    ]
    image, mask = np.load(folder / "X_b10.npy"), np.load(folder / "y_b10.npy")
    assert image.dtype == np.float32 and np.array_equal(image, np.arange(12).reshape(3, 4))
    assert mask.dtype == np.uint8 and mask.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert prepared_names(folder) == ["b2", "b10"]
    prepared = read_prepared(folder, "b10")
    assert prepared.name == "b10" and prepared.pixels_per_micron == 1.15
    assert [region.tolist() for region in prepared.regions] == [[[2, 3]], [[0, 1], [2, 3]]]
    unlabelled = read_prepared(folder, "b2")
    assert unlabelled.mask is None and unlabelled.regions is None and unlabelled.pixels_per_micron is None


def test_unlabelled_recordings_are_named(folder):
    with pytest.warns(UserWarning, match="b2 has no labels"):
        labelled = read_labelled(folder)
    assert [recording.name for recording in labelled] == ["b10"]
    (folder / "y_b10.npy").unlink()
    with pytest.raises(UserError, match="none of its 2 recordings has labels"):
        read_labelled(folder)


def test_labels_of_an_earlier_run_do_not_stay(folder):
    write_prepared(folder, "b10", np.arange(6.0).reshape(2, 3))
    assert read_prepared(folder, "b10").mask is None


def test_missing_pixels_are_kept_until_there_are_none(folder):
    image, valid = np.arange(12.0).reshape(3, 4), np.eye(3, 4) == 0
    write_prepared(folder, "b2", image, valid=valid)
    assert np.load(folder / "valid_b2.npy").tolist() == valid.astype(int).tolist()
    read = read_prepared(folder, "b2")
    assert read.valid.dtype == bool and np.array_equal(read.valid, valid) and read.mask is None
    assert "valid_b2.npy" in digests(folder, [read])
    write_prepared(folder, "b2", image)
    assert read_prepared(folder, "b2").valid is None and not (folder / "valid_b2.npy").exists()
    with pytest.raises(UserError, match="b2: all pixels of all frames are 0 or NaN"):
        write_prepared(folder, "b2", image, valid=np.zeros((3, 4), bool))


def test_what_was_prepared_before_there_were_missing_pixels_is_read(folder):
    # Its fingerprint knew of image and neurons only.
    regions = [[[2, 3]], [[0, 1], [2, 3]]]
    parts = [np.arange(12, dtype="<f4").tobytes()]
    parts += [np.array(region, "<i8").tobytes() + b"end" for region in regions]
    info = json.loads((folder / "info_b10.json").read_text())
    assert info["preparation"] == hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("file", ["X_b10.npy", "y_b10.npy", "regions_b10.json", "info_b10.json"])
@pytest.mark.parametrize("regions", [[np.array([[1, 1]])], None], ids=["labelled", "unlabelled"])
def test_a_failed_write_leaves_all_of_an_earlier_run(folder, monkeypatch, file, regions):
    def full(path, content):
        if file in path.name.replace(f".{os.getpid()}.partial", "").lstrip("."):
            raise OSError(28, "No space left on device")
        return write(path, content)

    write = Path.write_bytes
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(Path, "write_bytes", full)
    if regions is None and file in ("y_b10.npy", "regions_b10.json"):
        pytest.skip("an unlabelled recording has no such file")
    with pytest.raises(UserError, match="No space"):
        write_prepared(folder, "b10", np.arange(12.0).reshape(3, 4) + 1, regions, 1.0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("valid", [None, np.eye(3, 4) == 0, np.eye(3, 4) == 1], ids=["all", "some", "few"])
@pytest.mark.parametrize("missing", [None, np.eye(3, 4) == 1], ids=["whole", "holes"])
@pytest.mark.parametrize("labelled", [True, False], ids=["from labelled", "from unlabelled"])
@pytest.mark.parametrize("regions", [[np.array([[1, 1]])], None], ids=["labelled", "unlabelled"])
def test_a_preparation_that_is_killed_at_any_moment_pairs_no_image_with_other_labels_or_pixels(
    folder, monkeypatch, regions, labelled, missing, valid
):
    """Killed after each rename or removal in turn: read is the old recording, the new one, or none."""
    shape = (3, 4)
    before_it = [np.array([[2, 3]]), np.array([[0, 1], [2, 3]])] if labelled else None
    write_prepared(folder, "b10", np.arange(12.0).reshape(shape), before_it, 1.15, valid=missing)
    old = read_prepared(folder, "b10")
    image = np.arange(12.0).reshape(shape) ** 2
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    outcomes = []
    for moment in range(10):
        for path in list(folder.iterdir()):
            path.unlink()
        for name, content in before.items():
            (folder / name).write_bytes(content)
        done = []

        def die(*arguments, change, moment=moment, done=done, **options):
            if len(done) == moment:
                raise Killed
            done.append(1)
            return change(*arguments, **options)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr("os.replace", partial(die, change=os.replace))
            patch.setattr(Path, "unlink", partialmethod(die, change=Path.unlink))
            write_prepared(folder, "b10", image, regions, valid=valid)
        try:
            read = read_prepared(folder, "b10")
        except UserError as error:
            assert "run preprocessing.py again" in str(error)
            outcomes.append("refused")
            continue
        new = Prepared("b10", image, None, regions, None, valid)
        wanted = old if np.array_equal(read.image, old.image) else new
        assert np.array_equal(read.image, wanted.image)
        if read.regions is not None:
            assert list(map(np.ndarray.tolist, read.regions)) == list(map(np.ndarray.tolist, wanted.regions))
        assert np.array_equal(read.valid, wanted.valid)
        outcomes.append("read")
    assert outcomes[0] == outcomes[-1] == "read"
    assert "refused" in outcomes or not labelled


def test_an_edited_image_says_how_to_keep_it(folder):
    np.save(folder / "X_b10.npy", np.arange(12, dtype=np.float32).reshape(3, 4)[::-1])
    with pytest.raises(UserError, match=r"or remove info_b10\.json"):
        read_prepared(folder, "b10")
    (folder / "info_b10.json").unlink()
    assert read_prepared(folder, "b10").image[0, 0] == 8


def test_a_constant_image_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="name: the mean image is constant"):
        write_prepared(tmp_path, "name", np.full((4, 5), 7.0), [np.array([[1, 1]])])
    assert list(tmp_path.iterdir()) == []


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        prepared_names(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no X_"):
        prepared_names(tmp_path)


@pytest.mark.parametrize(
    ("file", "array", "match"),
    [
        ("X_b10.npy", np.zeros(5), "image"),
        ("X_b10.npy", np.zeros((0, 5)), "image"),
        ("X_b10.npy", np.zeros((3, 4), complex), "image"),
        ("X_b10.npy", np.ones((3, 4)), "constant"),
        ("X_b10.npy", np.array([[np.nan, 1]]), "NaN"),
        ("X_b10.npy", np.arange(12).reshape(4, 3), r"y_b10.npy: is \(3, 4\)"),
        ("y_b10.npy", np.full((3, 4), 2), "0 and 1"),
    ],
)
def test_prepared_files_that_cannot_be_used(folder, file, array, match):
    np.save(folder / file, array)
    with pytest.raises(UserError, match=match):
        read_prepared(folder, "b10")


def test_regions_that_are_missing_or_outside(folder):
    (folder / "regions_b10.json").write_text('[{"coordinates": [[3, 2]]}]')
    with pytest.raises(UserError, match="neuron 0"):
        read_prepared(folder, "b10")
    (folder / "regions_b10.json").unlink()
    with pytest.raises(UserError, match="regions_b10.json: is missing"):
        read_prepared(folder, "b10")


def test_groups_of_recordings(tmp_path):
    names = ["neurofinder.00.01", "mouse7_monday", "mouse7 tuesday", "alone"]
    assert list(read_groups("prefix", names).values()) == ["00", "mouse7", "mouse7", "alone"]
    file = tmp_path / "groups.json"
    file.write_text('{"00.01": "A", "mouse7_monday": "B", "mouse7 tuesday": "B", "other": "C"}')
    assert read_groups(file, names[:3]) == dict(zip(names, "ABB", strict=False))
    twice = '{"mouse1": "A", "neurofinder.mouse1": "B"}'
    for content, words in (
        (None, "has no group for alone"),
        ("[]", "no object of groups"),
        ("{", "JSON"),
        (twice, "has mouse1 twice"),
    ):
        if content is not None:
            file.write_text(content)
        with pytest.raises(UserError, match=f"groups.json: .*{words}"):
            read_groups(file, names)
