"""What is distributed: an sdist with everything, a wheel from it, and reading with few requirements."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from typing import TYPE_CHECKING

import pytest
from toys import REPOSITORY

import featstore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

# What a build adds to the sdist.
MADE = {"PKG-INFO", "featstore.egg-info"}
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, out: Path) -> Path:
    """Build as pip does, without fetching the build's requirements."""
    words = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole():
    """The names of the files that git knows, or would at the next commit."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs git's list of files, and this is no clone")
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if (REPOSITORY / name).is_file()}


@pytest.fixture(scope="module")
def unpacked(whole, tmp_path_factory):
    """The folder that an sdist becomes."""
    source = tmp_path_factory.mktemp("source")
    for name in whole:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, source / name)
    with tarfile.open(build("sdist", source, source / "dist")) as archive:
        archive.extractall(source / "dist", filter="data")
    return source / "dist" / f"featstore-{featstore.__version__}"


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory):
    """A wheel that is built from the sdist, as pip would."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


def test_an_sdist_has_every_file_of_the_repository(whole, unpacked):
    packed = {name for name in files_below(unpacked) if name.split("/")[0] not in MADE}
    assert packed == whole


def test_a_wheel_has_every_file_of_the_package_and_nothing_else(whole, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name for name in whole if name.startswith("featstore/")}
    assert {"featstore/py.typed", "featstore/report/page.html"} <= names


def test_a_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
        assert name.replace("METADATA", "licenses/LICENSE") in archive.namelist()
    assert metadata["Version"] == featstore.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert metadata.get_payload(decode=True).decode().strip() == readme.strip()
