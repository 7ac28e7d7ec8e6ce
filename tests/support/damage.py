"""Ways to damage a dataset called demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.store.engine.environment import open_environment
from featstore.store.engine.snapshot import TABLES

if TYPE_CHECKING:
    from pathlib import Path


def put_raw(cache: Path, table: str, key: bytes, value: bytes | None) -> None:
    """Put a value behind featstore's back, or delete it."""
    environment = open_environment(cache / "demo")
    with environment.lmdb.begin(write=True) as txn:
        if value is None:
            txn.delete(TABLES[table] + key)
        else:
            txn.put(TABLES[table] + key, value)


def read_raw(cache: Path, table: str, key: bytes) -> bytes:
    """Return the bytes that are there."""
    value = open_environment(cache / "demo").snapshot().read(table, key)
    assert value is not None
    return value


def flip_in_file(cache: Path, found: bytes, at: int = 0) -> None:
    """Flip a byte in the data file where these bytes lie."""
    file = cache / "demo" / "data.mdb"
    content = bytearray(file.read_bytes())
    place = content.index(found)
    with file.open("r+b") as handle:
        handle.seek(place + at)
        handle.write(bytes([content[place + at] ^ 0x10]))
