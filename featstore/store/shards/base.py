"""What is asked of a dataset as of one commit, and of what gives its commits, however many files it has, and where.

`catalog.py`, `Dataset`, models, `ls`, `info`, `export`, `merge` and `check` know a dataset by this and nothing else:
`engine/snapshot.Snapshot` is one LMDB file read through its pages, `ShardSnapshot` any number of sealed ones read
through their indices. The suite in tests/contracts/shard_contract.py says what each must do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from featstore.errors import StoreDamaged
    from featstore.store.engine.snapshot import Cache
    from featstore.store.shards.index import RecordPlace
    from featstore.store.shards.manifest_list import ShardRow


class MappedBytes(Protocol):
    """Mapped memory: a file's map, which stays for as long as anything refers to it."""

    address: int
    length: int
    read_ahead_bytes: int

    def file_bytes(self) -> int:
        """Return the bytes that may be touched."""
        ...


class DatasetSnapshot(Protocol):
    """What a dataset holds as of one commit; a view that it gives keeps all that the view needs.

    Attributes:
        path: The dataset's folder, or what a message calls it by.
        cache: What the process knows of the dataset; what it says of a record holds for one `txn_id`.
    """

    path: Path
    cache: Cache

    @property
    def txn_id(self) -> int:
        """Return the number of the commit."""
        ...

    def file_bytes(self) -> int:
        """Return the bytes of the dataset's files."""
        ...

    def get(self, table: str, key: bytes) -> memoryview | None:
        """Return the value of `key` as a read-only view, whose payload lies on a page, or None."""
        ...

    def place(self, view: memoryview) -> Any:
        """Return where a view is, or a part of one, that `get` or `view` gave; places that are equal are the same."""
        ...

    def view(self, place: Any) -> memoryview:
        """Return what is at `place`, also if no view of it was left."""
        ...

    def memory(self, view: memoryview) -> MappedBytes:
        """Return the map that a view of `get` or `view` is in."""
        ...

    def prefault(self, value: memoryview) -> None:
        """Start to read the pages of a view from disk; nothing if they are in memory."""
        ...

    def read_ahead(self, key: bytes) -> None:
        """Start to bring the record of `key` into memory, without waiting; nothing if there is none."""
        ...

    def read(self, table: str, key: bytes) -> bytes | None:
        """Return a copy of the value of `key`, or None; for small rows."""
        ...

    def keys(self, table: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield the keys that begin with `prefix`, in order."""
        ...

    def rows(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield copies of the keys and values whose keys begin with `prefix`, in order; not of records."""
        ...

    def values(self, table: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield copies of the values whose keys begin with `prefix`, in the order of their keys; not of records."""
        ...

    def salvage(self, table: str) -> tuple[list[bytes], list[StoreDamaged]]:
        """Return the keys of a table that can be read, and what is wrong with the others."""
        ...

    def count(self, table: str) -> int:
        """Return the number of keys of a table."""
        ...

    def strays(self) -> Iterator[bytes]:
        """Yield the keys that belong to no table."""
        ...


class Commits(Protocol):
    """What gives the newest commit of a dataset for as long as it is `open`; the process shares it."""

    def snapshot(self) -> DatasetSnapshot:
        """Return the newest commit; StoreNotFound if the dataset is gone."""
        ...


class Located(NamedTuple):
    """A record in memory: its map, and where in that its first byte is."""

    memory: MappedBytes
    offset: int


class Records(Protocol):
    """Where the bytes of a dataset's sealed records are on this machine: maps of the shard files, or files fetched.

    Readers verify what it gives: the record has checksums of its own, and its key is computed from it.
    """

    def locate(self, shard: ShardRow, record: RecordPlace) -> Located:
        """Return the record in mapped memory, its payload on a page; asked at each lookup.

        Raises:
            StoreError: It cannot be had now: the file is gone, the server does not answer, no address space is left.
            StoreDamaged: What is there is not what the index says.
        """
        ...

    def read_ahead(self, shard: ShardRow, record: RecordPlace) -> None:
        """Start to bring a record here, without waiting; what goes wrong is met by who asks for it."""
        ...
