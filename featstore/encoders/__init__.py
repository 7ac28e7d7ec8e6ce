"""Encoders make features of frames; each family has its own file or folder.

`longva.checkpoint`, `longva.clip` and `longva.shape` read configs without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.system.forks import lazy_names

if TYPE_CHECKING:
    from featstore.encoders.base import Encoder, GpuEncoder
    from featstore.encoders.longva.encoder import LongVAEncoder
    from featstore.encoders.registry import EncoderRecipe, get_encoder
    from featstore.encoders.toy import ToyEncoder
    from featstore.encoders.transformers_vision.encoder import TransformersEncoder

__all__ = [
    "Encoder",
    "EncoderRecipe",
    "GpuEncoder",
    "LongVAEncoder",
    "ToyEncoder",
    "TransformersEncoder",
    "get_encoder",
]

_HOMES = {
    "Encoder": "featstore.encoders.base",
    "EncoderRecipe": "featstore.encoders.registry",
    "GpuEncoder": "featstore.encoders.base",
    "LongVAEncoder": "featstore.encoders.longva.encoder",
    "ToyEncoder": "featstore.encoders.toy",
    "TransformersEncoder": "featstore.encoders.transformers_vision.encoder",
    "get_encoder": "featstore.encoders.registry",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
