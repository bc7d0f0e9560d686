"""The project itself: the package that pip makes of it, its examples, and what is written in two places."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

import neurodetect

MODULES = sorted(
    name
    for _, name, is_package in pkgutil.walk_packages(neurodetect.__path__, "neurodetect.")
    if not is_package
)
SCRIPTS = ("play_animation.py", "preprocessing.py", "conv2d_crossvalidation.py", "conv2d_predict.py")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_functions_have_examples():
    finder = doctest.DocTestFinder(exclude_empty=False)
    for module, names in {
        "projection": ("mean_projection", "clip_bright", "standardize"),
        "network": ("NeuronNet",),
        "patches": ("PatchSampler.sample",),
        "regions": ("find_regions", "regions_to_mask", "labels_to_regions"),
        "scoring": ("score", "match_centers", "f1_at_iou"),
    }.items():
        tests = {test.name: test for test in finder.find(importlib.import_module(f"neurodetect.{module}"))}
        for name in names:
            assert tests[f"neurodetect.{module}.{name}"].examples, name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip makes of the checkout, opened."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"  # setuptools leaves folders beside what it builds
    shutil.copytree(ROOT / "neurodetect", copy / "neurodetect", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", *SCRIPTS):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, copy], check=True, timeout=200)
    (file,) = folder.glob("*.whl")
    assert file.name == f"neurodetect-{neurodetect.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(file) as archive:
        yield archive


def test_the_wheel_holds_all_that_the_package_needs(wheel):
    names = wheel.namelist()
    for name in MODULES:
        assert name.replace(".", "/") + ".py" in names
    assert {"neurodetect/view/report.html", "neurodetect/py.typed"} <= set(names)
    assert {name.rpartition("/")[2] for name in names if ".data/scripts/" in name} == set(SCRIPTS)
    assert not [name for name in names if name.startswith("tests")]


def test_the_wheel_asks_for_what_the_requirements_ask(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    text = wheel.read(metadata).decode()
    asked = re.findall(r"^Requires-Dist: ([^;\n]*?)$", text, re.MULTILINE)
    extras = {
        kind: re.findall(rf"^Requires-Dist: (.*?) *; *extra == .{kind}.$", text, re.MULTILINE)
        for kind in ("hdf5", "test")
    }

    def lines(file):
        content = (ROOT / file).read_text().splitlines()
        return sorted(line.replace(" ", "") for line in content if line[0] not in "#-")

    assert sorted(line.replace(" ", "") for line in asked) == lines("requirements.txt")
    for extra in extras.values():
        extra[:] = (line.replace(" ", "") for line in extra)  # older setuptools write "h5py >=3.8"
    assert sorted(extras["test"]) == lines("tests/requirements.txt")
    assert set(extras["hdf5"]) <= set(extras["test"]) and len(extras["hdf5"]) == 1


def test_the_version_is_the_same_everywhere():
    assert f"version: {neurodetect.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {neurodetect.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
