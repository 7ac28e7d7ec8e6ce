"""A dataset's three lock files, and how each is taken."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from featstore.store.engine.locks import ingest_lock, single_flight_lock, write_lock
from featstore.store.paths import FLIGHT_LOCK_FILE, INGEST_LOCK_FILE, WRITE_LOCK_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_FILES = [INGEST_LOCK_FILE, FLIGHT_LOCK_FILE, WRITE_LOCK_FILE]


@contextlib.contextmanager
def taken(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock whose file in `folder` is called `name`."""
    with contextlib.ExitStack() as stack:
        if name == INGEST_LOCK_FILE:
            stack.enter_context(ingest_lock(folder, wait=60))
        elif name == FLIGHT_LOCK_FILE:
            stack.enter_context(single_flight_lock(folder, b"video"))
        else:
            stack.callback(write_lock(folder).close)
        yield
