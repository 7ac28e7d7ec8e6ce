"""How large a video's features will be, from configs only: no weight is read, torch is not loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.records.quantization import STORED_DTYPES, scale_shape

if TYPE_CHECKING:
    from pathlib import Path

STORAGES = (
    ("int8", "channel"),
    ("int8", "token"),
    ("int8", "tensor"),
    ("bf16", "none"),
    ("fp16", "none"),
    ("fp32", "none"),
)


@dataclass(frozen=True)
class FeatureShape:
    """The axes of one video's features, (F, T, D), and their size on disk.

    Attributes:
        frames: number of frames, F.
        tokens_per_frame: number of tokens a frame becomes, T.
        hidden_dim: width of a token, D.

    >>> FeatureShape(frames=128, tokens_per_frame=144, hidden_dim=3584).stored_bytes()["int8/tensor"]
    66060292
    """

    frames: int
    tokens_per_frame: int
    hidden_dim: int

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens the language model sees, F * T."""
        return self.frames * self.tokens_per_frame

    def stored_bytes(self) -> dict[str, int]:
        """Return storage -> bytes of uncompressed payload and scales; storages are `int8/channel`, `bf16` and so on."""
        values = self.num_tokens * self.hidden_dim
        sizes = {}
        for quantization, scale in STORAGES:
            name = quantization if scale == "none" else f"{quantization}/{scale}"
            factors = math.prod(scale_shape(scale, self.num_tokens, self.hidden_dim))
            sizes[name] = values * np.dtype(STORED_DTYPES[quantization]).itemsize + 4 * factors
        return sizes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, sizes included."""
        return {
            "frames": self.frames,
            "tokens_per_frame": self.tokens_per_frame,
            "num_tokens": self.num_tokens,
            "hidden_dim": self.hidden_dim,
            "stored_bytes": self.stored_bytes(),
        }


def feature_shape(
    checkpoint: str | Path, nframe: int, *, vision_tower: str | Path | None = None
) -> FeatureShape:
    """Return the shape of a video's features.

    Args:
        checkpoint: a folder, or a name on the Hub.
        nframe: number of frames.
        vision_tower: a CLIP folder or name to use in place of the one that config.json names.

    Raises:
        CheckpointError: as `read_checkpoint` raises it.
    """
    if nframe < 1:
        raise ValueError(f"nframe is {nframe}; it must be at least 1")
    found = read_checkpoint(checkpoint, vision_tower=vision_tower)
    found.clip.preprocessing()  # refuses what an ingest would refuse
    vision = found.vision
    return FeatureShape(nframe, vision.tokens_per_frame, vision.hidden_dim)
