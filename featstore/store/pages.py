"""Where LMDB 0.9 keeps a large value, read from its pages: py-lmdb touches every page of a value it hands out.

A cursor set on a key gives the key's address, which lies in a node of a leaf page. The node of a large value holds the
number of its first overflow page; the value begins after that page's header. Each step is checked, and whoever calls
falls back to py-lmdb's own way where a check fails.

Structures: MDB_node and MDB_page in LMDB's mdb.c (0.9), as on machines with 64 bits.
"""

from __future__ import annotations

import ctypes
import struct

# mn_lo, mn_hi: the value's size; mn_flags; mn_ksize. The key follows, then the value or its page number.
_NODE = struct.Struct("=HHHH")
_BIG_VALUE = 0x01
# mp_pgno, mp_pad, mp_flags, mp_pages.
_PAGE = struct.Struct("=QHHI")
_OVERFLOW_PAGE = 0x04


def overflow_page(key_address: int, key_bytes: int) -> tuple[int, int] | None:
    """Return `(page number, value bytes)` of the key at `key_address`, or None where its value lies in the leaf."""
    raw = ctypes.string_at(key_address - _NODE.size, _NODE.size)
    low, high, flags, size = _NODE.unpack(raw)
    if size != key_bytes or flags != _BIG_VALUE:
        return None
    (page,) = struct.unpack("=Q", ctypes.string_at(key_address + key_bytes, 8))
    return page, low | high << 16


def value_address(base: int, page: int, value_bytes: int, page_bytes: int) -> int | None:
    """Return the address of the value that begins on `page` of the map at `base`; None where no such page is there."""
    address = base + page * page_bytes
    number, _, flags, pages = _PAGE.unpack(ctypes.string_at(address, _PAGE.size))
    if number != page or flags != _OVERFLOW_PAGE or pages * page_bytes < _PAGE.size + value_bytes:
        return None
    return address + _PAGE.size


def map_base(value_address: int, page: int, page_bytes: int) -> int:
    """Return where the map begins that holds a value at `value_address`, of which the first page is `page`."""
    return value_address - _PAGE.size - page * page_bytes
