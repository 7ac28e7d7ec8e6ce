"""The journal of a drill: what was begun and what was acknowledged, on the disk before anyone counts it.

It shares nothing with the store it watches: a file of its own, lines of JSON, each written whole and synced.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Notes(Protocol):
    """Takes lines in order."""

    def note(self, kind: str, **fields: Any) -> None:
        """Take one line."""
        ...


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


@contextmanager
def step(
    journal: Notes, what: str, changes: dict[str, int | None], *, whole: bool = True
) -> Iterator[None]:
    """Note that a step begins which will change versions as `changes` says, None for removed; and that it is done.

    whole: all of the changes come at once; otherwise each by itself, and a line "partly" tells how many surely have.
    """
    journal.note("begin", what=what, changes=changes, whole=whole)
    yield
    journal.note("acknowledged")


def replay(lines: list[dict[str, Any]]) -> tuple[dict[str, int], dict[str, Any] | None]:
    """Return the versions acknowledged, and the step that was begun and not acknowledged, if there is one."""
    state: dict[str, int] = {}
    begun = None
    for line in lines:
        if line["kind"] == "settled":
            state, begun = line["state"], None
        elif line["kind"] == "begin":
            begun = line
        elif line["kind"] == "partly" and begun is not None:
            begun = {**begun, "done": line["done"]}
        elif begun is not None:
            state, begun = merged(state, begun["changes"]), None
    return state, begun


def merged(state: dict[str, int], changes: dict[str, int | None]) -> dict[str, int]:
    """Return `state` with `changes` made."""
    both = state | changes
    return {name: version for name, version in both.items() if version is not None}
