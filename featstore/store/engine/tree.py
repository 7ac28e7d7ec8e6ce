"""The pages of an LMDB 0.9 file, and the keys in them, read without trusting either.

liblmdb trusts its file: one flipped bit in a page number sends it outside the map, and the process ends. A walk here
follows a page number only if it is in the file and the page there carries it; nodes must be within their page, leaves
at the depth the tree states, keys in order. What does not hold raises StoreDamaged. Values are not touched.

Structures: MDB_page, MDB_meta, MDB_db and MDB_node in LMDB's mdb.c (0.9), as on machines with 64 bits.
"""

from __future__ import annotations

import contextlib
import os
import struct
from bisect import bisect_left, bisect_right
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from featstore.errors import StoreDamaged, StoreMismatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from featstore.system.file_map import FileMap

# Branches kept by a snapshot, some 10 KB each; those of a million records are a few hundred.
MAX_BRANCHES = 1024
MAX_DEPTH = 32
FOREIGN = (
    "the file is not of LMDB engine 0.9 as featstore's are: of engine 1.0, of another program, or damaged; put a copy "
    "of the right one there, or ingest into another --cache-dir"
)

# mp_pgno, mp_pad, mp_flags, then mp_lower and mp_upper, or mp_pages where a large value begins.
HEADER = struct.Struct("=QHHHH")
_EXTENT = struct.Struct("=QHHI")
# mn_lo, mn_hi: the value's size, or the low bits of a child's page; mn_flags: its highest bits; mn_ksize.
NODE = struct.Struct("=HHHH")
_KEY_BYTES = struct.Struct("=6xH")
BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 0x01, 0x02, 0x04, 0x08
_BIG_VALUE = 0x01
_U64 = struct.Struct("=Q")
_DB = "IHHQQQQQ"  # md_pad, md_flags, md_depth, branch, leaf and overflow pages, entries, root
_META = struct.Struct("=II QQ" + 2 * _DB + "QQ")
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
        f"{path}: {found}; the file is damaged or was cut short: see what featstore check finds, and if it finds the "
        "same, put a good copy in its place (by renaming), or copy what can still be read into another cache with "
        "featstore merge and ingest the rest there"
    )


class Place(NamedTuple):
    """The place of a value: its offset in the file and its length in bytes."""

    offset: int
    length: int


class _Page(NamedTuple):
    """A page's copy, its bounds checked: its number, where its nodes begin, and the offsets of its nodes."""

    number: int
    data: bytes
    upper: int
    nodes: tuple[int, ...]


class _Branch(NamedTuple):
    """A branch: the keys of all its nodes but the first, which stands for all smaller ones; a page for each node."""

    keys: list[bytes]
    children: list[int]


class Tree:
    """The tree of the commit `txn_id` in `mapping`, for as long as its pages do not change.

    That is while a read transaction on it is held, or no later commit was made.
    """

    def __init__(self, mapping: FileMap, meta: Meta, path: Path) -> None:
        """Take the map of the file and the meta page of the commit; read nothing yet."""
        self.mapping = mapping
        self.txn_id = meta.txn_id
        self._meta = meta
        self._path = path
        self._branches: dict[int, _Branch] = {}

    def find(self, key: bytes) -> Place | None:
        """Return the place of the value of `key`, None if there is no such key."""
        number = self._meta.root
        if number is None:
            return None
        limit = self._limit()
        for _ in range(1, self._meta.depth):
            branch = self._branch(number, limit)
            number = branch.children[bisect_right(branch.keys, key)]
        page = self._page(number, _LEAF, limit)
        index = self._search(page, key)
        if index < len(page.nodes) and self._key(page, page.nodes[index]) == key:
            return self._place(page, page.nodes[index], limit)
        return None

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys that begin with `prefix`, in order."""
        for key, _, _ in self._nodes(prefix):
            yield key

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, Place]]:
        """Yield the keys that begin with `prefix`, in order, each with the place of its value."""
        for key, page, start in self._nodes(prefix):
            yield key, self._place(page, start, self._limit())

    def _nodes(self, prefix: bytes) -> Iterator[tuple[bytes, _Page, int]]:
        if self._meta.root is None:
            return
        last = b""
        for page, first in self._leaves(self._meta.root, self._meta.depth, prefix):
            for start in page.nodes[first:]:
                key = self._key(page, start)
                if not key.startswith(prefix):
                    return
                if key <= last:
                    raise self._wrong(page.number, "its keys are out of order")
                last = key
                yield key, page, start

    def _leaves(self, number: int, levels: int, start: bytes) -> Iterator[tuple[_Page, int]]:
        """Yield the leaves below page `number`, and the index of the first node in each that is not before `start`."""
        if levels == 1:
            page = self._page(number, _LEAF, self._limit())
            yield page, self._search(page, start) if start else 0
            return
        branch = self._branch(number, self._limit())
        first = bisect_right(branch.keys, start)
        for child in branch.children[first:]:
            yield from self._leaves(child, levels - 1, start)
            start = b""

    def _limit(self) -> int:
        """Return how many pages may be looked at: those the commit speaks of and the file still has."""
        return min(self._meta.pages, self.mapping.file_bytes() // self._meta.page_bytes)

    def _branch(self, number: int, limit: int) -> _Branch:
        known = self._branches.get(number)
        if known is not None:
            return known
        page = self._page(number, BRANCH, limit)
        # The first node stands for all smaller keys, whatever its own says.
        keys = [self._key(page, start) for start in page.nodes][1:]
        if any(key >= following for key, following in pairwise(keys)):
            raise self._wrong(number, "its keys are out of order")
        children = []
        for start in page.nodes:
            low, high, top, _ = NODE.unpack_from(page.data, start)
            children.append(low | high << 16 | top << 32)
        if len(self._branches) >= MAX_BRANCHES:
            self._branches.clear()
        branch = self._branches[number] = _Branch(keys, children)
        return branch

    def _page(self, number: int, kind: int, limit: int) -> _Page:
        if not 2 <= number < limit:
            raise self._wrong(number, f"the tree leads to it, and the file has {limit}")
        size = self._meta.page_bytes
        data = self.mapping.read(number * size, size)
        found, _, flags, lower, upper = HEADER.unpack_from(data)
        if found != number or flags != kind:
            raise self._wrong(number, f"it says it is page {found} of kind {flags}, not {kind}")
        count = (lower - HEADER.size) >> 1
        if lower & 1 or count < 1 or not lower <= upper <= size:
            raise self._wrong(number, f"its bounds are {lower} and {upper}")
        nodes = struct.unpack_from(f"={count}H", data, HEADER.size)
        return _Page(number, data, upper, nodes)

    def _search(self, page: _Page, key: bytes) -> int:
        """Return the index of the first node whose key is not before `key`."""
        return bisect_left(page.nodes, key, key=partial(self._key, page))

    def _key(self, page: _Page, start: int) -> bytes:
        size = len(page.data)
        if page.upper <= start <= size - NODE.size:
            end = start + NODE.size + _KEY_BYTES.unpack_from(page.data, start)[0]
            if end <= size:
                return page.data[start + NODE.size : end]
        raise self._wrong(page.number, f"the node that begins at {start} is not within it")

    def _place(self, page: _Page, start: int, limit: int) -> Place:
        low, high, flags, key_bytes = NODE.unpack_from(page.data, start)
        length = low | high << 16
        at = start + NODE.size + key_bytes
        if flags == 0 and at + length <= len(page.data):
            return Place(page.number * len(page.data) + at, length)
        if flags != _BIG_VALUE or at + _U64.size > len(page.data):
            raise self._wrong(
                page.number, f"the node at {start} has flags {flags} and {length} bytes"
            )
        (number,) = _U64.unpack_from(page.data, at)
        return self._large(number, length, limit)

    def _large(self, number: int, length: int, limit: int) -> Place:
        """Return the place of a value with pages of its own, from page `number` on."""
        size = self._meta.page_bytes
        pages = -(-(HEADER.size + length) // size)
        if not 2 <= number <= limit - pages:
            raise self._wrong(
                number, f"a value of {length} bytes begins on it, and there are {limit}"
            )
        found, _, flags, extent = _EXTENT.unpack(self.mapping.read(number * size, _EXTENT.size))
        # A value that was replaced by a smaller one keeps the pages it had.
        if (found, flags) != (number, _OVERFLOW) or not pages <= extent <= limit - number:
            raise self._wrong(
                number, f"a value of {length} bytes begins on it, and it says otherwise"
            )
        return Place(number * size + HEADER.size, length)

    def _wrong(self, number: int, found: str) -> StoreDamaged:
        return damaged(self._path, f"page {number} cannot be: {found}")
