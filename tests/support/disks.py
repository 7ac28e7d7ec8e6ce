"""Small file systems to fill, to make read-only and to take away; they need the right to mount."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
KINDS = ("tmpfs", "ext4")
_FILLER = "filler"


@contextlib.contextmanager
def small_disk(folder: Path, kind: str, mib: int = 16) -> Iterator[Path]:
    """Mount a disk of `mib` MiB and give where; skip the test where that is not permitted."""
    place = folder / f"{kind} disk"
    place.mkdir()
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(place))
    else:
        image = folder / f"{kind}.img"
        image.touch()
        os.truncate(image, mib * MIB)
        _run(f"mkfs.{kind}", "-q", str(image))
        _run("mount", "-o", "loop", str(image), str(place))
    try:
        assert os.path.ismount(place)
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, *, writable: bool) -> None:
    """Make a disk read-only, or writable again."""
    _run("mount", "-o", "remount,rw" if writable else "remount,ro", str(place))


@contextlib.contextmanager
def read_only_view(folder: Path, at: Path) -> Iterator[Path]:
    """Mount `folder` a second time, read-only, as into a container; skip the test where that is not permitted."""
    at.mkdir()
    _run("mount", "--bind", str(folder), str(at))
    try:
        _run("mount", "-o", "remount,bind,ro", str(at))
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(place: Path) -> None:
    """Leave no byte free on a small disk."""
    assert os.path.ismount(place), "never fill the machine's own disk"
    with (place / _FILLER).open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def free(place: Path) -> None:
    """Take back what `fill` took."""
    (place / _FILLER).unlink()


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise
        pytest.skip(f"{words[0]} is not there")
    if done.returncode:
        pytest.skip(f"{' '.join(words[:4])} is not permitted here: {done.stderr.strip()[:100]}")
