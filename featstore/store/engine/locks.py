"""Who is at work on a dataset, and on which of its videos: locks that die with their holders."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from featstore.store.engine.flock import LockFile, Patience, hold, lock_byte, lock_whole
from featstore.store.paths import (
    FLIGHT_LOCK_FILE,
    INGEST_LOCK_FILE,
    WRITE_LOCK_FILE,
    compacting_path,
    sync_dataset,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Commits take a second or two; to compact 300 GB takes minutes.
WRITE_WAIT = 600.0
# A video's decoding may take 600 s, and its commit may wait for WRITE_WAIT.
FLIGHT_WAIT = 1800.0
SAY_AFTER = 1.0
SAY_FLIGHT_AFTER = (
    30.0  # to decode and encode takes seconds, and each of many videos may be waited for
)


@contextlib.contextmanager
def ingest_lock(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the right to ingest into the dataset in `folder`, or to change it as a whole.

    One ingest at a time makes a video's features once. Single commits need no lock of ours: LMDB orders them. What a
    compaction that was killed left is removed first.

    Args:
        folder: The dataset's folder, which exists.
        wait: Seconds to wait for another holder.

    Raises:
        StoreLocked: Another process still holds it; the message names the process.
        StoreNotFound: There is no such folder.
        StoreError: The file cannot be locked, or the disk fails.
    """
    file = hold(folder / INGEST_LOCK_FILE, lock_whole, Patience("at work on", wait, SAY_AFTER))
    try:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        file.write(json.dumps(note).encode())  # on a full disk nobody is named
        clear_leftovers(folder)
        yield
    finally:
        file.close()


@contextlib.contextmanager
def single_flight_lock(folder: Path, key: bytes) -> Iterator[None]:
    """Hold the right to make the features of one video, waiting for the process or thread that holds it.

    Of all that miss one video at once, one makes its features; the others wait here and, once inside, look the video up
    again. Each key is one byte of the file `flight.lock`, far beyond its end, locked on an open file description
    (fcntl's F_OFD_SETLK), so other keys are not waited for. Nothing is ever written, and a lock is gone with its
    holder, SIGKILL included; a child that is forked inside does not hold it. Systems without such locks lock the whole
    file, one video at a time.

    Args:
        folder: The dataset's folder; made again if it is removed while waiting.
        key: What names the video and its feature set.

    Raises:
        StoreLocked: Another holder is still at work after `FLIGHT_WAIT` seconds.
        StoreNotFound: There is no such folder.
        StoreError: The file cannot be locked.
    """
    byte = xxhash.xxh3_64_intdigest(key) >> 2  # within what off_t can say
    file = hold(
        folder / FLIGHT_LOCK_FILE,
        lambda fd: lock_byte(fd, byte),
        Patience("making the features of a video for", FLIGHT_WAIT, SAY_FLIGHT_AFTER),
        remake=True,
    )
    try:
        yield
    finally:
        file.close()


class WriteLock:
    """The right to write into a dataset's file, and a note in which each writer says how it left the file.

    It is taken before LMDB's own lock, so that the note is never older than the file that the next writer finds. Gone
    with its last reference, or its holder, SIGKILL included. Waits up to `WRITE_WAIT` seconds for another holder; a
    signal ends the wait.
    """

    def __init__(self, folder: Path) -> None:
        """Wait for the lock of the dataset in `folder`; raise StoreNotFound if there is none, or StoreLocked."""
        patience = Patience("writing into", WRITE_WAIT, SAY_AFTER)
        self._file = hold(folder / WRITE_LOCK_FILE, lock_whole, patience, readable=True)

    def read(self) -> bytes:
        """Return the note of the last writer."""
        return self._file.read()

    def write(self, note: bytes) -> None:
        """Leave a note; does nothing if the file is another user's, or the disk is full."""
        self._file.write(note)

    def release(self) -> None:
        """Let go; a second call does nothing."""
        self._file.close()


def make_lock_file(path: Path) -> None:
    """Make the lock file at `path` if it is missing, as the process that locks it would."""
    LockFile(path).close()


def clear_leftovers(path: Path) -> None:
    """Remove what a compaction of the dataset in `path` left; only for the holder of its ingest lock.

    Raises StoreError if the disk fails; nothing is removed then.
    """
    path = Path(os.path.realpath(path))
    aside = compacting_path(path)
    if aside.exists():
        sync_dataset(
            path
        )  # after a power loss the old folder, were it emptied first, could be back
        shutil.rmtree(aside, ignore_errors=True)
