"""One dataset's LMDB file a folder, read and written as videos: the names that the rest of the package may import.

Besides these, other folders import from the files of this one and of `maintenance`, never from `engine`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.system.forks import lazy_names

if TYPE_CHECKING:
    from featstore.store.dataset import Dataset
    from featstore.store.engine.locks import ingest_lock, single_flight_lock
    from featstore.store.engine.settings import MAP_BYTES
    from featstore.store.engine.transaction import refuse_sealed
    from featstore.store.engine.waiting import report_waiting, report_waiting_to
    from featstore.store.reader import FeatureStore, get
    from featstore.store.shards.base import DatasetSnapshot
    from featstore.store.shards.opening import open_snapshot
    from featstore.store.writer import FeatureWriter

__all__ = [
    "MAP_BYTES",
    "Dataset",
    "DatasetSnapshot",
    "FeatureStore",
    "FeatureWriter",
    "get",
    "ingest_lock",
    "open_snapshot",
    "refuse_sealed",
    "report_waiting",
    "report_waiting_to",
    "single_flight_lock",
]

# Imported when first used, so that importing this folder loads nothing heavy.
_HOMES = {
    "MAP_BYTES": "featstore.store.engine.settings",
    "Dataset": "featstore.store.dataset",
    "DatasetSnapshot": "featstore.store.shards.base",
    "FeatureStore": "featstore.store.reader",
    "FeatureWriter": "featstore.store.writer",
    "get": "featstore.store.reader",
    "ingest_lock": "featstore.store.engine.locks",
    "open_snapshot": "featstore.store.shards.opening",
    "refuse_sealed": "featstore.store.engine.transaction",
    "report_waiting": "featstore.store.engine.waiting",
    "report_waiting_to": "featstore.store.engine.waiting",
    "single_flight_lock": "featstore.store.engine.locks",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
