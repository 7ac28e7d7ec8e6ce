"""What liblmdb's errors mean for users of a store, and what to do about each."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

import lmdb

from featstore.errors import StoreDamaged, StoreError, StoreFull, StoreMismatch
from featstore.store.engine.settings import MAP_BYTES, MAX_READERS
from featstore.store.engine.tree import FOREIGN
from featstore.store.paths import DATA_FILE
from featstore.system.file_map import MORE_FILES
from featstore.system.filesystems import is_full

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn lmdb's errors into StoreErrors that name `path`; the cause is kept."""
    try:
        yield
    except lmdb.Error as exc:
        raise store_error(exc, path) from exc


def store_error(exc: lmdb.Error, path: Path) -> StoreError:
    """Return the StoreError that says what `exc` means for the store in `path` and what to do."""
    if "temporarily unavailable" in str(exc):
        return StoreError(f"{path}: {_SAME_NUMBER.format(pid=os.getpid())} ({exc})")
    for kinds, error, sentence in _MEANINGS:
        if isinstance(exc, kinds):
            return error(f"{path}: {sentence} ({exc})")
    if os.strerror(errno.EMFILE) in str(exc) or os.strerror(errno.ENFILE) in str(exc):
        return StoreError(f"{path}: {MORE_FILES} ({exc})")
    # A full disk reaches us as a plain "Input/output error" or a short write as often as by its name.
    named = isinstance(exc, lmdb.DiskError) or any(words in str(exc) for words in _FULL)
    if named or is_full(path / DATA_FILE):
        return StoreFull(
            f"{path}: the disk, the quota or the limit on a file's size is full ({exc}); free some space and run the "
            "command again"
        )
    return StoreError(
        f"{path}: LMDB refused: {exc}; run featstore check, and mend the disk if it fails again"
    )


# ENOSPC, EDQUOT and EFBIG, in libc's words.
_FULL = ("No space left", "quota exceeded", "File too large")
# LMDB marks a process by a lock on the byte of its number, and containers count processes each for themselves.
_SAME_NUMBER = (
    "a process that has this one's number, {pid}, in another container is at work on it, and LMDB cannot tell the "
    "two apart; run one of them with the host's process numbers (docker run --pid=host), start it again for another "
    "number, or seal the dataset and read it from any number of containers"
)
_DAMAGED = (
    "LMDB takes the file for damaged; see what featstore check finds, then mend it with featstore check --repair, or "
    "copy what can still be read into another cache with featstore merge and ingest the rest there"
)
_MEANINGS: tuple[tuple[tuple[type[lmdb.Error], ...], type[StoreError], str], ...] = (
    (
        (lmdb.MapFullError,),
        StoreFull,
        f"the map of {MAP_BYTES >> 40} TiB is full; ingest into another dataset",
    ),
    (
        (lmdb.ReadersFullError,),
        StoreError,
        f"{MAX_READERS} readers are at work, no more fit; end some of them",
    ),
    (
        (
            lmdb.BadChecksumError,
            lmdb.CorruptedError,
            lmdb.PageFullError,
            lmdb.PageNotFoundError,
            lmdb.PanicError,
        ),
        StoreDamaged,
        _DAMAGED,
    ),
    (
        (
            lmdb.CryptoFailError,
            lmdb.EnvEncryptionError,
            lmdb.IncompatibleError,
            lmdb.InvalidError,
            lmdb.VersionMismatchError,
        ),
        StoreMismatch,
        FOREIGN,
    ),
    (
        (lmdb.LockError, lmdb.ReadonlyError),
        StoreError,
        "LMDB's readers too must write lock.mdb; get write permission on the folder and what is in it, or, to read "
        "alone, ask its owner to seal it: featstore seal",
    ),
    ((lmdb.MapResizedError,), StoreError, "another program changed the map; start again"),
    (
        (lmdb.MemoryError,),
        StoreError,
        f"no address space for the map of {MAP_BYTES >> 40} TiB; let go of features of other datasets, some 30 can be "
        "in use at a time, or lift the limit (ulimit -v)",
    ),
    (
        (
            lmdb.BadDbiError,
            lmdb.BadRslotError,
            lmdb.BadTxnError,
            lmdb.BadValsizeError,
            lmdb.CursorFullError,
            lmdb.DbsFullError,
            lmdb.InvalidParameterError,
            lmdb.KeyExistsError,
            lmdb.NotFoundError,
            lmdb.ProblemError,
            lmdb.TlsFullError,
            lmdb.TxnFullError,
        ),
        StoreError,
        "featstore asked LMDB for what it cannot do; please report this with the traceback",
    ),
)
