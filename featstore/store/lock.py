"""Who ingests into a dataset: a lock that dies with its holder and names it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from typing import TYPE_CHECKING

from featstore.errors import StoreLocked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_FILE = "ingest.lock"
_MAX_NOTE_BYTES = 4096


@contextlib.contextmanager
def ingest_lock(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the ingest lock of the dataset in `folder`; raise StoreLocked, which names the holder, after `wait` seconds.

    One ingest at a time makes a video's features once. Single commits need no lock of ours: LMDB orders them.
    """
    deadline = time.monotonic() + wait
    while True:
        fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, _MAX_NOTE_BYTES, 0)
            os.close(fd)
            if time.monotonic() >= deadline:
                raise StoreLocked(
                    f"another process is at work on {folder}{_describe(holder)}; wait for it to end, or stop it"
                ) from None
            time.sleep(0.05)
            continue
        if _is_current(fd, folder):
            break
        os.close(fd)  # the folder was removed while we waited: try again on the new one
    try:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(note).encode(), 0)
        yield
    finally:
        os.close(fd)


def _is_current(fd: int, folder: Path) -> bool:
    try:
        there = os.stat(folder / LOCK_FILE)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _describe(note: bytes) -> str:
    try:
        fields = json.loads(note)
        return f" (process {fields['pid']} on {fields['host']}, since {fields['since']})"
    except (ValueError, KeyError, TypeError):
        return ""
