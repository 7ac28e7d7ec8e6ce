"""LongVA's vision side: the part of the model whose results are stored.

`checkpoint`, `clip` and `shape` read configs without torch; `weights`, `tower` and `vision` bring it in.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.longva.vision import LongVAEncoder

__all__ = ["LongVAEncoder"]

_HOMES = {"LongVAEncoder": "featstore.longva.vision"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
