"""Distributions of this repository, built as pip does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from toys import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an `sdist` or a `wheel`, without fetching the build's requirements."""
    words = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


def names_in_git() -> set[str]:
    """The names of the files that git knows, or would at the next commit."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs git's list of files, and this is no clone")
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if (REPOSITORY / name).is_file()}


def files_of_git(folder: Path) -> Path:
    """Copy these files into a folder, in which a build may leave its own."""
    for name in names_in_git():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    return folder
