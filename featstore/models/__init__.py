"""Cached models answer from stored features; each family has its own folder, the files here serve any family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.system.forks import lazy_names

if TYPE_CHECKING:
    from featstore.models.longva.model import CachedLongVA
    from featstore.models.statistics import CacheStatistics
    from featstore.models.transformers_video.model import CachedVideoModel

__all__ = ["CacheStatistics", "CachedLongVA", "CachedVideoModel"]

_HOMES = {
    "CacheStatistics": "featstore.models.statistics",
    "CachedLongVA": "featstore.models.longva.model",
    "CachedVideoModel": "featstore.models.transformers_video.model",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
