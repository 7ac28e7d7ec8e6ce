"""Encoders: what makes features of frames, a folder a family."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.encoders.base import Encoder, GpuEncoder
    from featstore.encoders.registry import EncoderRecipe, get_encoder
    from featstore.encoders.toy import ToyEncoder

__all__ = ["Encoder", "EncoderRecipe", "GpuEncoder", "ToyEncoder", "get_encoder"]

_HOMES = {
    "Encoder": "featstore.encoders.base",
    "EncoderRecipe": "featstore.encoders.registry",
    "GpuEncoder": "featstore.encoders.base",
    "ToyEncoder": "featstore.encoders.toy",
    "get_encoder": "featstore.encoders.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
