"""The pages of an LMDB 0.9 file, and the keys in them, read without trusting either.

liblmdb trusts its file: one flipped bit in a page number sends it outside the map, and the process ends. A walk here
follows a page number only if it is in the file and the page there carries it; nodes must be within their page, leaves
at the depth the tree states, keys in order. What does not hold raises StoreDamaged. Values are not touched.

Structures: MDB_page and MDB_node in LMDB's mdb.c (0.9), as on machines with 64 bits.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from functools import partial
from itertools import pairwise
from operator import lt
from typing import TYPE_CHECKING, NamedTuple

from featstore.errors import StoreDamaged
from featstore.store.engine.pages import HEADER, damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from featstore.store.engine.pages import Meta
    from featstore.system.file_map import FileMap

# Branches kept by a snapshot, some 10 KB each; those of a million records are a few hundred.
MAX_BRANCHES = 1024
_EXTENT = struct.Struct("=QHHI")
# mn_lo, mn_hi: the value's size, or the low bits of a child's page; mn_flags: its highest bits; mn_ksize.
NODE = struct.Struct("=HHHH")
_KEY_BYTES = struct.Struct("=6xH")
BRANCH, LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BIG_VALUE = 0x01
_U64 = struct.Struct("=Q")
# mn_lo and mn_hi, in the machine's order the value's size; mn_flags; mn_ksize.
_unpack_leaf_node = struct.Struct("=IHH").unpack_from


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

    def bounds(self, at: int, low: bytes, high: bytes | None) -> tuple[bytes, bytes | None]:
        """Return between what the keys below child `at` are, those below the branch being between `low` and `high`."""
        return (
            self.keys[at - 1] if at else low,
            self.keys[at] if at < len(self.keys) else high,
        )


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
        low, high = b"", None
        for _ in range(1, self._meta.depth):
            branch = self._branch(number, limit)
            at = bisect_right(branch.keys, key)
            number, (low, high) = branch.children[at], branch.bounds(at, low, high)
        page = self._page(number, LEAF, limit)
        index = self._search(page, key)
        if index < len(page.nodes) and self._key(page, page.nodes[index]) == key:
            return self._place(page, page.nodes[index], limit)
        # Or a key that is damaged would be one that is not there.
        self._check_order(page, low, high)
        return None

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys that begin with `prefix`, in order."""
        if self._meta.root is None:
            return
        last = b""
        for page, first, high in self._leaves(self._meta.root, self._meta.depth, prefix):
            for start in page.nodes[first:]:
                key = self._key(page, start)
                if key <= last:
                    raise self._wrong(page.number, "its keys are out of order")
                if not key.startswith(prefix):
                    self._check_order(page, b"", high)
                    return
                last = key
                yield key

    def rows(
        self, prefix: bytes, read: Callable[[Place], bytes]
    ) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Yield the keys that begin with `prefix`, in order, and copies of their values, a page at a time.

        Args:
            prefix: Of the keys.
            read: Returns a copy of a value that has pages of its own.
        """
        if self._meta.root is None:
            return
        last = b""
        for page, first, high in self._leaves(self._meta.root, self._meta.depth, prefix):
            # A dataset has millions of rows: each is sliced from the page's copy, with one call to unpack its node.
            data, size, starts = page.data, len(page.data), page.nodes[first:]
            if starts and not page.upper <= min(starts) <= max(starts) <= size - NODE.size:
                raise self._wrong(page.number, f"its nodes begin at {starts}, not all within it")
            is_last = bool(starts) and not self._key(page, starts[-1]).startswith(prefix)
            if is_last:
                self._check_order(page, last, high)
                starts = tuple(s for s in starts if self._key(page, s).startswith(prefix))
            keys: list[bytes] = []
            values: list[bytes] = []
            for start in starts:
                length, flags, key_bytes = _unpack_leaf_node(data, start)
                at = start + 8 + key_bytes
                end = at + length
                keys.append(data[start + 8 : at])
                if flags == 0 and end <= size:
                    values.append(data[at:end])
                else:
                    values.append(read(self._own_pages(page, at, length, flags, self._limit())))
            if not all(map(lt, [last, *keys], keys)):
                raise self._wrong(page.number, "its keys are out of order")
            yield keys, values
            if is_last:
                return
            last = keys[-1] if keys else last

    def _leaves(
        self, number: int, levels: int, start: bytes, low: bytes = b"", high: bytes | None = None
    ) -> Iterator[tuple[_Page, int, bytes | None]]:
        """Yield the leaves below page `number`, from the one with `start` on.

        With each the index of its first node that is not before `start`, and what all its keys must be before. A key
        that is damaged ends a walk, or hides where it begins, only on its first and its last leaf: there the order of
        all keys is checked, here and by who ends the walk; in between by who compares each key with the last.
        """
        limit = self._limit()  # once a branch: if the file is cut short, a read says so
        if levels == 1:
            yield self._leaf(number, limit, start, low, high)
            return
        branch = self._branch(number, limit)
        first = bisect_right(branch.keys, start)
        for at, child in enumerate(branch.children[first:], first):
            bounds = branch.bounds(at, low, high)
            if levels > 2:
                yield from self._leaves(child, levels - 1, start, *bounds)
            else:
                yield self._leaf(child, limit, start, *bounds)
            start = b""

    def _leaf(
        self, number: int, limit: int, start: bytes, low: bytes, high: bytes | None
    ) -> tuple[_Page, int, bytes | None]:
        page = self._page(number, LEAF, limit)
        if start:
            self._check_order(page, low, high)
        return page, self._search(page, start) if start else 0, high

    def _check_order(self, page: _Page, low: bytes, high: bytes | None) -> None:
        """Raise StoreDamaged unless the keys of a leaf ascend, from `low` on and before `high`."""
        keys = [self._key(page, start) for start in page.nodes]
        if (
            keys[0] < low
            or (high is not None and keys[-1] >= high)
            or any(key >= following for key, following in pairwise(keys))
        ):
            raise self._wrong(page.number, "its keys are out of order")

    def salvage(self, prefix: bytes) -> tuple[list[bytes], list[StoreDamaged]]:
        """Return the keys that begin with `prefix` on pages that can be read, and what is wrong with the others."""
        found: list[bytes] = []
        wrong: list[StoreDamaged] = []
        below = [] if self._meta.root is None else [(self._meta.root, self._meta.depth)]
        while below:
            number, levels = below.pop()
            try:
                if levels > 1:
                    children = self._branch(number, self._limit()).children
                    below += [(child, levels - 1) for child in reversed(children)]
                    continue
                page = self._page(number, LEAF, self._limit())
                keys = [self._key(page, start) for start in page.nodes]
            except StoreDamaged as exc:
                wrong.append(exc)
            else:
                found += [key for key in keys if key.startswith(prefix)]
        return found, wrong

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
        length, flags, key_bytes = _unpack_leaf_node(page.data, start)
        at = start + NODE.size + key_bytes
        if flags == 0 and at + length <= len(page.data):
            return Place(page.number * len(page.data) + at, length)
        return self._own_pages(page, at, length, flags, limit)

    def _own_pages(self, page: _Page, at: int, length: int, flags: int, limit: int) -> Place:
        """Return the place of a value of which the node has, at `at`, the number of its first page."""
        if flags != _BIG_VALUE or at + _U64.size > len(page.data):
            raise self._wrong(page.number, f"a node has flags {flags} and {length} bytes at {at}")
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
