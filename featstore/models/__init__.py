"""LongVA: its vision side, whose results are stored, and the model that answers from them.

`checkpoint`, `clip` and `shape` read configs without torch; the others bring it in.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.encoders.longva.encoder import LongVAEncoder
    from featstore.models.longva.model import CachedLongVA
    from featstore.models.statistics import CacheStatistics

__all__ = ["CacheStatistics", "CachedLongVA", "LongVAEncoder"]

_HOMES = {
    "CacheStatistics": "featstore.models.statistics",
    "CachedLongVA": "featstore.models.longva.model",
    "LongVAEncoder": "featstore.encoders.longva.encoder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
