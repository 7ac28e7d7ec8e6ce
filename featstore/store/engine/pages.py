"""The pages of an LMDB 0.9 file as a whole: the two meta pages, and whether all are sound.

The newer meta page says where the tree of the last commit begins; tree.py reads it.

Structures: MDB_page, MDB_meta and MDB_db in LMDB's mdb.c (0.9), as on machines with 64 bits.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from featstore.errors import StoreDamaged, StoreError, StoreMismatch, how_many
from featstore.store.paths import DATA_FILE, because

if TYPE_CHECKING:
    from pathlib import Path

MAX_DEPTH = 32
FOREIGN = (
    "the file is not of LMDB engine 0.9 as featstore's are: of engine 1.0, of another program, or damaged; put a copy "
    "of the right one there, or ingest into another --cache-dir"
)
SALVAGE = (
    "put a good copy of the file in its place (by renaming), or copy what can still be read into another cache with "
    "featstore merge and ingest the rest there"
)

# mp_pgno, mp_pad, mp_flags, then mp_lower and mp_upper, or mp_pages where a large value begins.
HEADER = struct.Struct("=QHHHH")
_DB = "IHHQQQQQ"  # md_pad, md_flags, md_depth, branch, leaf and overflow pages, entries, root
_META = struct.Struct("=II QQ" + 2 * _DB + "QQ")
_META_PAGE = 0x08
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_NO_PAGE = (1 << 64) - 1
_READS = 20  # of two pages that a writer may be changing at the same time


class Meta(NamedTuple):
    """What one of the two first pages says: where the tree of a commit begins.

    root: None for an empty tree. depth: levels of the tree. pages: how many there are, all numbers are below; the last
    ones need not be in the file, if a commit took them and gave them back.
    """

    txn_id: int
    page_bytes: int
    root: int | None
    depth: int
    pages: int


def read_metas(fd: int, path: Path) -> tuple[Meta, Meta]:
    """Return what the two meta pages of the file say, checked against each other.

    Raises StoreMismatch if it is no file of LMDB 0.9, StoreDamaged if they cannot both be right. After that
    liblmdb, which divides by their page size, may open the file.
    """
    for _ in range(_READS):  # a commit changes one of them in one write: not so many times in a row
        with contextlib.suppress(StoreDamaged):
            return _read_metas(fd, path)
    return _read_metas(fd, path)


def _read_metas(fd: int, path: Path) -> tuple[Meta, Meta]:
    first = parse_meta(os.pread(fd, 4096, 0), 0, path)
    second = parse_meta(os.pread(fd, 4096, first.page_bytes), 1, path)
    if second.page_bytes != first.page_bytes:
        raise damaged(path, "its first two pages name different page sizes")
    # Commit n writes page n % 2, so the two are always neighbours; in a file nobody has written to both are 0.
    if abs(first.txn_id - second.txn_id) != (1 if first.txn_id or second.txn_id else 0):
        raise damaged(path, f"its last commits are called {first.txn_id} and {second.txn_id}")
    return first, second


def parse_meta(page: bytes, number: int, path: Path) -> Meta:
    """Return what the meta page `number` (0 or 1) says, each field within its bounds."""
    if len(page) < HEADER.size + _META.size:
        raise StoreMismatch(f"{path}: {FOREIGN}")
    found, _, kind, _, _ = HEADER.unpack_from(page)
    magic, version, _, _, *dbs, last_page, txn_id = _META.unpack_from(page, HEADER.size)
    if magic != _MAGIC or version != _VERSION:
        raise StoreMismatch(f"{path}: {FOREIGN}")
    page_bytes, flags, depth, root = dbs[0], dbs[9], dbs[10], dbs[15]
    facts = {
        "page number": found == number,
        "kind": kind == _META_PAGE,
        "page size": 256 <= page_bytes <= 1 << 15 and page_bytes & (page_bytes - 1) == 0,
        "tree's flags": flags == 0,
        "depth": depth <= MAX_DEPTH and (depth == 0) == (root == _NO_PAGE),
        "last page": 1 <= last_page < 1 << 48,
        "root": root == _NO_PAGE or 2 <= root <= last_page,
        "transaction": txn_id & 1 == number or txn_id == 0,
    }
    for what, holds in facts.items():
        if not holds:
            raise damaged(path, f"the {what} on page {number} cannot be")
    return Meta(txn_id, page_bytes, None if root == _NO_PAGE else root, depth, last_page + 1)


def damaged(path: Path, found: str) -> StoreDamaged:
    """Return the error that says which bytes of the file in `path` cannot be."""
    return StoreDamaged(
        f"{path}: {found}; the file is damaged or was cut short",
        remedy=f"see what featstore check finds, and if it finds the same, {SALVAGE}",
    )


def find_page_problems(folder: Path) -> list[str]:
    """Return what py-lmdb's offline verifier, which never hands a page to LMDB, finds wrong with the file in `folder`.

    Nobody may write to it during that.
    """
    from lmdb.verify import VerifyError, verify

    try:
        problems: list[str] = verify(os.fspath(folder), subdir=True)  # type: ignore[no-untyped-call]
    except VerifyError as exc:
        return [str(exc)]
    except OSError as exc:
        raise StoreError(f"{folder / DATA_FILE} cannot be read: {because(exc)}") from exc
    return problems


def refuse_damaged_pages(folder: Path) -> None:
    """Raise StoreError if the verifier finds something; nobody writes during that."""
    problems = find_page_problems(folder)
    if problems:
        raise StoreError(
            f"the pages of {folder / DATA_FILE} are damaged: {problems[0]} "
            f"({how_many(len(problems), 'problem')}); nothing is written into it: copy what is good "
            "into another cache with featstore merge, which leaves it as it is, and ingest the rest there"
        )
