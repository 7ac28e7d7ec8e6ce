"""One look at one damaged store: a video is put, or not, and everything is read and checked; the worst seen counts."""

from __future__ import annotations

import enum
import os
import traceback
from typing import TYPE_CHECKING

import numpy as np
from drills.damage.stores import DATASET, Journal, toy_features, toy_spec

from featstore.errors import FeatstoreError, FeatureNotFound
from featstore.store.catalog import read_entries, read_failures, read_manifest
from featstore.store.maintenance.check import check_dataset
from featstore.store.paths import DATA_FILE
from featstore.store.reader import FeatureStore
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from drills.damage.stores import Put, Store

    from featstore.store.dataset import Dataset


class Verdict(enum.IntEnum):
    """What a probe saw, the worst last."""

    RIGHT = 0  # every value and every row as it was put
    MISSED = 1  # something is not found, all else is right; it would be encoded again
    REFUSED = 2  # an error of featstore's says what is wrong
    WRONG_ROW = 3  # a row of the catalog that nobody put, counts other than those of the rows
    WRONG = 4  # features that nobody put
    UNEXPECTED = 5  # an exception that is not featstore's
    HUNG = 6
    CRASHED = 7


PROMISED = (Verdict.RIGHT, Verdict.MISSED, Verdict.REFUSED)


def probe(
    folder: Path,
    store: Store,
    damaged: bytes,
    *,
    write: bool,
    say: Callable[[str], None],
) -> Verdict:
    """Look at `damaged` in place of the store's file, in `folder`, and return the worst that was seen.

    The file is a new one each time: featstore keeps one environment a file. write: put a video first. say: told of
    each unexpected exception.
    """
    file = folder / DATASET / DATA_FILE
    draft = file.with_name("draft")
    draft.write_bytes(damaged)
    os.replace(draft, file)
    journal = Journal(dict(store.journal.puts), dict(store.journal.failures))
    worst = Verdict.RIGHT
    for look in (_write, _read, _check) if write else (_read, _check):
        try:
            worst = max(worst, *look(folder, journal))
        except FeatstoreError:
            worst = max(worst, Verdict.REFUSED)
        except Exception:
            say(traceback.format_exc())
            worst = max(worst, Verdict.UNEXPECTED)
    return worst


def _read(folder: Path, journal: Journal) -> Iterator[Verdict]:
    """Get every video of each feature set, list every row, and read what is counted."""
    whole = FeatureStore(folder)[DATASET]
    yield Verdict.RIGHT
    yield _read_manifest(whole, journal)
    for put in journal.puts.values():
        yield _read_video(whole, put)
    sets = journal.counts()
    entries = {
        (entry.spec, entry.video_id): entry
        for digest in sets
        for entry in read_entries(whole.snapshot(), digest)
    }
    yield _compare(entries, {key: put.entry for key, put in journal.puts.items()})
    failures = {
        (row.spec, row.video_id): row
        for digest in sets
        for row in read_failures(whole.snapshot(), digest)
    }
    yield _compare(failures, journal.failures)


def _read_manifest(whole: Dataset, journal: Journal) -> Verdict:
    """Compare which set is the default one, and what is counted of each."""
    found = read_manifest(whole.snapshot())
    same = (found.default, found.sets) == (journal.default, journal.counts())
    return Verdict.RIGHT if same else Verdict.WRONG_ROW


def _read_video(whole: Dataset, put: Put) -> Verdict:
    try:
        features = whole.lookup(put.video_id, spec=put.spec)
        found = (features.data, *features.scales)
        same = all(map(np.array_equal, found, (put.stored, *put.scales)))
    except FeatureNotFound:
        return Verdict.MISSED
    except FeatstoreError:
        return Verdict.REFUSED
    return Verdict.RIGHT if same and features.header == put.header else Verdict.WRONG


def _compare(found: dict[tuple[str, str], object], put: dict[tuple[str, str], object]) -> Verdict:
    if any(put.get(key) != row for key, row in found.items()):
        return Verdict.WRONG_ROW
    return Verdict.RIGHT if len(found) == len(put) else Verdict.MISSED


def _check(folder: Path, journal: Journal) -> Iterator[Verdict]:
    """Run featstore check."""
    yield Verdict.REFUSED if check_dataset(folder, DATASET).problems else Verdict.RIGHT


def _write(folder: Path, journal: Journal) -> Iterator[Verdict]:
    """Put one video more; once acknowledged it is in the journal."""
    spec = toy_spec()
    with FeatureWriter(folder, DATASET, min_free=0) as writer:
        writer.add_set(spec, origin="toy")
        journal.put(writer, spec, "one more", toy_features(np.random.default_rng(0)))
    yield Verdict.RIGHT
