from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurodetect import files
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


def test_too_little_room_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=999_000_000))
    require_writable(tmp_path, 999_000_000)
    with pytest.raises(UserError, match=r": 1\.0 GB are needed there and 999 MB are free; make room"):
        require_writable(tmp_path, 999_000_001 + 1_000_000)
    with pytest.raises(UserError, match=": 999 MB are needed"):
        require_writable(tmp_path, 999_000_001)


@pytest.mark.skipif(os.name != "posix", reason="only there is asked whether a process is alive")
def test_what_a_killed_process_left_is_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    dead, ours = f".a.{process.pid}.partial.json", f".a.{os.getppid()}.partial.json"
    others = [ours, f".b.{process.pid}.partial.json", f".a.{process.pid}.partial.npy", ".a.x.partial.json"]
    for name in (dead, *others):
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "a.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *others}


@pytest.mark.parametrize("write", [write_json, write_array], ids=["JSON", "array"])
def test_a_file_system_that_is_full(tmp_path, write):
    """On a real one, where the system lets us make one; a limit is tested in test_bad_input.py."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only the superuser of a Linux system may mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this system does not let its superuser mount a file system")
    try:
        write(tmp_path / "a", [1, 2])
        before = (tmp_path / "a").read_bytes()
        for length in (10_000, 100_000):  # more than there is room beside the old file, and than at all
            with pytest.raises(UserError, match=r"a: cannot be written \(No space left on device\)"):
                write(tmp_path / "a", list(range(length)))
            assert (tmp_path / "a").read_bytes() == before
            assert [path.name for path in tmp_path.iterdir()] == ["a"]
        with pytest.raises(UserError, match=": 1.0 GB are needed there and 0 MB are free"):
            require_writable(tmp_path, 10**9)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_longest_names_are_written_or_refused_in_one_line(tmp_path):
    write_json(tmp_path / ("n" * 220 + ".json"), 1)
    with pytest.raises(UserError, match=r"cannot be written .*or name for it"):
        write_json(tmp_path / ("n" * 300 + ".json"), 1)
    assert len(list(tmp_path.iterdir())) == 1


def test_json_with_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"error": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2",
        b"\x00",
        b'["a\x00b"]',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe\xff",
        b'["caf\xe9"]',
        b"[1, 2] [3]",
        b'{"a": 1, "a": 2}',
        b"[-Infinit]",
    ],
)
def test_malformed_json_is_one_line_that_names_the_file(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.json: is not valid JSON .*; export it again") as error:
        read_json(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_any_editor_is_read(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"ünï": "\\ud800"}', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"ünï": "\ud800"}


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs a file without end")
def test_a_file_without_end_is_not_read_to_the_end():
    with pytest.raises(UserError, match="/dev/zero: is larger than 0 MB"):
        read_json("/dev/zero", 1000)


def test_a_json_file_of_100_mb_is_refused(tmp_path):
    with open(tmp_path / "regions.json", "wb") as file:
        file.truncate(100_000_000)  # takes no place on most disks
    with pytest.raises(UserError, match=r"regions\.json: is larger than 67 MB; is it the right file"):
        read_json(tmp_path / "regions.json")


def test_a_pickled_array_is_refused_and_runs_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "trace"), "w"))

    path = tmp_path / "X_a.npy"
    np.save(path, np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"X_a\.npy"):
        read_array(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f8', 'fortran_order': False, 'shape': (16384, 16384)}     \n",
        b"\x93NUMPY\x02\x00\x00\x00\x00\x80{",
    ],
    ids=["an array of 2 GB", "a header of 2 GB"],
)
def test_what_a_header_promises_is_not_believed(tmp_path, content):
    (tmp_path / "X_a.npy").write_bytes(content + bytes(100))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"X_a\.npy: is cut short"):
            read_array(tmp_path / "X_a.npy")
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_arrays_and_json_survive(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_array(tmp_path / "a.npy", array)
    assert np.array_equal(read_array(tmp_path / "a.npy"), array)
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == read_json(tmp_path / "a.json")
