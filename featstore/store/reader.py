"""Reading: a store is a Mapping of datasets, a dataset a Mapping of videos, a look-up copies nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from typing import TYPE_CHECKING

from featstore.errors import (
    DatasetNotFound,
    FeatureNotFound,
    RecordError,
    StoreMismatch,
    StoreNotFound,
    plain_line,
)
from featstore.records.features import Features
from featstore.records.record import Record, parse
from featstore.spec import FeatureSpec
from featstore.store.catalog import (
    Entry,
    Failure,
    FeatureSet,
    has_entry,
    read_entries,
    read_entry,
    read_failure,
    read_failures,
    read_manifest,
    read_sets,
    stored_spec,
    video_key,
)
from featstore.store.engine.environment import Keeper
from featstore.store.maintenance.lost import lost_datasets
from featstore.store.paths import absolute, dataset_names, dataset_path
from featstore.store.selection import describe_mismatch

if TYPE_CHECKING:
    import os

    from featstore.store.engine.snapshot import Snapshot

VERIFY = ("first", "always", "never")
MIN_DIGITS = 4  # of a digest that name a feature set
MAX_LEARNT = 4096  # records, some 2 KB each


class FeatureStore(Mapping[str, "Dataset"]):
    """A cache directory, read-only: `store["demo"]["water"]`.

    verify: when a payload's checksum is proved: at the first read of a record in this process (`first`), at each
    (`always`) or at none (`never`). Proving 66 MB takes about 13 ms and pages them in.
    """

    def __init__(self, cache_dir: str | os.PathLike[str], *, verify: str = "first") -> None:
        """Look whether the directory is there; raise StoreNotFound if not."""
        if verify not in VERIFY:
            raise ValueError(f"verify is {verify!r}; use one of {', '.join(VERIFY)}")
        dataset_names(cache_dir)
        self.cache_dir = absolute(cache_dir)
        self._verify = verify
        self._datasets: dict[str, Dataset] = {}

    def __getitem__(self, dataset: str) -> Dataset:
        """Return the dataset; raise DatasetNotFound, which lists those there are."""
        found = self._datasets.get(dataset)
        if found is None:  # two threads may both open it: they share what is open anyhow
            try:
                found = self._datasets[dataset] = Dataset(
                    self.cache_dir, dataset, verify=self._verify
                )
            except StoreNotFound as exc:
                lost = lost_datasets(self.cache_dir).get(dataset)
                if lost:
                    raise DatasetNotFound(lost) from exc
                there = ", ".join(self) or "none"
                raise DatasetNotFound(
                    f"there is no dataset {dataset!r} in {self.cache_dir}, the datasets there are: {there}; "
                    "make it with featstore ingest"
                ) from exc
        return found

    def __contains__(self, dataset: object) -> bool:
        """Return whether the dataset is there."""
        return dataset in dataset_names(self.cache_dir)

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the datasets."""
        return iter(dataset_names(self.cache_dir))

    def __len__(self) -> int:
        """Return the number of datasets."""
        return len(dataset_names(self.cache_dir))

    @property
    def specs(self) -> dict[str, list[FeatureSpec]]:
        """Return each dataset's feature sets."""
        return {name: [found.spec for found in self[name].sets()] for name in self}

    def close(self) -> None:
        """Let go of the environments; views already taken stay good, later look-ups open them again."""
        self._datasets.clear()

    def __enter__(self) -> FeatureStore:
        """Return the store itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()


class Dataset(Mapping[str, Features]):
    """One dataset of a store, a Mapping of video ids to Features; always as of the last commit."""

    def __init__(
        self, cache_dir: str | os.PathLike[str], name: str, *, verify: str = "first"
    ) -> None:
        """Open the dataset's environment; raise StoreNotFound or StoreMismatch where that cannot be."""
        self.name = name
        self.path = dataset_path(cache_dir, name)
        self._verify = verify
        self._keeper = Keeper(self.path)
        read_manifest(self.snapshot(), name)

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot of the dataset."""
        return self._keeper.open().snapshot()

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
        self,
        video: str,
        *,
        nframe: int | None = None,
        spec: FeatureSpec | str | None = None,
        snapshot: Snapshot | None = None,
    ) -> Features:
        """Return the features of `video` from the feature set that `nframe` and `spec` name.

        spec: a FeatureSpec, or four or more of the first digits of a feature set's digest. snapshot: the newest by
        default.
        The arrays are read-only views into the store's memory map and stay valid for as long as they are referenced.
        Raises FeatureNotFound if the video was never finished, StoreMismatch if no feature set fits or several do, and
        RecordError if the record is damaged.
        """
        snapshot = snapshot or self.snapshot()
        chosen = self._choose(snapshot, nframe, spec).spec
        key = video_key(chosen, self.name, video)
        record = self._known(snapshot, key) or self._read(snapshot, video, chosen, key)
        header = record.header
        verified = snapshot.environment.verified
        seen = (key, header.payload_xxh3)
        if self._verify == "always" or (self._verify == "first" and seen not in verified):
            wait(
                snapshot.read_in(record.payload)
            )  # faults alone read a cold disk at half its speed
            record.verify()
            verified.add(seen)
        return Features(header, record, snapshot.mapping)

    def _known(self, snapshot: Snapshot, key: bytes) -> Record | None:
        """Return the record if this process has read it since the last commit: nothing of it is looked at again."""
        known = snapshot.learnt.get(key)
        if known is None:
            return None
        header, scale, payload = known
        return Record(header, snapshot.view(scale), snapshot.view(payload))

    def _read(self, snapshot: Snapshot, video: str, spec: FeatureSpec, key: bytes) -> Record:
        """Return the record of `video`, its prefix proved, and note where its parts lie for the next look-up."""
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
        header = record.header
        wrong = header.misfit(spec, self.name)
        if header.video_id != video:
            wrong = f"video {header.video_id!r}, not {video!r}"
        if wrong:
            raise RecordError(
                f"the record of {video!r} in {self.path} is of another: {wrong}; the store is damaged",
                remedy="run featstore check --repair, and ingest the video again",
            )
        if len(snapshot.learnt) >= MAX_LEARNT:
            snapshot.learnt.clear()
        snapshot.learnt[key] = header, snapshot.place(record.scale), snapshot.place(record.payload)
        return record

    def read_ahead(
        self, video: str, *, nframe: int | None = None, spec: FeatureSpec | str | None = None
    ) -> None:
        """Have the system read the record of `video` into memory, without waiting; nothing where it is not stored."""
        snapshot = self.snapshot()
        key = video_key(self._choose(snapshot, nframe, spec).spec, self.name, video)
        value = snapshot.get("records", key)
        if value is not None:
            snapshot.read_in(value)

    def sets(self) -> list[FeatureSet]:
        """Return the feature sets, oldest first."""
        return list(read_sets(self.snapshot()).values())

    def select(
        self, nframe: int | None = None, spec: FeatureSpec | str | None = None
    ) -> FeatureSet:
        """Return the one feature set that fits; raise StoreMismatch if none does, or several."""
        return self._choose(self.snapshot(), nframe, spec)

    def entry(self, video: str, spec: FeatureSpec) -> Entry | None:
        """Return the row of a finished video, or None."""
        snapshot = self.snapshot()
        spec = stored_spec(snapshot, spec) or spec
        return read_entry(snapshot, video_key(spec, self.name, video))

    def entries(self, spec: FeatureSpec | None = None) -> Iterator[Entry]:
        """Yield the rows of the finished videos, of one feature set or of all, in no promised order."""
        return read_entries(self.snapshot(), spec.digest if spec else "")

    def failures(self, spec: FeatureSpec | None = None) -> Iterator[Failure]:
        """Yield the rows of the videos that failed, of one feature set or of all."""
        return read_failures(self.snapshot(), spec.digest if spec else "")

    def _choose(
        self, snapshot: Snapshot, nframe: int | None, spec: FeatureSpec | str | None
    ) -> FeatureSet:
        sets = list(read_sets(snapshot).values())
        fitting = [found for found in sets if fits(found.spec, nframe, spec)]
        if len(fitting) == 1:
            return fitting[0]
        if isinstance(spec, FeatureSpec) and sets:
            raise StoreMismatch(describe_mismatch(self, sets, spec))
        listed = "".join(
            f"\n  {found.spec.describe()}  from {plain_line(found.origin)}"
            for found in fitting or sets
        )
        if fitting:
            raise StoreMismatch(
                f"{len(fitting)} feature sets of dataset {self.name!r} fit; name one with spec= (on the command line "
                f"--spec), its first digits will do:{listed}"
            )
        if isinstance(spec, FeatureSpec):
            spec = spec.describe()
        wanted = ", ".join(
            f"{name}={value!r}" for name, value in (("nframe", nframe), ("spec", spec)) if value
        )
        remedy = "ask for one of them, or ingest with other options"
        if sets and isinstance(spec, str) and len(spec) < MIN_DIGITS:
            remedy = f"name one of them by at least {MIN_DIGITS} first digits"
        raise StoreMismatch(
            f"no feature set of dataset {self.name!r} fits {wanted or 'the request'}, it has {len(sets)}:"
            f"{listed or ' none'}\n{remedy}"
        )

    def _not_found(
        self, snapshot: Snapshot, video: str, spec: FeatureSpec, key: bytes
    ) -> FeatureNotFound:
        failure = read_failure(snapshot, key)
        where = f"dataset {self.name!r}, feature set {spec.digest[:8]}"
        if failure is not None:
            what, remedy = "failed to be ingested into", "mend the file and ingest again"
            if failure.damaged:
                what, remedy = (
                    "was found damaged and removed from",
                    "ingest again, which makes it anew",
                )
            return FeatureNotFound(
                f"video {video!r} {what} {where} ({plain_line(failure.reason)}); {remedy}"
            )
        return FeatureNotFound(
            f"video {video!r} is not stored in {where}; list what is: featstore ls --cache-dir "
            f"{self.path.parent} --dataset {self.name}"
        )


def fits(found: FeatureSpec, nframe: int | None, spec: FeatureSpec | str | None) -> bool:
    """Return whether a feature set is one of those that `nframe` and `spec` ask for, where they are given."""
    if nframe is not None and found.sampling.nframe != nframe:
        return False
    if isinstance(spec, FeatureSpec):
        return found.digest == spec.digest
    return spec is None or (len(spec) >= MIN_DIGITS and found.digest.startswith(spec))


_shared: dict[str, FeatureStore] = {}


def get(
    cache_dir: str | os.PathLike[str],
    dataset: str,
    video: str,
    *,
    nframe: int | None = None,
    spec: FeatureSpec | str | None = None,
) -> Features:
    """Return the stored features of `video`; the reader behind it is shared by the whole process.

    Arguments, lifetimes and errors as in `Dataset.lookup`; StoreNotFound where there is no such store, and
    DatasetNotFound, one of these, where it has no such dataset.
    """
    import os

    place = os.path.realpath(cache_dir)
    store = _shared.get(place)
    if store is None:
        store = _shared[place] = FeatureStore(place)
    return store[dataset].lookup(video, nframe=nframe, spec=spec)
