"""What is distributed: an sdist with everything, and a wheel from it."""

from __future__ import annotations

import tarfile
import zipfile
from email import message_from_bytes
from typing import TYPE_CHECKING

import pytest
from packages import build, files_of_git, names_in_git
from toys import REPOSITORY

import featstore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

# What a build adds to the sdist.
MADE = {"PKG-INFO", "featstore.egg-info", "build"}


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole():
    return names_in_git()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The folder that an sdist becomes."""
    source = files_of_git(tmp_path_factory.mktemp("source"))
    with tarfile.open(build("sdist", source, source / "dist")) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
        archive.extractall(source / "dist")
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
