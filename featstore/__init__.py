"""featstore stores the vision features of videos, so that a video-language model computes them only once.

>>> import featstore
>>> featstore.__name__
'featstore'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from featstore.system.forks import import_attribute, no_fork

if TYPE_CHECKING:
    from featstore.errors import (
        CheckpointError,
        DatasetNotFound,
        FeatstoreError,
        FeatureNotFound,
        ListingError,
        MissingExtra,
        NotFinite,
        QuantizeError,
        RecordError,
        StoreDamaged,
        StoreError,
        StoreFull,
        StoreLocked,
        StoreMismatch,
        StoreNotFound,
        VideoError,
    )
    from featstore.geometry import Geometry, RowLayout
    from featstore.pipeline.ingest import ingest
    from featstore.pipeline.options import IngestOptions
    from featstore.pipeline.summary import IngestSummary
    from featstore.records.features import Features
    from featstore.records.header import Header
    from featstore.records.storage import Storage
    from featstore.sampling import Sampling
    from featstore.spec import EncoderIdentity, FeatureSpec
    from featstore.store.dataset import Dataset
    from featstore.store.reader import FeatureStore, get
    from featstore.store.reader import FeatureStore as open

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Dataset",
    "DatasetNotFound",
    "EncoderIdentity",
    "FeatstoreError",
    "FeatureNotFound",
    "FeatureSpec",
    "FeatureStore",
    "Features",
    "Geometry",
    "Header",
    "IngestOptions",
    "IngestSummary",
    "ListingError",
    "MissingExtra",
    "NotFinite",
    "QuantizeError",
    "RecordError",
    "RowLayout",
    "Sampling",
    "Storage",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
    "StoreLocked",
    "StoreMismatch",
    "StoreNotFound",
    "VideoError",
    "get",
    "ingest",
    "open",
]

# Modules of the public names, imported at first use, so that `import featstore` loads nothing heavy.
_HOMES = {
    "Dataset": "featstore.store.dataset",
    "EncoderIdentity": "featstore.spec",
    "FeatureSpec": "featstore.spec",
    "FeatureStore": "featstore.store.reader",
    "Features": "featstore.records.features",
    "Geometry": "featstore.geometry",
    "Header": "featstore.records.header",
    "IngestOptions": "featstore.pipeline.options",
    "IngestSummary": "featstore.pipeline.summary",
    "RowLayout": "featstore.geometry",
    "Sampling": "featstore.sampling",
    "Storage": "featstore.records.storage",
    "get": "featstore.store.reader",
    "ingest": "featstore.pipeline.ingest",
    "open": "featstore.store.reader",
}
_FOLDERS = ("encoders", "models", "torch")


def __getattr__(name: str) -> object:
    if name in _FOLDERS:
        with no_fork():
            return import_module(f"featstore.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'featstore' has no attribute {name!r}")
    home = _HOMES.get(name, "featstore.errors")
    value: object = import_attribute(home, "FeatureStore" if name == "open" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_FOLDERS, "__version__"]
