"""Walk everything a dataset holds and report what is wrong, in sentences."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

from featstore.errors import FeatstoreError, StoreDamaged, StoreError
from featstore.records.record import parse
from featstore.store.catalog import open_dataset, read_manifest
from featstore.store.changes import count_rows, is_manifest_lost, rebuild_manifest
from featstore.store.engine.pages import SALVAGE
from featstore.store.engine.settings import LARGE_RECORD_BYTES
from featstore.store.manifest import MANIFEST_KEY
from featstore.store.paths import is_sharded
from featstore.store.rows import (
    DIGEST_DIGITS,
    Entry,
    unpack_entry,
    unpack_failure,
    unpack_set,
    video_key,
)
from featstore.store.shards.places import GOOD_COPY

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from featstore.records.header import Header
    from featstore.spec import FeatureSpec
    from featstore.store.manifest import Manifest
    from featstore.store.shards.base import DatasetSnapshot

REPAIR = "run featstore check --repair"
MEND_SHARD = f"{GOOD_COPY}; or copy what can be read to another cache with featstore merge and ingest the rest there"
INGEST_AGAIN = f"{REPAIR}, then ingest it again"


@dataclass
class CheckReport:
    """What a check saw.

    Attributes:
        dataset: The dataset's name.
        videos: Finished videos of each feature set.
        record_bytes: Bytes of the records of those without a problem.
        failures: Videos that failed.
        problems: A sentence each; none means clean.
    """

    dataset: str
    videos: int = 0
    record_bytes: int = 0
    failures: int = 0
    problems: list[str] = field(default_factory=list)


def check_dataset(
    cache_dir: str | os.PathLike[str],
    dataset: str,
    on_video: Callable[[Entry], None] = lambda entry: None,
) -> CheckReport:
    """Read every row, record and checksum of `dataset` as of one snapshot.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.
        on_video: Called after each video without a problem, for progress.

    Returns:
        What was seen, problems included.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreError: It cannot be opened at all.
    """
    report = CheckReport(dataset)
    try:
        snapshot = open_dataset(cache_dir, dataset)
    except StoreDamaged as exc:
        report.problems.append(f"{exc.found}; nothing was checked; {SALVAGE}")
    else:
        for found in find_problems(snapshot, report, on_video):
            if is_sharded(snapshot.path) and found.remedy.startswith(REPAIR):
                found = replace(found, remedy=MEND_SHARD)
            report.problems.append(found.sentence)
    return report


@dataclass(frozen=True)
class Problem:
    """What is wrong, and with what.

    Attributes:
        found: What is wrong.
        table: The table of the row or record that it is wrong with; empty if none can be named.
        key: The key in that table.
        remedy: What to do about it; a repair does something else.
    """

    found: str
    table: str = ""
    key: bytes = b""
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """Return what is wrong and what to do about it."""
        return f"{self.found}; {self.remedy}" if self.remedy else self.found


def find_problems(
    snapshot: DatasetSnapshot, report: CheckReport, on_video: Callable[[Entry], None]
) -> Iterator[Problem]:
    """Yield what is wrong with a dataset.

    Args:
        snapshot: Of the dataset.
        report: Its counts grow by what is seen.
        on_video: Called after each video without a problem.
    """
    # Digests of the sets with a problem: once that is mended, they are counted again.
    odd: set[str] = set()
    known: dict[str, FeatureSpec | None] = {}
    manifest = None
    try:
        try:
            manifest = read_manifest(snapshot, report.dataset)
        except StoreError as exc:
            if not is_manifest_lost(snapshot):
                raise
            rebuild_manifest(snapshot, report.dataset)
            yield Problem(exc.found, "manifest", MANIFEST_KEY, exc.remedy)
        for problem in _check_tables(snapshot, known, report, on_video):
            odd.add(problem.key[:DIGEST_DIGITS].decode(errors="replace"))
            yield problem
        if manifest is not None:
            yield from _check_manifest(snapshot, manifest, set(known), odd)
        for key in snapshot.strays():
            yield Problem(
                f"the key {key!r:.100} belongs to no table, a bit of its name may have flipped; what it held is lost: "
                "featstore merge into another cache leaves it behind"
            )
    except StoreDamaged as exc:
        counted = "" if manifest is None else f" of {sum(c.videos for c in manifest.sets.values())}"
        yield Problem(
            f"{exc.found}; the check ended there, after {report.videos}{counted} records",
            remedy=SALVAGE if SALVAGE in exc.remedy else exc.remedy,
        )
    except FeatstoreError as exc:
        yield Problem(str(exc))


def whole_entry(
    snapshot: DatasetSnapshot, key: bytes, known: dict[str, FeatureSpec | None], dataset: str
) -> Entry:
    """Return the row that the record under `key` should have.

    Args:
        snapshot: Of the dataset.
        key: Of the record.
        known: The specs of the feature sets by digest, None for one whose row is damaged.
        dataset: The dataset's name.

    Raises:
        RecordError: The record is damaged.
        StoreError: There is no record, or not the one that belongs there.
    """
    value = snapshot.get("records", key)
    if value is None:
        raise StoreError("has a row but no record", remedy=INGEST_AGAIN)
    snapshot.prefault(value)  # faults read a cold disk at half its speed
    record = parse(value)
    header = record.header
    spec = known.get(header.spec)
    if spec is None and header.spec not in known:
        raise StoreError("its feature set has no row", remedy=INGEST_AGAIN)
    if spec is not None and video_key(header.spec, header.video_id) != key:
        raise StoreError(name_other(header, key), remedy=INGEST_AGAIN)
    misfit = header.misfit(spec, dataset) if spec is not None else ""
    if misfit:
        raise StoreError(f"its record is not of its feature set: {misfit}", remedy=INGEST_AGAIN)
    record.verify()
    return Entry.of(header, len(value))


def name_other(header: Header, key: bytes) -> str:
    """Return whose record it is that lies under the `key` of another."""
    there = key[:DIGEST_DIGITS].decode(errors="replace")
    if header.spec != there:
        return f"its record is of feature set {header.spec[:8]}, not of {there[:8]}"
    return f"its record is that of {header.video_id!r}, which has another key"


def check_sets(
    snapshot: DatasetSnapshot, known: dict[str, FeatureSpec | None]
) -> Iterator[Problem]:
    """Read the feature sets into `known` by digest, as None those whose row is damaged; yield what is wrong."""
    for key, data in snapshot.rows("specs"):
        digest = key.decode(errors="replace")
        known[digest] = None
        try:
            known[digest] = unpack_set(key, data).spec
        except FeatstoreError as exc:
            yield Problem(f"feature set {digest}: {exc.found}", "specs", key, exc.remedy)


def _check_tables(
    snapshot: DatasetSnapshot,
    known: dict[str, FeatureSpec | None],
    report: CheckReport,
    on_video: Callable[[Entry], None],
) -> Iterator[Problem]:
    yield from check_sets(snapshot, known)
    yield from _check_failures(snapshot, report)
    following = islice(snapshot.keys("catalog"), 1, None)
    for key, row in snapshot.rows("catalog"):
        # While the checksum of one is computed, the disk is at work on the next. What is wrong with that is said later.
        with contextlib.suppress(FeatstoreError):
            after = next(following, None)
            if after is not None and report.record_bytes > report.videos * LARGE_RECORD_BYTES:
                snapshot.read_ahead(after)
        yield from _check_video(snapshot, key, row, known, report, on_video)
    rows = snapshot.keys("catalog")
    row = next(rows, b"")
    for key in snapshot.keys("records"):
        while row and row < key:
            row = next(rows, b"")
        if row != key:
            yield Problem(
                f"record {_name(key)} has no row in the catalog",
                "records",
                key,
                f"{REPAIR}, which writes it again",
            )


def _check_manifest(
    snapshot: DatasetSnapshot, manifest: Manifest, known: set[str], odd: set[str]
) -> Iterator[Problem]:
    """Compare what the manifest says with the sets there are and their rows, of those that are not odd."""
    for digest in sorted(known - odd):
        stated, counts = manifest.sets.get(digest), count_rows(snapshot, digest)
        if stated != counts:
            yield _miscounted(f"counts {stated} in set {digest[:8]}, its rows come to {counts}")
    for digest in sorted(manifest.sets.keys() - known - odd):
        yield _miscounted(f"counts the set {digest[:8]}, which is not there")
    if manifest.default not in known | odd and (known or manifest.default):
        name = manifest.default[:8] or "none"
        yield _miscounted(f"says that the default set is {name}, which is not there")


def _miscounted(what: str) -> Problem:
    return Problem(
        f"the manifest {what}", "manifest", MANIFEST_KEY, f"{REPAIR}, which writes it again"
    )


def _check_failures(snapshot: DatasetSnapshot, report: CheckReport) -> Iterator[Problem]:
    for key, data in snapshot.rows("failures"):
        report.failures += 1
        try:
            unpack_failure(data)
        except FeatstoreError as exc:
            yield Problem(f"failure {_name(key)}: {exc.found}", "failures", key, exc.remedy)


def _check_video(
    snapshot: DatasetSnapshot,
    key: bytes,
    row: bytes,
    known: dict[str, FeatureSpec | None],
    report: CheckReport,
    on_video: Callable[[Entry], None],
) -> Iterator[Problem]:
    report.videos += 1
    name = f"row {_name(key)}"
    try:
        entry = unpack_entry(key, row)
        name = f"video {entry.video_id!r} of set {entry.spec[:8]}"
        if whole_entry(snapshot, key, known, report.dataset) != entry:
            raise StoreError(
                "row and record differ", remedy=f"{REPAIR}, which writes the row again"
            )
    except FeatstoreError as exc:
        yield Problem(f"{name}: {exc.found}", "catalog", key, exc.remedy)
        return
    report.record_bytes += entry.record_bytes
    on_video(entry)


def _name(key: bytes) -> str:
    return key.decode(errors="replace")
