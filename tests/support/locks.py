"""A dataset's three lock files, and how each is taken."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from featstore.store.engine.locks import (
    FLIGHT_FILE,
    LOCK_FILE,
    WRITE_FILE,
    WriteLock,
    flight_lock,
    ingest_lock,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_FILES = [LOCK_FILE, FLIGHT_FILE, WRITE_FILE]


@contextlib.contextmanager
def taken(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock whose file in `folder` is called `name`."""
    with contextlib.ExitStack() as stack:
        if name == LOCK_FILE:
            stack.enter_context(ingest_lock(folder, wait=60))
        elif name == FLIGHT_FILE:
            stack.enter_context(flight_lock(folder, b"video"))
        else:
            stack.callback(WriteLock(folder).release)
        yield
