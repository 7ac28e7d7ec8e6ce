"""LongVA: its vision side, whose results are stored, and the model that answers from them.

`checkpoint`, `clip` and `shape` read configs without torch; the others bring it in.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.longva.cached import CachedLongVA
    from featstore.longva.statistics import CacheStatistics
    from featstore.longva.vision import LongVAEncoder

__all__ = ["CacheStatistics", "CachedLongVA", "LongVAEncoder"]

_HOMES = {
    "CacheStatistics": "featstore.longva.statistics",
    "CachedLongVA": "featstore.longva.cached",
    "LongVAEncoder": "featstore.longva.vision",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
