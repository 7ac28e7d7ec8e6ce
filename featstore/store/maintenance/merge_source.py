"""What can be read of a dataset that is copied from, pages that are damaged left out."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from featstore.errors import StoreDamaged, how_many
from featstore.store.catalog import read_manifest, read_whole_sets, unpack_whole_sets
from featstore.store.rows import DIGEST_DIGITS, set_key

if TYPE_CHECKING:
    from featstore.store.rows import FeatureSet
    from featstore.store.shards.base import DatasetSnapshot


class MergeSource:
    """What can be read of the dataset that is copied from, pages that are damaged left out.

    Attributes:
        snapshot: Of the dataset.
        dataset: The dataset's name.
        sets: Its feature sets, the default one first, then the oldest.
        total: How many videos it has.
        wrong: What cannot be read, and why.
    """

    def __init__(self, snapshot: DatasetSnapshot, dataset: str) -> None:
        """Raise StoreDamaged if no feature set can be read, StoreMismatch if it is another dataset."""
        self.snapshot = snapshot
        self.dataset = dataset
        self.wrong: list[tuple[str, str]] = []
        default = ""
        with contextlib.suppress(StoreDamaged):  # the records say whose they are
            default = read_manifest(snapshot, dataset).default
        try:
            self.total = snapshot.count("catalog")
            self._salvaged: list[bytes] | None = None
            sets, damaged = read_whole_sets(snapshot)
        except StoreDamaged:
            sets, damaged = self._salvage()
        self.wrong += [(f"feature set {digest}", exc.found) for digest, exc in damaged.items()]
        if self.wrong and not sets:
            raise StoreDamaged(
                f"nothing of {snapshot.path} can be copied: {self.wrong[0][1]}",
                remedy="put a good copy of the file in its place, or ingest its videos again",
            )
        self.sets = sorted(sets.values(), key=lambda row: row.spec.digest != default)

    def keys(self, digest: str) -> list[bytes]:
        """Return the keys of the videos of a feature set."""
        if self._salvaged is None:
            return list(self.snapshot.keys("catalog", set_key(digest)))
        return [key for key in self._salvaged if key.startswith(set_key(digest))]

    def _salvage(self) -> tuple[dict[str, FeatureSet], dict[str, StoreDamaged]]:
        """Find the keys on the pages that can be read: a video's row or its record will do."""
        found = {table: self.snapshot.salvage(table) for table in ("catalog", "records", "specs")}
        pages = found["specs"][1]
        self.wrong += [("what was on a damaged page", exc.found) for exc in pages]
        self._salvaged = sorted({*found["catalog"][0], *found["records"][0]})
        self.total = len(self._salvaged)
        sets, damaged = unpack_whole_sets(
            found["specs"][0], lambda key: self.snapshot.read("specs", key) or b""
        )
        lost = Counter(key[:DIGEST_DIGITS].decode(errors="replace") for key in self._salvaged)
        for digest in lost.keys() - sets.keys() - damaged.keys():
            damaged[digest] = StoreDamaged(
                f"its row is lost, and so what its {how_many(lost[digest], 'video')} held"
            )
        return sets, damaged
