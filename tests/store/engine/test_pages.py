"""The two meta pages: each field is taken up to its bound and no further."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import pytest

from featstore.errors import StoreDamaged, StoreMismatch
from featstore.store.engine.pages import _META, HEADER, parse_meta, read_metas

FOLDER = Path("/cache/demo")
NO_PAGE = (1 << 64) - 1
# Of an empty file: magic, version, address, map; two databases of 8 numbers; last page, transaction.
EMPTY = [0xBEEFC0DE, 1, 0, 1 << 42, *[4096, 0, 0, 0, 0, 0, 0, NO_PAGE], *[0] * 7, NO_PAGE, 1, 0]
PLACES = {"page_bytes": 4, "flags": 13, "depth": 14, "root": 19, "last_page": 20, "txn_id": 21}


def meta_page(number: int = 0, kind: int = 0x08, **fields: int) -> bytes:
    numbers = list(EMPTY)
    for name, value in fields.items():
        numbers[PLACES[name]] = value
    return HEADER.pack(number, 0, kind, 0, 0) + _META.pack(*numbers) + bytes(64)


def test_an_empty_file_has_no_root():
    meta = parse_meta(meta_page(), 0, FOLDER)
    assert meta == (0, 4096, None, 0, 2)
    assert parse_meta(meta_page(depth=1, root=2, last_page=9, txn_id=4), 0, FOLDER) == (
        4,
        4096,
        2,
        1,
        10,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"page_bytes": 256},
        {"page_bytes": 1 << 15},
        {"depth": 32, "root": 2, "last_page": 2},
        {"last_page": (1 << 48) - 1},
        {"depth": 1, "root": 7, "last_page": 7},
        {"txn_id": 2},
    ],
)
def test_a_field_is_taken_up_to_its_bound(fields):
    parse_meta(meta_page(**fields), 0, FOLDER)


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("page size", {"page_bytes": 128}),
        ("page size", {"page_bytes": 1 << 16}),
        ("page size", {"page_bytes": 4098}),
        ("page size", {"page_bytes": 4097}),
        ("tree's flags", {"flags": 4}),
        ("depth", {"depth": 33, "root": 2, "last_page": 2}),
        ("depth", {"depth": 1}),
        ("depth", {"depth": 0, "root": 2, "last_page": 2}),
        ("last page", {"last_page": 0}),
        ("last page", {"last_page": 1 << 48}),
        ("root", {"depth": 1, "root": 1, "last_page": 7}),
        ("root", {"depth": 1, "root": 8, "last_page": 7}),
        ("transaction", {"txn_id": 3}),
        ("transaction", {"txn_id": 1}),
    ],
)
def test_a_field_beyond_its_bound_is_damage(what, fields):
    with pytest.raises(StoreDamaged, match=f"{FOLDER}: the {what} on page 0 cannot be"):
        parse_meta(meta_page(**fields), 0, FOLDER)


def test_a_page_of_another_kind_or_number_is_damage_and_another_magic_is_no_store():
    for page in (meta_page(number=1), meta_page(kind=0x02)):
        with pytest.raises(StoreDamaged, match=r"page number|kind"):
            parse_meta(page, 0, FOLDER)
    for page in (bytes(4096), meta_page()[: HEADER.size + _META.size - 1]):
        with pytest.raises(StoreMismatch, match=f"{FOLDER}: "):
            parse_meta(page, 0, FOLDER)


def test_a_file_that_nobody_wrote_to_has_two_pages_of_no_commit(tmp_path):
    with lmdb.open(str(tmp_path), map_size=1 << 20, lib_version=0):
        fd = os.open(tmp_path / "data.mdb", os.O_RDONLY)
        try:
            assert [meta.txn_id for meta in read_metas(fd, tmp_path)] == [0, 0]
        finally:
            os.close(fd)


def test_two_pages_that_are_not_neighbours_are_damage_of_the_dataset_they_are_in(tmp_path):
    file = tmp_path / "data.mdb"
    first = meta_page(txn_id=4)
    for second, found in (
        (meta_page(1, txn_id=7), "its last commits are called 4 and 7"),
        (meta_page(1, page_bytes=8192, txn_id=3), "its first two pages name different page sizes"),
        (meta_page(1, depth=33, txn_id=3), "the depth on page 1 cannot be"),
    ):
        file.write_bytes(first.ljust(4096, b"\0") + second.ljust(4096, b"\0"))
        with file.open("rb") as opened, pytest.raises(StoreDamaged, match=f"{FOLDER}: {found}"):
            read_metas(opened.fileno(), FOLDER)
