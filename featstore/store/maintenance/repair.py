"""Mend what a check finds: what can be told from the records is, the rest becomes work for the next ingest.

A record is verified by its checksums and its key, so a row that is missing, damaged or another's is written again from
its record. A record that is damaged is removed with its row, and the video put among the failures with a reason that
begins "damaged: ": the next ingest makes it again without being told to retry failed videos.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featstore.errors import FeatstoreError, RecordError, StoreDamaged, how_many
from featstore.records.record import has_whole_prefix, parse
from featstore.store.catalog import open_dataset, read_manifest
from featstore.store.changes import CatalogTransaction, is_manifest_lost, rebuild_manifest
from featstore.store.engine.environment import open_snapshot
from featstore.store.engine.locks import ingest_lock
from featstore.store.engine.pages import refuse_damaged_pages
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.maintenance.check import (
    CheckReport,
    Problem,
    check_sets,
    find_problems,
    whole_entry,
)
from featstore.store.manifest import MANIFEST_KEY
from featstore.store.paths import dataset_path, refuse_shards
from featstore.store.rows import (
    DAMAGED,
    DIGEST_DIGITS,
    Entry,
    Failure,
    FeatureSet,
    build_row,
    pack_row,
    unpack_entry,
    unpack_failure,
    unpack_row,
    video_key,
)
from featstore.store.writer import MAX_REASON_CHARACTERS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from featstore.records.header import Header
    from featstore.spec import FeatureSpec
    from featstore.store.engine.snapshot import Snapshot

COMMIT_KEYS = 256


@dataclass
class RepairReport(CheckReport):
    """What a repair saw and did; its `problems` are those that are left.

    Attributes:
        repaired: The problems that are gone, with what was done about each.
        again: How many videos the next ingest makes again.
    """

    repaired: list[str] = field(default_factory=list)
    again: int = 0


def repair_dataset(
    cache_dir: str | os.PathLike[str],
    dataset: str,
    on_video: Callable[[Entry], None] = lambda entry: None,
) -> RepairReport:
    """Check `dataset` as `check_dataset` does and mend what it finds; afterwards a check finds what `problems` says.

    A feature set whose row is damaged takes its videos with it; if it was the default one, the oldest that is left
    becomes it. The manifest's counts are made again if they are wrong, or if anything was mended.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.
        on_video: Called after each video without a problem, for progress.

    Returns:
        What was seen and done.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreLocked: An ingest is at work.
        StoreError: The pages of the file are damaged, so that it may not be written; or it is sealed.
    """
    path = dataset_path(cache_dir, dataset)
    open_dataset(cache_dir, dataset)  # makes no lock file if there is no dataset
    refuse_shards(path)
    report = RepairReport(dataset)
    with ingest_lock(path):
        with WriteTransaction(path):
            refuse_damaged_pages(path)
        snapshot = open_snapshot(path)
        found = list(find_problems(snapshot, report, on_video))
        del snapshot
        report.problems = [problem.sentence for problem in found if not problem.table]
        mendable = [problem for problem in found if problem.table]
        miscounted = [problem for problem in mendable if problem.table == "manifest"]
        rows = [problem for problem in mendable if problem.table != "manifest"]
        rebuilt = bool(miscounted) and _rebuild_manifest(path, dataset)
        for start in range(0, len(rows), COMMIT_KEYS):
            _mend(path, rows[start : start + COMMIT_KEYS], report)
        if report.repaired or miscounted:
            with CatalogTransaction(path, dataset) as txn:
                txn.recount()
            default = f" from the rows; {_say_default(path)}" if rebuilt else ""
            report.repaired += [
                f"{problem.found}; written again{default}" for problem in miscounted
            ]
    return report


def _rebuild_manifest(path: Path, dataset: str) -> bool:
    """Write a manifest that is damaged or missing again; return whether it was."""
    snapshot = open_snapshot(path)
    if not is_manifest_lost(snapshot):
        return False
    with WriteTransaction(path) as txn:
        manifest = rebuild_manifest(txn.environment.snapshot(), dataset)
        txn.put("manifest", MANIFEST_KEY, pack_row(manifest))
    return True


def _say_default(path: Path) -> str:
    manifest = read_manifest(open_snapshot(path))
    if len(manifest.sets) < 2:
        return (
            "the only feature set is the default one" if manifest.sets else "it has no feature set"
        )
    return (
        f"the oldest feature set, {manifest.default[:8]}, is now the default one, for no row tells which it was: "
        "featstore default makes it another"
    )


def _mend(path: Path, problems: list[Problem], report: RepairReport) -> None:
    with CatalogTransaction(path, report.dataset) as txn:
        # Nobody else commits now, so this is what the transaction changes.
        mending = _Mending(txn, report)
        for problem in problems:
            done = mending.mend(problem)
            if done is None:
                report.problems.append(
                    f"{problem.found}; left as it is, for it is whole: update featstore"
                )
            else:
                report.repaired.append(f"{problem.found}; {done}")


class _Mending:
    """A transaction that mends; each key is looked at again, for it may have been put again since it was found."""

    def __init__(self, txn: CatalogTransaction, report: RepairReport) -> None:
        self._txn = txn
        self._report = report
        self._snapshot: Snapshot = txn.environment.snapshot()
        self._dropped: set[bytes] = set()
        self._known: dict[str, FeatureSpec | None] = {}
        list(check_sets(self._snapshot, self._known))

    def mend(self, problem: Problem) -> str | None:
        """Mend it, and return what was done; None if nothing was, row or record being of a newer release."""
        if problem.table != "records":
            row = self._snapshot.read(problem.table, problem.key)
            if row is not None and _is_newer_row(problem.table, problem.key, row):
                return None
        if problem.table == "failures":
            self._txn.delete_failure(problem.key)
            return "removed"
        if problem.table == "specs":
            return self._drop_set(problem)
        if problem.key in self._dropped:
            return "removed with its feature set"
        try:
            entry = whole_entry(self._snapshot, problem.key, self._known, self._report.dataset)
        except FeatstoreError:
            if self._is_newer(problem.key):
                return None
            return self._drop_video(problem.key, problem.found)
        self._txn.put_entry(problem.key, entry)
        return "its row is written again from its record"

    def _is_newer(self, key: bytes) -> bool:
        value = self._snapshot.get("records", key)
        if value is None or not has_whole_prefix(value):
            return False
        try:
            parse(value)
        except RecordError:
            return True
        return False

    def _drop_set(self, problem: Problem) -> str:
        tables = ("catalog", "records")
        keys = {key for table in tables for key in self._snapshot.keys(table, problem.key)}
        for key in sorted(keys):
            self._drop_video(key, problem.found)
        self._txn.delete_set(problem.key)
        return f"removed with its {how_many(len(keys), 'video')}; ingest again"

    def _drop_video(self, key: bytes, reason: str) -> str:
        known = self._identity(key)
        self._dropped.add(key)
        self._txn.delete_video(key)
        if known is None:
            return "removed; whose key it had cannot be told"
        digest = key[:DIGEST_DIGITS].decode(errors="replace")
        failure = Failure(*known, digest, f"{DAMAGED}{reason}"[:MAX_REASON_CHARACTERS], time.time())
        self._txn.put_failure(key, failure)
        self._report.again += 1
        return "removed; the next ingest makes it again"

    def _identity(self, key: bytes) -> tuple[str, str] | None:
        """Return id and path of the video under `key`, as one of its rows or else its record has them."""
        for look in (self._row, self._failure, self._header):
            with contextlib.suppress(FeatstoreError):
                found = look(key)
                if found and video_key(found.spec, found.video_id) == key:
                    return found.video_id, found.video_path
        return None

    def _row(self, key: bytes) -> Entry | None:
        data = self._snapshot.read("catalog", key)
        return None if data is None else unpack_entry(key, data)

    def _failure(self, key: bytes) -> Failure | None:
        data = self._snapshot.read("failures", key)
        return None if data is None else unpack_failure(data)

    def _header(self, key: bytes) -> Header | None:
        value = self._snapshot.get("records", key)
        return None if value is None else parse(value).header


def _is_newer_row(table: str, key: bytes, data: bytes) -> bool:
    """Return whether a row is undamaged and unknown to this release: its checksum is right, its content is not."""
    try:
        plain = unpack_row(data)
    except StoreDamaged:
        return False
    try:
        if table == "catalog":
            unpack_entry(key, data)
        else:
            build_row({"specs": FeatureSet, "failures": Failure}[table], plain)
    except StoreDamaged:
        return True
    return False
