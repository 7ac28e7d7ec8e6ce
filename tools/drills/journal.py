"""The journal of a drill: what was begun and what was acknowledged, on the disk before anyone counts it.

It shares nothing with the store it watches: a file of its own, lines of JSON, each written whole and synced.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Journal:
    """Appends lines to `path`; whoever writes may be killed at any moment."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is made where it is missing."""
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def note(self, kind: str, **fields: Any) -> None:
        """Write one line, and return when it is on the disk."""
        os.write(self._fd, json.dumps({"kind": kind, **fields}).encode() + b"\n")
        os.fsync(self._fd)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal; none where there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines()]
