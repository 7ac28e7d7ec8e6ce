"""Encoders make features of frames; each family has its own file or folder.

`longva.checkpoint`, `longva.clip` and `longva.shape` read configs without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore.system.forks import import_attribute

if TYPE_CHECKING:
    from featstore.encoders.base import Encoder, GpuEncoder
    from featstore.encoders.longva.encoder import LongVAEncoder
    from featstore.encoders.registry import EncoderRecipe, get_encoder
    from featstore.encoders.toy import ToyEncoder

__all__ = ["Encoder", "EncoderRecipe", "GpuEncoder", "LongVAEncoder", "ToyEncoder", "get_encoder"]

_HOMES = {
    "Encoder": "featstore.encoders.base",
    "EncoderRecipe": "featstore.encoders.registry",
    "GpuEncoder": "featstore.encoders.base",
    "LongVAEncoder": "featstore.encoders.longva.encoder",
    "ToyEncoder": "featstore.encoders.toy",
    "get_encoder": "featstore.encoders.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_attribute(_HOMES[name], name)


def __dir__() -> list[str]:
    return __all__
