"""One dataset, read: a Mapping of videos to features, in which a lookup copies nothing."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from typing import TYPE_CHECKING

from featstore.errors import FeatureNotFound, RecordError, plain_line
from featstore.records.features import Features
from featstore.records.record import Record, parse
from featstore.store.catalog import (
    MANIFEST_KEY,
    Entry,
    Failure,
    FeatureSet,
    has_entry,
    read_entries,
    read_entry,
    read_failure,
    read_failures,
    read_sets,
    stored_spec,
    unpack_manifest,
    video_key,
)
from featstore.store.engine.environment import Keeper
from featstore.store.engine.snapshot import CachedRecord
from featstore.store.paths import dataset_path
from featstore.store.selection import select

if TYPE_CHECKING:
    import os

    from featstore.spec import FeatureSpec
    from featstore.store.engine.environment import Environment
    from featstore.store.engine.snapshot import Snapshot


class Dataset(Mapping[str, Features]):
    """One dataset of a store, a Mapping of video ids to Features; always as of the last commit.

    Attributes:
        name: The dataset's name.
        path: Its folder.
    """

    def __init__(
        self, cache_dir: str | os.PathLike[str], name: str, *, verify: str = "first"
    ) -> None:
        """Open the dataset.

        Args:
            cache_dir: The cache directory.
            name: The dataset's name.
            verify: When a payload's checksum is verified, see `FeatureStore`.

        Raises:
            StoreNotFound: There is no such dataset.
            StoreMismatch: Its file is not this dataset's, or of another format.
        """
        self.name = name
        self.path = dataset_path(cache_dir, name)
        self._verify = verify
        self._keeper = Keeper(self.path)
        self._checked: weakref.ref[Environment] | None = None  # whose manifest has this name
        self.snapshot()

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot of the dataset; raise StoreMismatch if another took its folder."""
        environment = self._keeper.open()
        snapshot = environment.snapshot()
        if self._checked is None or self._checked() is not environment:
            manifest = snapshot.read("manifest", MANIFEST_KEY)
            unpack_manifest(manifest, self.path, self.name)
            self._checked = weakref.ref(environment)
        return snapshot

    def __getitem__(self, video: str) -> Features:
        """Return the features of `video` from the only feature set there is; see `lookup`."""
        return self.lookup(video)

    def __contains__(self, video: object) -> bool:
        """Return whether any feature set has the video."""
        if not isinstance(video, str):
            return False
        snapshot = self.snapshot()
        return any(
            has_entry(snapshot, video_key(found.spec, self.name, video))
            for found in read_sets(snapshot).values()
        )

    def __iter__(self) -> Iterator[str]:
        """Yield the ids of the stored videos, each once."""
        return iter(dict.fromkeys(entry.video_id for entry in self.entries()))

    def __len__(self) -> int:
        """Return the number of stored videos, each counted once."""
        snapshot = self.snapshot()
        if len(read_sets(snapshot)) <= 1:
            return snapshot.count("catalog")
        return sum(1 for _ in self)

    def lookup(
        self, video: str, *, nframe: int | None = None, spec: FeatureSpec | str | None = None
    ) -> Features:
        """Return the stored features of a video.

        The arrays are read-only views into the store's memory map and stay valid for as long as they are referenced.

        Args:
            video: The video's id.
            nframe: Frames per video of the feature set, if there are several sets.
            spec: The set's FeatureSpec, or four or more first digits of its digest, if there are several sets.

        Returns:
            The features, (num_tokens, hidden_dim), in the values they are stored in.

        Raises:
            FeatureNotFound: The video was never finished in this feature set.
            StoreMismatch: No feature set fits, or several do.
            RecordError: The record is damaged.
        """
        snapshot = self.snapshot()
        found = select(read_sets(snapshot).values(), self.path, nframe, spec)
        return self.load(snapshot, video, found.spec)

    def load(self, snapshot: Snapshot, video: str, spec: FeatureSpec) -> Features:
        """Return the features of `video` as of `snapshot`; otherwise as `lookup`.

        Args:
            snapshot: Of this dataset.
            video: The video's id.
            spec: Of a feature set of the snapshot, as it is stored there.
        """
        key = video_key(spec, self.name, video)
        cached = snapshot.cache.get(key)
        if cached is not None and cached.txn_id == snapshot.txn_id:  # nothing of it is read again
            record = Record(
                cached.header, snapshot.view(cached.scale), snapshot.view(cached.payload)
            )
        else:
            record = self._read(snapshot, video, spec, key)
            verified = cached is not None and (
                cached.verified and cached.header.payload_xxh3 == record.header.payload_xxh3
            )
            cached = CachedRecord(
                snapshot.txn_id,
                record.header,
                snapshot.place(record.scale),
                snapshot.place(record.payload),
                verified,
            )
            snapshot.cache.put(key, cached)
        if self._verify == "always" or (self._verify == "first" and not cached.verified):
            wait(snapshot.prefault(record.payload))  # faults read a cold disk at half its speed
            record.verify()
            snapshot.cache.put(key, cached._replace(verified=True))
        return Features(record.header, record, snapshot.mapping)

    def read_ahead(
        self, video: str, *, nframe: int | None = None, spec: FeatureSpec | str | None = None
    ) -> None:
        """Have the system read the record of a video into memory, without waiting; nothing if it is not stored.

        Args:
            video: The video's id.
            nframe: As in `lookup`.
            spec: As in `lookup`.

        Raises:
            StoreMismatch: No feature set fits, or several do.
        """
        snapshot = self.snapshot()
        found = select(read_sets(snapshot).values(), self.path, nframe, spec)
        value = snapshot.get("records", video_key(found.spec, self.name, video))
        if value is not None:
            snapshot.prefault(value)

    def sets(self) -> list[FeatureSet]:
        """Return the feature sets, oldest first."""
        return list(read_sets(self.snapshot()).values())

    def select(
        self, nframe: int | None = None, spec: FeatureSpec | str | None = None
    ) -> FeatureSet:
        """Return the one feature set that fits; raise StoreMismatch if none does, or several. See `lookup`."""
        return select(self.sets(), self.path, nframe, spec)

    def entry(self, video: str, spec: FeatureSpec) -> Entry | None:
        """Return the row of a finished video in the feature set of `spec`, or None."""
        snapshot = self.snapshot()
        spec = stored_spec(snapshot, spec) or spec
        return read_entry(snapshot, video_key(spec, self.name, video))

    def entries(self, spec: FeatureSpec | None = None) -> Iterator[Entry]:
        """Yield the rows of the finished videos, of one feature set or of all, in no particular order."""
        return read_entries(self.snapshot(), spec.digest if spec else "")

    def failures(self, spec: FeatureSpec | None = None) -> Iterator[Failure]:
        """Yield the rows of the videos that failed, of one feature set or of all."""
        return read_failures(self.snapshot(), spec.digest if spec else "")

    def _read(self, snapshot: Snapshot, video: str, spec: FeatureSpec, key: bytes) -> Record:
        """Return the record of `video`, its prefix verified."""
        value = snapshot.get("records", key)
        if value is None:
            if has_entry(snapshot, key):
                raise RecordError(
                    f"video {video!r} has a row in the catalog of {self.path} and no record; the store is damaged",
                    remedy="run featstore check",
                )
            raise self._not_found(snapshot, video, spec, key)
        try:
            record = parse(value)
        except RecordError as exc:
            raise RecordError(
                f"video {video!r} of {self.path}: {exc.found}", remedy=exc.remedy
            ) from exc
        wrong = record.header.misfit(spec, self.name)
        if record.header.video_id != video:
            wrong = f"video {record.header.video_id!r}, not {video!r}"
        if wrong:
            raise RecordError(
                f"the record of {video!r} in {self.path} is of another: {wrong}; the store is damaged",
                remedy="run featstore check --repair, and ingest the video again",
            )
        return record

    def _not_found(
        self, snapshot: Snapshot, video: str, spec: FeatureSpec, key: bytes
    ) -> FeatureNotFound:
        failure = read_failure(snapshot, key)
        place = f"dataset {self.name!r}, feature set {spec.digest[:8]}"
        if failure is None:
            return FeatureNotFound(
                f"video {video!r} is not stored in {place}; list what is: featstore ls --cache-dir {self.path.parent} "
                f"--dataset {self.name}"
            )
        what, remedy = "failed to be ingested into", "mend the file and ingest again"
        if failure.damaged:
            what, remedy = (
                "was found damaged and removed from",
                "ingest again, which makes it again",
            )
        return FeatureNotFound(
            f"video {video!r} {what} {place} ({plain_line(failure.reason)}); {remedy}"
        )
