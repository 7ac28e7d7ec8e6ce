"""The list of a dataset's shards: one JSON file a version, never changed, of which the newest is the dataset.

`manifest-<n>.json` is made only if there is none of that number, so of two that add shards at the same time one finds
it made, reads it and makes the next one: nothing is lost. Older ones are history.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from featstore.errors import StoreDamaged, StoreError, StoreMismatch
from featstore.store.shards.places import shard_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from featstore.store.shards.places import FilePlace

LIST_FORMAT = 1
MAX_LIST_BYTES = 64 << 20
MAX_NUMBER = 1 << 40
_NAME = re.compile(r"manifest-([1-9][0-9]{0,12})\.json")
_DIGEST = re.compile(r"[0-9a-f]{32}")
_TRIES = 1_000  # of others that add at the same time


@dataclass(frozen=True)
class ShardRow:
    """A shard in a list.

    Attributes:
        shard: xxh3-128 of its file, 32 hex digits; with `.mdb` and `.idx` the names of its files.
        file_bytes: bytes of its file.
        index_xxh3: xxh3-128 of its index, 32 hex digits.
        index_bytes: bytes of its index.
        videos: records in it.
    """

    shard: str
    file_bytes: int
    index_xxh3: str
    index_bytes: int
    videos: int

    @property
    def data_name(self) -> str:
        """Return the name of its file."""
        return f"{self.shard}.mdb"

    @property
    def index_name(self) -> str:
        """Return the name of its index."""
        return f"{self.shard}.idx"


@dataclass(frozen=True)
class ShardList:
    """The shards of a dataset, those added first first; number 0, of none, is before the first.

    Attributes:
        dataset: the dataset's name.
        number: of the list.
        shards: each once.
    """

    dataset: str
    number: int = 0
    shards: tuple[ShardRow, ...] = ()

    def added(self, rows: Iterable[ShardRow]) -> ShardList:
        """Return the next list, with those of `rows` that this one lacks; this one if it has all."""
        there = {row.shard for row in self.shards}
        new = {row.shard: row for row in rows if row.shard not in there}
        if not new:
            return self
        return ShardList(self.dataset, self.number + 1, (*self.shards, *new.values()))


def list_name(number: int) -> str:
    """Return the name of the file of list `number`."""
    return f"manifest-{number}.json"


def list_number(name: str) -> int:
    """Return the number of the list in the file `name`, 0 if it is no list's."""
    found = _NAME.fullmatch(name)
    return number if found and (number := int(found[1])) <= MAX_NUMBER else 0


def read_list(place: FilePlace, dataset: str) -> ShardList:
    """Return the newest list in `place`, number 0 if there is none; raise as `unpack_list`, and StoreError."""
    number = max(map(list_number, place.names(shard_file(dataset))), default=0)
    if not number:
        return ShardList(dataset)
    name = shard_file(dataset, list_name(number))
    return unpack_list(place.read(name, MAX_LIST_BYTES), dataset, number, f"{place.where}/{name}")


def add_shards(place: FilePlace, dataset: str, rows: Iterable[ShardRow]) -> ShardList:
    """Add shards, whose files are in `place` already, to the list; return the list that has them.

    Raises:
        StoreError: It cannot be written.
        StoreDamaged: The newest list is damaged.
        StoreMismatch: It is of another dataset or version.
    """
    rows = list(rows)
    for _ in range(_TRIES):
        there = read_list(place, dataset)
        wanted = there.added(rows)
        name = shard_file(dataset, list_name(wanted.number))
        if wanted is there or place.create(name, pack_list(wanted)):
            return wanted
    raise StoreError(
        f"{place.where}/{dataset}: others went on adding shards, {_TRIES} times in a row; run the command again"
    )


def pack_list(found: ShardList) -> bytes:
    """Return the bytes of a list."""
    plain = {
        "format": LIST_FORMAT,
        "dataset": found.dataset,
        "number": found.number,
        "shards": [asdict(row) for row in found.shards],
    }
    plain["xxh3"] = _checksum(plain)
    return (json.dumps(plain, indent=1) + "\n").encode()


def unpack_list(data: bytes, dataset: str, number: int, name: str) -> ShardList:
    """Return the list in `data`.

    Args:
        data: The whole file.
        dataset: The name that the dataset must have.
        number: That the list must have.
        name: What a message calls it.

    Raises:
        StoreDamaged: It is damaged.
        StoreMismatch: It is of another dataset, or another version of featstore.
    """
    try:
        plain = json.loads(data)
        fits = isinstance(plain, dict)
        stated = plain.pop("xxh3", None) if fits else None
        whole = fits and stated == _checksum(plain)
    except (ValueError, RecursionError):
        fits = whole = False
    if fits and plain.get("format") != LIST_FORMAT:
        raise StoreMismatch(
            f"{name} has format {plain.get('format')!r:.40}, this featstore reads format {LIST_FORMAT}",
            remedy="update featstore",
        )
    rows = [_row(row) for row in plain.get("shards", ())] if fits and _is_list(plain) else []
    if not whole or plain.get("number") != number or None in rows:
        raise StoreDamaged(
            f"the list of shards {name} cannot be read, it is damaged",
            remedy="put a good copy of the file in its place; without it, the list before it is the dataset",
        )
    if plain.get("dataset") != dataset:
        raise StoreMismatch(
            f"{name} is of the dataset {plain.get('dataset')!r:.200}; its folder must have that name",
            remedy="rename it back",
        )
    return ShardList(dataset, number, tuple(row for row in rows if row is not None))


def _is_list(plain: dict[str, Any]) -> bool:
    return isinstance(plain.get("shards"), list)


def _row(plain: Any) -> ShardRow | None:
    """Return the row that plain values describe, None if they do not."""
    try:
        row = ShardRow(**plain)
    except TypeError:
        return None
    sizes = (row.file_bytes, row.index_bytes, row.videos)
    if any(type(size) is not int or not 0 <= size < 1 << 48 for size in sizes):
        return None
    digests = (row.shard, row.index_xxh3)
    return row if all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in digests) else None


def _checksum(plain: dict[str, Any]) -> str:
    """Return xxh3-128 of all but itself, as compact JSON with its names in order."""
    return xxhash.xxh3_128_hexdigest(
        json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    )
