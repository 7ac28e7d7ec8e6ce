"""How large a video's features will be, from configs alone: no weight is read, torch is not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.records.storage import GRANULARITIES, STORED_DTYPES, Storage
from featstore.sampling import check_nframe

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class FeatureShape:
    """The shape of one video's features, (rows, width), and what they take to store.

    >>> FeatureShape(frames=128, tokens_per_frame=144, width=3584).stored_bytes()["int8/tensor"]
    66060292
    """

    frames: int
    tokens_per_frame: int
    width: int

    @property
    def rows(self) -> int:
        """Return the number of rows, one for each token."""
        return self.frames * self.tokens_per_frame

    def stored_bytes(self) -> dict[str, int]:
        """Return bytes of uncompressed payload and scales for each storage, as `int8/channel` or `bf16`."""
        shape = self.rows, self.width
        storages = [Storage("int8", granularity) for granularity in GRANULARITIES]
        storages += [Storage(values) for values in STORED_DTYPES if values != "int8"]
        return {
            str(storage): storage.payload_bytes(shape) + storage.scale_bytes(shape)
            for storage in storages
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, sizes included."""
        return {
            "frames": self.frames,
            "tokens_per_frame": self.tokens_per_frame,
            "rows": self.rows,
            "width": self.width,
            "by_storage": {
                storage: {"values_bytes": size} for storage, size in self.stored_bytes().items()
            },
        }


def feature_shape(
    checkpoint: str | Path, nframe: int, *, vision_tower: str | Path | None = None
) -> FeatureShape:
    """Return the shape of the features of `nframe` frames; CheckpointError as `read_checkpoint` raises it."""
    nframe = check_nframe(nframe)
    found = read_checkpoint(checkpoint, vision_tower=vision_tower)
    found.clip.preprocessing()  # what an ingest would refuse has no shape
    vision = found.vision
    return FeatureShape(nframe, vision.tokens_per_frame, vision.hidden_dim)
