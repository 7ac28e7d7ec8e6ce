"""One dataset, read: a Mapping of videos to features, in which a lookup copies nothing."""

from __future__ import annotations

import weakref
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from functools import partial
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError, StoreNotFound, how_many, plain_line
from featstore.records.features import Features, dequantize_many
from featstore.store.catalog import (
    check_verify,
    find_verified,
    has_entry,
    read_entries,
    read_entry,
    read_failures,
    read_manifest,
    read_set,
    read_sets,
)
from featstore.store.default_set import choose_set
from featstore.store.lost import explain_absent
from featstore.store.manifest import Counts, check_name
from featstore.store.paths import dataset_path
from featstore.store.rows import video_key
from featstore.store.selection import check_digest, explain_missing, find_own, find_set
from featstore.store.shards.opening import CommitsKeeper

if TYPE_CHECKING:
    import os

    import numpy as np
    from numpy.typing import NDArray

    from featstore.records.record import Record
    from featstore.spec import FeatureSpec
    from featstore.store.rows import Entry, Failure, FeatureSet
    from featstore.store.shards.base import Commits, DatasetSnapshot


class Dataset(Mapping[str, Features]):
    """One feature set of a dataset, a Mapping of video ids to Features; always as of the last commit.

    `store["demo"]` is the dataset's default set, the first one with videos until `featstore default` names another;
    its `sets` are all of them.

    Attributes:
        name: The dataset's name.
        path: Its folder.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        name: str,
        *,
        verify: str = "first",
        digest: str = "",
    ) -> None:
        """Open the dataset.

        Args:
            cache_dir: The cache directory.
            name: The dataset's name.
            verify: When a payload's checksum is verified, see `FeatureStore`.
            digest: The feature set's; by default, and at each lookup, that of the default set.

        Raises:
            DatasetNotFound: There is no such dataset.
            StoreMismatch: Its file is not this dataset's, or of another format.
            ValueError: There is no such way to verify, or the digest is not a whole one.
        """
        check_verify(verify)
        check_digest(digest)
        self.name = name
        self.path = dataset_path(cache_dir, name)
        self._verify = verify
        self._digest = digest
        self._keeper = CommitsKeeper(self.path)
        self._checked: weakref.ref[Commits] | None = None  # whose manifest has this name
        self.snapshot()

    def snapshot(self) -> DatasetSnapshot:
        """Return the newest snapshot; raise DatasetNotFound if it is gone, StoreMismatch if another took its folder."""
        try:
            environment = self._keeper.open()
        except StoreNotFound as exc:  # also if it was removed since
            raise explain_absent(self.path.parent, self.name) from exc
        snapshot = environment.snapshot()
        if self._checked is None or self._checked() is not environment:
            check_name(read_manifest(snapshot), self.path, self.name)
            self._checked = weakref.ref(environment)
        return snapshot

    def __getitem__(self, video: str) -> Features:
        """Return the features of `video`; see `lookup`."""
        return self.lookup(video)

    def __contains__(self, video: object) -> bool:
        """Return whether the feature set has the video."""
        snapshot = self.snapshot()
        digest = self._set_of(snapshot)
        return isinstance(video, str) and has_entry(snapshot, video_key(digest, video))

    def __iter__(self) -> Iterator[str]:
        """Yield the ids of the stored videos."""
        return (entry.video_id for entry in self.entries())

    def items(self) -> ItemsView[str, Features]:
        """Return the videos and their features, all of one set: that of now, also if the default set changes."""
        return ItemsView(self.pinned())

    def values(self) -> ValuesView[Features]:
        """Return the features of the videos, all of one set as in `items`."""
        return ValuesView(self.pinned())

    def pinned(self) -> Dataset:
        """Return the feature set that this is now, whichever becomes the dataset's default set."""
        digest = self._set_of(self.snapshot())
        return Dataset(self.path.parent, self.name, verify=self._verify, digest=digest)

    def __len__(self) -> int:
        """Return the number of stored videos."""
        return self.counts.videos

    def __repr__(self) -> str:
        """Return name, number of videos and feature set; the error if they cannot be read."""
        try:
            row, count = self.feature_set, len(self)
        except FeatstoreError as exc:
            return f"<featstore.Dataset {self.name!r}: {plain_line(exc.found.split('; ')[0])}>"
        spec = row.spec
        videos = how_many(count, "video")
        return f"<featstore.Dataset {self.name!r}: {videos}, {spec.digest[:8]}, {spec.sampling}, {row.storage}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name: opened again where it is loaded."""
        opened = partial(Dataset, verify=self._verify, digest=self._digest)
        return opened, (str(self.path.parent), self.name)

    def lookup(
        self, video: str, *, nframe: int | None = None, spec: FeatureSpec | str | None = None
    ) -> Features:
        """Return the stored features of a video.

        The arrays are read-only views into the store's memory map and stay valid for as long as they are referenced.

        Args:
            video: The video's id.
            nframe: Frames per video of the feature set, if another than this one is meant.
            spec: The set's FeatureSpec, or four or more first digits of its digest, if another is meant.

        Returns:
            The features, (rows, width), in the values they are stored in.

        Raises:
            FeatureNotFound: The video was never finished in this feature set.
            StoreMismatch: No feature set fits, or several do.
            RecordError: The record is damaged.
        """
        snapshot = self.snapshot()
        return self.load(snapshot, video, self._set_of(snapshot, nframe, spec))

    def load(self, snapshot: DatasetSnapshot, video: str, digest: str) -> Features:
        """Return a video's features in the set `digest` as of a snapshot, whatever is committed afterwards."""
        [record] = self._find(snapshot, digest, [video])
        return Features(record.header, record, snapshot.memory(record.payload))

    def get_many(self, videos: Iterable[str]) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return the features of videos as of one commit, in their order: a new float32 array (videos, rows, width).

        Its bits are those of `self[video].numpy()`, and `torch.from_numpy` makes a tensor of it without a copy. If
        shapes differ, it is a list of arrays (rows, width). Much faster than lookups if records are small. Raises as
        `lookup` does; FeatureNotFound of the first that is missing, whatever else is there.
        """
        snapshot = self.snapshot()
        return dequantize_many(self._find(snapshot, self._set_of(snapshot), list(videos)))

    def read_ahead(
        self, video: str, *, nframe: int | None = None, spec: FeatureSpec | str | None = None
    ) -> None:
        """Have the system read a record that `lookup` would return, without waiting; nothing if it is not stored."""
        snapshot = self.snapshot()
        snapshot.read_ahead(video_key(self._set_of(snapshot, nframe, spec), video))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what the catalog says of each stored video, as flat dicts that `pandas.DataFrame` takes.

        >>> import featstore
        >>> [(row["video_id"], row["frames"]) for row in featstore.open("vision_cache")["demo"].rows()]
        [('water', 4)]
        """
        for entry in self.entries():
            row = entry._asdict()
            yield {"dataset": self.name, "feature_set": row.pop("spec"), **row}

    @property
    def sets(self) -> FeatureSets:
        """Return the dataset's feature sets, a Mapping of digests to Datasets."""
        return FeatureSets(self)

    @property
    def feature_set(self) -> FeatureSet:
        """Return the row of the feature set; raise StoreMismatch if there is none."""
        return self.select()

    @property
    def counts(self) -> Counts:
        """Return what the feature set has, as the manifest counts it."""
        snapshot = self.snapshot()
        return read_manifest(snapshot).sets.get(self._set_of(snapshot), Counts())

    def select(
        self, nframe: int | None = None, spec: FeatureSpec | str | None = None
    ) -> FeatureSet:
        """Return the row of the feature set that `lookup` means; raise StoreMismatch if none fits, or several do."""
        snapshot = self.snapshot()
        own = self._set_of(snapshot)
        if nframe is None and spec is None and own:
            row = read_set(snapshot, own)
            return find_own({} if row is None else {own: row}, self.path, own)
        return choose_set(snapshot, self.path, nframe, spec, own)

    def entry(self, video: str) -> Entry | None:
        """Return the row of a finished video, or None."""
        snapshot = self.snapshot()
        return read_entry(snapshot, video_key(self._set_of(snapshot), video))

    def entries(self) -> Iterator[Entry]:
        """Yield the rows of the finished videos, in no particular order."""
        snapshot = self.snapshot()
        digest = self._set_of(snapshot)
        return read_entries(snapshot, digest) if digest else iter(())

    def failures(self) -> Iterator[Failure]:
        """Yield the rows of the videos that failed."""
        snapshot = self.snapshot()
        digest = self._set_of(snapshot)
        return read_failures(snapshot, digest) if digest else iter(())

    def _find(self, snapshot: DatasetSnapshot, digest: str, videos: list[str]) -> list[Record]:
        found = find_verified(snapshot, self.name, digest, videos, self._verify)
        if len(found) < len(videos):
            raise explain_missing(snapshot, self.name, digest, videos[len(found)])
        return found

    def _set_of(
        self,
        snapshot: DatasetSnapshot,
        nframe: int | None = None,
        spec: FeatureSpec | str | None = None,
    ) -> str:
        """Return the digest of the feature set that is meant; empty if that is the default one and there is none."""
        own = self._digest or read_manifest(snapshot).default
        if nframe is None and spec is None:
            return own
        return choose_set(snapshot, self.path, nframe, spec, own).spec.digest


class FeatureSets(Mapping[str, Dataset]):
    """The feature sets of a dataset by digest, oldest first; a prefix of four or more digits finds one, too."""

    def __init__(self, dataset: Dataset) -> None:
        """Take a dataset, whichever of its sets that is."""
        self._dataset = dataset

    def __getitem__(self, digest: str) -> Dataset:
        """Return the set; raise FeatureNotFound, which lists those there are, if none fits or several do."""
        there = self._dataset
        sets = read_sets(there.snapshot(), str(digest).lower())
        found = find_set(sets, there.path, digest).spec.digest
        return Dataset(there.path.parent, there.name, verify=there._verify, digest=found)

    def __iter__(self) -> Iterator[str]:
        """Yield the digests, oldest first."""
        return iter(read_sets(self._dataset.snapshot()))

    def __len__(self) -> int:
        """Return the number of feature sets."""
        return len(read_sets(self._dataset.snapshot()))

    def __repr__(self) -> str:
        """Return the dataset's name and the sets' first digits; the error if they cannot be read."""
        try:
            names = ", ".join(digest[:8] for digest in self) or "none"
        except FeatstoreError as exc:
            names = plain_line(exc.found)
        return f"<featstore.FeatureSets of {self._dataset.name!r}: {names}>"

    def rows(self) -> list[FeatureSet]:
        """Return what the sets are, oldest first."""
        return list(read_sets(self._dataset.snapshot()).values())
