"""The catalog of several shards as one: whose record each key is, and what all of them say besides."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featstore.errors import StoreDamaged, StoreMismatch
from featstore.store.manifest import Counts, Manifest, check_name, unpack_manifest
from featstore.store.rows import DIGEST_DIGITS, unpack_entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from featstore.store.shards.index import Index


class Owner(NamedTuple):
    """Whose a record is: the number of its shard in the list, and its own in that shard."""

    shard: int
    at: int


class Table:
    """The records of all shards by key, each once: as the first shard in the list that has it says.

    Attributes:
        count: How many there are.
        differing: Keys under which shards hold records that say different things, and the two shards' numbers.
    """

    def __init__(self, indices: Sequence[Index]) -> None:
        """Take the indices, in the order of the list."""
        self._indices = indices
        sizes = [len(index) for index in indices]
        keys = np.concatenate([np.zeros(0, "S64"), *(index.keys for index in indices)])
        # Stable: of equal keys the one of the first shard comes first.
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        again = np.zeros(len(keys), bool)
        again[1:] = keys[1:] == keys[:-1]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        self._starts = starts
        self.differing, self.repeated = self._compare(keys, order, again)
        self._keys, self._order = keys[~again], order[~again]
        self.count = len(self._keys)

    def find(self, key: bytes) -> Owner | None:
        """Return whose record `key` is, None if nobody's; a few microseconds among a million."""
        if len(key) != self._keys.itemsize:
            return None
        at = int(self._keys.searchsorted(key))
        if at == self.count or self._keys[at] != key:
            return None
        return self._owner(int(self._order[at]))

    def owners(self, prefix: bytes) -> Iterator[tuple[bytes, Owner]]:
        """Yield the keys that begin with `prefix`, in order, and whose they are."""
        first = int(self._keys.searchsorted(prefix))
        last = (
            int(self._keys.searchsorted(prefix + b"\x7f", side="right")) if prefix else self.count
        )
        for at in range(first, last):
            yield bytes(self._keys[at]), self._owner(int(self._order[at]))

    def row(self, owner: Owner) -> bytes:
        """Return the catalog row of a record."""
        return self._indices[owner.shard].row(owner.at)

    def _owner(self, at: int) -> Owner:
        shard = int(self._starts.searchsorted(at, side="right")) - 1
        return Owner(shard, at - int(self._starts[shard]))

    def _compare(
        self, keys: np.ndarray, order: np.ndarray, again: np.ndarray
    ) -> tuple[dict[bytes, tuple[int, int]], list[Owner]]:
        """Return the keys whose records differ, and those records that another shard has before."""
        differing: dict[bytes, tuple[int, int]] = {}
        repeated = []
        first = 0
        for at in np.flatnonzero(again).tolist():
            if not again[at - 1]:
                first = at - 1
            one, other = self._owner(int(order[first])), self._owner(int(order[at]))
            repeated.append(other)
            contents = [
                self._indices[owner.shard].contents[owner.at].tobytes() for owner in (one, other)
            ]
            if contents[0] != contents[1]:
                differing.setdefault(bytes(keys[at]), (one.shard, other.shard))
        return differing, repeated


def merge_sets(indices: Sequence[Index]) -> dict[bytes, bytes]:
    """Return the rows of the feature sets by key, each as the first shard says that has it."""
    found: dict[bytes, bytes] = {}
    for index in reversed(indices):
        found |= index.sets
    return dict(sorted(found.items()))


def merge_failures(indices: Sequence[Index], table: Table) -> dict[bytes, bytes]:
    """Return the rows of failures by key, each as the last shard says; none of a video that a later shard stores."""
    found: dict[bytes, tuple[int, bytes]] = {}
    for number, index in enumerate(indices):
        found |= {key: (number, row) for key, row in index.failures.items()}
    kept = {}
    for key, (number, row) in sorted(found.items()):
        owner = table.find(key)
        if owner is None or owner.shard <= number:
            kept[key] = row
    return kept


def merge_manifests(
    indices: Sequence[Index], table: Table, failures: dict[bytes, bytes], path: Path
) -> Manifest:
    """Return the manifest of the whole: what each set has is counted once, and the default is that of the first shard.

    Raises:
        StoreMismatch: A shard is of another dataset, or of another format.
        StoreDamaged: A manifest is damaged.
    """
    manifests = [unpack_manifest(index.manifest, path) for index in indices]
    for index, manifest in zip(indices, manifests, strict=True):
        try:
            check_name(manifest, path, path.name)
        except StoreMismatch as exc:
            raise StoreMismatch(
                f"the shard {index.shard[:8]} of {path} is of the dataset {manifest.dataset!r}",
                remedy="put no shard of one dataset into another",
            ) from exc
    counts: dict[str, Counts] = {}
    for manifest in manifests:
        for digest, found in manifest.sets.items():
            counts[digest] = _sum(counts.get(digest, Counts()), replace(found, failures=0))
    for owner in table.repeated:
        index = indices[owner.shard]
        key = bytes(index.keys[owner.at])
        entry = unpack_entry(key, index.row(owner.at))
        twice = Counts(1, 0, entry.frames, entry.record_bytes)
        counts[entry.spec] = _sum(counts.get(entry.spec, Counts()), twice, -1)
    for key in failures:
        digest = key[:DIGEST_DIGITS].decode()
        counts[digest] = _sum(counts.get(digest, Counts()), Counts(failures=1))
    default = next((m.default for m in manifests if m.default and counts[m.default].videos), "")
    created = min((manifest.created for manifest in manifests), default=0.0)
    return Manifest(path.name, created, default or next(iter(counts), ""), counts)


def explain_differing(video: str, shards: Sequence[str], path: Path) -> StoreDamaged:
    """Return the error that says that two shards hold different records of one video."""
    return StoreDamaged(
        f"video {video!r} of {path} is in {' and '.join(shards)}, and the records differ, so neither is served",
        remedy="copy all other videos into another cache with featstore merge, and ingest this one there",
    )


def _sum(one: Counts, other: Counts, sign: int = 1) -> Counts:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return Counts(*(max(0, a + sign * b) for a, b in pairs))
