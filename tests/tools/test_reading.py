"""docs/reading.md: a wheel and the few packages that it names read a cache, and what needs more says so."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packages import build, files_of_git
from toys import REPOSITORY, expected, store_videos, toy_features

pytestmark = pytest.mark.slow

PAGE = (REPOSITORY / "docs/reading.md").read_text(encoding="utf-8")
LISTED = re.findall(r'"([^"]+)"', next(line for line in PAGE.splitlines() if "click>=" in line))
NAMES = [re.split("[<>=]", requirement)[0] for requirement in LISTED]


def packages_of(name: str) -> set[Path]:
    """What an installed distribution has in site-packages, and what it requires, for other Pythons."""
    found = importlib.metadata.distribution(name)
    paths = {Path(file.parts[0]) for file in found.files or () if ".." not in file.parts}
    needed = [re.split(r"[^\w.-]", text)[0] for text in found.requires or () if ";" not in text]
    return {Path(str(found.locate_file(path))) for path in paths}.union(*map(packages_of, needed))


@pytest.fixture(scope="module", autouse=True)
def no_other_path():
    """What PYTHONPATH names would be read in place of the wheel, or keep pip from installing it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        yield


@pytest.fixture(scope="module")
def slim(no_other_path, tmp_path_factory):
    """A Python with featstore from a wheel and with the packages on the page, linked from where the tests have them."""
    folder = tmp_path_factory.mktemp("slim")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    for path in set().union(*map(packages_of, NAMES)):
        (site / path.name).symlink_to(path)
    wheel = build("wheel", files_of_git(folder / "source"), folder)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    return python


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with videos a and b in the dataset demo, and the features of a."""
    folder = tmp_path_factory.mktemp("cache")
    x = toy_features(1)
    store_videos(folder, "demo", {"a": x, "b": toy_features(2)})
    return folder, x


@pytest.fixture
def featstore(slim, cache, tmp_path):
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        where = ["--cache-dir", str(cache[0]), "--dataset", "demo"]
        command = [slim.with_name("featstore"), *words, *where]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_the_list_is_part_of_the_requirements_with_their_floors():
    required = (REPOSITORY / "setup.cfg").read_text(encoding="utf-8").replace(" ", "").splitlines()
    assert set(LISTED) <= set(required)


def test_torch_is_not_there(slim):
    done = subprocess.run([slim, "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in done.stderr


def test_python_reads_what_is_stored(slim, cache, tmp_path):
    program = """
import sys, featstore, numpy
features = featstore.open(sys.argv[1])["demo"]["a"]
assert features.shape == featstore.get(sys.argv[1], "demo", "a").numpy().shape
numpy.save("data.npy", features.data)
"""
    subprocess.run([slim, "-W", "error", "-c", program, cache[0]], cwd=tmp_path, check=True)
    assert np.array_equal(np.load(tmp_path / "data.npy"), expected(cache[1]))


@pytest.mark.parametrize("words", [["ls"], ["info"], ["get", "a"], ["default"], ["check"]])
def test_a_command_that_looks_works(featstore, words):
    done = featstore(*words)
    said = {"check": done.stderr, "ls": "2 videos, 8.2 KiB\n"}  # progress and totals
    assert (done.returncode, done.stderr) == (0, said.get(words[0], ""))
    assert done.stdout


@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy"])
def test_features_are_exported(featstore, tmp_path, kind):
    assert featstore("export", "--to", kind, "--out", "files").returncode == 0
    lines = (tmp_path / "files/index.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["video_id"] for line in lines) == ["a", "b"]
    assert featstore("get", "a", "--out", f"a.{kind}").returncode == 0
    assert (tmp_path / f"a.{kind}").stat().st_size > 0


def test_a_dataset_is_compacted_and_copied(featstore, tmp_path, slim, cache):
    assert featstore("compact").returncode == 0
    words = [
        slim.with_name("featstore"),
        "cp",
        cache[0],
        "--dataset",
        "demo",
        "--cache-dir",
        tmp_path / "to",
    ]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["ingest", "--videos", ".", "--model-path", "model"],
        ["compare", "--model-path", "model"],
        ["import", "--from-safetensors", "."],
        ["export", "--to", "pt", "--out", "files"],
        ["get", "a", "--out", "a.pt"],
    ],
)
def test_what_needs_more_says_what_is_missing(featstore, tmp_path, words):
    for name in ("a.mp4", "a.safetensors"):
        (tmp_path / name).write_bytes(b"no file of its kind")
    done = featstore(*words)
    assert done.returncode == 1
    assert re.search(r"the package of \w+, which is not installed", done.stderr)
    assert "Traceback" not in done.stderr
