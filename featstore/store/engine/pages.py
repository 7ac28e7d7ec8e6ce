"""The pages of an LMDB 0.9 file, trusted only as far as they were checked.

liblmdb trusts its file: one flipped bit in a page number sends it outside the map, and the process ends. Readers here
walk the file themselves (tree.py), and every number they follow is looked at in this file first.

Structures: MDB_page, MDB_meta, MDB_db and MDB_node in LMDB's mdb.c (0.9), as on machines with 64 bits.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.errors import StoreDamaged, StoreMismatch

if TYPE_CHECKING:
    from pathlib import Path

# mp_pgno, mp_pad, mp_flags, then mp_lower and mp_upper, or mp_pages where a large value begins.
HEADER = struct.Struct("=QHHHH")
EXTENT = struct.Struct("=QHHI")
# mn_lo, mn_hi: the value's size, or the low bits of a child's page; mn_flags: its highest bits; mn_ksize.
NODE = struct.Struct("=HHHH")
BRANCH, LEAF, OVERFLOW, META = 0x01, 0x02, 0x04, 0x08
BIG_VALUE = 0x01
MAX_DEPTH = 32

_DB = "IHHQQQQQ"  # md_pad, md_flags, md_depth, branch, leaf and overflow pages, entries, root
_META = struct.Struct("=II QQ" + 2 * _DB + "QQ")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_NO_PAGE = (1 << 64) - 1
FOREIGN = (
    "the file is not of LMDB engine 0.9 as featstore's are: of engine 1.0, of another program, or damaged; put a copy "
    "of the right one there, or ingest into another --cache-dir"
)
_READS = 20  # of two pages that a writer may be changing at the same time


@dataclass(frozen=True)
class Meta:
    """What one of the two first pages says: where the tree of a commit begins.

    root: None for an empty tree. depth: levels of the tree. pages: how many there are, all numbers are below; the last
    ones need not be in the file, if a commit took them and gave them back.
    """

    txn_id: int
    page_bytes: int
    root: int | None
    depth: int
    pages: int


def damaged(path: Path, found: str) -> StoreDamaged:
    """Return the error that says which bytes of the file in `path` cannot be."""
    return StoreDamaged(
        f"{path}: {found}; the file is damaged or was cut short: see what featstore check finds, and if it finds the "
        "same, put a good copy in its place (by renaming), or copy what can still be read into another cache with "
        "featstore merge and ingest the rest there"
    )


def read_metas(fd: int, path: Path) -> tuple[Meta, Meta]:
    """Return what the two meta pages of the file say, checked against each other.

    Raises StoreMismatch if it is no file of LMDB 0.9, StoreDamaged if they cannot both be right. After that
    liblmdb, which divides by their page size, may open the file.
    """
    for attempt in range(_READS):
        try:
            head = os.pread(fd, 4096, 0)
            first = parse_meta(head, 0, path)
            second = parse_meta(os.pread(fd, 4096, first.page_bytes), 1, path)
            if second.page_bytes != first.page_bytes:
                raise damaged(path, "its first two pages name different page sizes")
            _check_order(first, second, path)
        except StoreDamaged:
            if (
                attempt + 1 == _READS
            ):  # a commit changes one of them in one write: not twenty times in a row
                raise
        else:
            return first, second
    raise AssertionError("not reached")


def parse_meta(page: bytes, number: int, path: Path) -> Meta:
    """Return what the meta page `number` (0 or 1) says, each field within its bounds."""
    if len(page) < HEADER.size + _META.size:
        raise _foreign(path)
    found, _, kind, _, _ = HEADER.unpack_from(page)
    magic, version, _, _, *dbs, last_page, txn_id = _META.unpack_from(page, HEADER.size)
    page_bytes = dbs[0]
    if magic != _MAGIC or version != _VERSION:
        raise _foreign(path)
    flags, depth, root = dbs[9], dbs[10], dbs[15]
    facts = {
        "page number": found == number,
        "kind": kind == META,
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


def _check_order(first: Meta, second: Meta, path: Path) -> None:
    # Commit n writes page n % 2, so the two are always neighbours; in a file nobody has written to both are 0.
    if abs(first.txn_id - second.txn_id) != (1 if first.txn_id or second.txn_id else 0):
        raise damaged(path, f"its last commits are called {first.txn_id} and {second.txn_id}")


def _foreign(path: Path) -> StoreMismatch:
    return StoreMismatch(f"{path}: {FOREIGN}")
