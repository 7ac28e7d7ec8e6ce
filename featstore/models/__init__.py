"""Cached models answer from stored features; each family has its own folder, the files here serve any family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore.system.forks import import_attribute

if TYPE_CHECKING:
    from featstore.models.longva.model import CachedLongVA
    from featstore.models.statistics import CacheStatistics

__all__ = ["CacheStatistics", "CachedLongVA"]

_HOMES = {
    "CacheStatistics": "featstore.models.statistics",
    "CachedLongVA": "featstore.models.longva.model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_attribute(_HOMES[name], name)


def __dir__() -> list[str]:
    return __all__
