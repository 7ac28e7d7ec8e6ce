"""featstore stores the vision features of videos, so that a video-language model computes them only once.

>>> import featstore
>>> featstore.__name__
'featstore'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.system.forks import lazy_names

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

# Modules of the public names, and folders; imported at first use, so that `import featstore` loads nothing heavy.
_HOMES = {
    "CheckpointError": "featstore.errors",
    "Dataset": "featstore.store.dataset",
    "DatasetNotFound": "featstore.errors",
    "EncoderIdentity": "featstore.spec",
    "FeatstoreError": "featstore.errors",
    "FeatureNotFound": "featstore.errors",
    "FeatureSpec": "featstore.spec",
    "FeatureStore": "featstore.store.reader",
    "Features": "featstore.records.features",
    "Geometry": "featstore.geometry",
    "Header": "featstore.records.header",
    "IngestOptions": "featstore.pipeline.options",
    "IngestSummary": "featstore.pipeline.summary",
    "ListingError": "featstore.errors",
    "MissingExtra": "featstore.errors",
    "NotFinite": "featstore.errors",
    "QuantizeError": "featstore.errors",
    "RecordError": "featstore.errors",
    "RowLayout": "featstore.geometry",
    "Sampling": "featstore.sampling",
    "Storage": "featstore.records.storage",
    "StoreDamaged": "featstore.errors",
    "StoreError": "featstore.errors",
    "StoreFull": "featstore.errors",
    "StoreLocked": "featstore.errors",
    "StoreMismatch": "featstore.errors",
    "StoreNotFound": "featstore.errors",
    "VideoError": "featstore.errors",
    "encoders": "featstore.encoders",
    "get": "featstore.store.reader",
    "ingest": "featstore.pipeline.ingest",
    "models": "featstore.models",
    "open": "featstore.store.reader:FeatureStore",
    "torch": "featstore.torch",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
