from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurodetect.files import (
    UserError,
    natural_key,
    read_array,
    read_json,
    require_writable,
    write_array,
    write_json,
    write_whole,
)


def test_natural_order_counts_instead_of_spelling():
    names = ["image10.tiff", "image1.tiff", "image100.tiff", "image2.tiff", "a.tiff", "image02b.tiff"]
    expected = ["a.tiff", "image1.tiff", "image2.tiff", "image02b.tiff", "image10.tiff", "image100.tiff"]
    assert sorted(names, key=natural_key) == expected


@given(st.lists(st.text(min_size=1).filter(lambda name: "/" not in name), unique=True))
def test_natural_order_is_total(names):
    assert sorted(names, key=natural_key) == sorted(reversed(names), key=natural_key)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), write_whole(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    target = tmp_path / "result.npy"
    with pytest.raises(UserError, match=r"result\.npy: cannot be written \(No space left"):
        with write_whole(target):
            raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        write_array(tmp_path / "folder" / "a.npy", np.zeros(3))


def test_asking_whether_a_folder_is_writable_leaves_it_as_it_was(tmp_path):
    (tmp_path / "kept").write_text("kept")
    require_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    require_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with pytest.raises(UserError, match="kept: cannot be written to"):
        require_writable(tmp_path / "kept")


def test_json_with_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"error": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\x00", "[" * 100_000])
def test_malformed_json_is_a_user_error(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.json"):
        read_json(path)


def test_a_pickled_array_is_refused_and_runs_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "trace"), "w"))

    path = tmp_path / "X_a.npy"
    np.save(path, np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"X_a\.npy"):
        read_array(path)
    assert not (tmp_path / "trace").exists()


@given(content=st.binary(max_size=200))
def test_random_bytes_are_no_array(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "X_a.npy"
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_array(path)


def test_arrays_and_json_survive(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_array(tmp_path / "a.npy", array)
    assert np.array_equal(read_array(tmp_path / "a.npy"), array)
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == read_json(tmp_path / "a.json")
