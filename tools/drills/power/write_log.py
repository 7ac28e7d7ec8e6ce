"""The log of what a program asked of the file system: how it is taken, and its entries.

The logger is C and preloaded, so it sees what LMDB, Python and every other library of the program write; it is compiled
where it is needed.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_suffix(".c")
_HEAD = struct.Struct("=IIQqII")


class Kind(IntEnum):
    """What was asked."""

    WRITE = 1
    SYNC = 2
    TRUNCATE = 3
    CREATE = 4
    MKDIR = 5
    LINK = 6
    RENAME = 7
    REMOVE = 8
    MARK = 9
    EXCHANGE = 10


@dataclass(frozen=True)
class Entry:
    """One call that succeeded. durable: a write that is on the disk when it returns."""

    kind: Kind
    durable: bool
    inode: int
    offset: int
    first: bytes
    second: bytes

    @property
    def path(self) -> str:
        """Return the path, or the first of two."""
        return os.fsdecode(self.first)

    @property
    def target(self) -> str:
        """Return the second path."""
        return os.fsdecode(self.second)

    @property
    def said(self) -> dict[str, Any]:
        """Return the line of the journal that a mark is."""
        line: dict[str, Any] = json.loads(self.first)
        return line


class Marks:
    """A journal whose lines stand in the log, between the writes that came before and those that came after."""

    def note(self, kind: str, **fields: Any) -> None:
        """Write one line."""
        text = json.dumps({"kind": kind, **fields}).encode()
        ctypes.CDLL(None).power_drill_mark(text, ctypes.c_size_t(len(text)))


def compiler() -> str | None:
    """Return the C compiler, or None where there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> Path:
    """Compile the logger into `folder` and return its path."""
    library, cc = folder / "power_log.so", compiler()
    assert cc is not None
    words = [cc, "-O2", "-Wall", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-lpthread"]
    subprocess.run(words, check=True)
    return library


def logging(library: Path, root: Path, log: Path) -> dict[str, str]:
    """Return the environment of a program whose calls below `root` go into `log`."""
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "POWER_DRILL_ROOT": str(root),
        "POWER_DRILL_LOG": str(log),
    }


def read_log(path: Path) -> Iterator[Entry]:
    """Yield the entries of a log, in order."""
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            kind, durable, inode, offset, first, second = _HEAD.unpack(head)
            yield Entry(
                Kind(kind), bool(durable), inode, offset, file.read(first), file.read(second)
            )
