"""One dataset's LMDB file a folder, read and written as videos: the names that the rest of the package may import.

Besides these, other folders import from the files of this one and of `maintenance`, never from `engine`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.system.forks import import_attribute

if TYPE_CHECKING:
    from featstore.store.dataset import Dataset
    from featstore.store.engine.environment import open_snapshot
    from featstore.store.engine.locks import ingest_lock, single_flight_lock
    from featstore.store.engine.snapshot import Snapshot
    from featstore.store.engine.waiting import report_waiting, report_waiting_to
    from featstore.store.reader import FeatureStore, get
    from featstore.store.writer import FeatureWriter

__all__ = [
    "Dataset",
    "FeatureStore",
    "FeatureWriter",
    "Snapshot",
    "get",
    "ingest_lock",
    "open_snapshot",
    "report_waiting",
    "report_waiting_to",
    "single_flight_lock",
]

# Where the names are; resolved when first used, so that importing this folder loads nothing heavy.
_HOMES = {
    "Dataset": "dataset",
    "FeatureStore": "reader",
    "FeatureWriter": "writer",
    "Snapshot": "engine.snapshot",
    "get": "reader",
    "ingest_lock": "engine.locks",
    "open_snapshot": "engine.environment",
    "report_waiting": "engine.waiting",
    "report_waiting_to": "engine.waiting",
    "single_flight_lock": "engine.locks",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = import_attribute(f"{__name__}.{_HOMES[name]}", name)
    globals()[name] = value
    return value
