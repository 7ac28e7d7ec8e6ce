"""Which checkpoints see alike: whose features of a video are the same, and so are stored once for all of them.

Configs are read and vision weights are hashed; no model is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.checkpoints.config_fields import read_config
from featstore.checkpoints.files import open_files
from featstore.encoders.registry import get_encoder
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

# What a config.json calls the model -> its encoder.
ENCODER_OF = {
    "llava_qwen": "longva",
    "qwen2": "longva",
    "llava_onevision": "llava_onevision",
    "qwen2_5_vl": "qwen_vl",
    "qwen3_vl": "qwen_vl",
}


@dataclass(frozen=True)
class Sight:
    """How a checkpoint sees, beside others.

    Attributes:
        checkpoint: its folder, or its name on the Hub.
        encoder: the encoder of its family.
        weights: the digest of its vision weights, 64 hex digits.
        like: the first checkpoint with these weights, which may be itself.
        differing: what differs from that one all the same, as the names of fields; their features are kept apart.
    """

    checkpoint: str
    encoder: str
    weights: str
    like: str
    differing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "checkpoint": self.checkpoint,
            "encoder": self.encoder,
            "vision_weights": self.weights,
            "like": self.like,
            "differing": list(self.differing),
        }


def compare_sight(checkpoints: Iterable[str]) -> list[Sight]:
    """Return how each checkpoint sees.

    Raises:
        CheckpointError: one is of a family without an encoder, is incomplete, or needs what featstore does not do.
    """
    first: dict[str, tuple[str, FeatureSpec]] = {}
    found = []
    for checkpoint in checkpoints:
        spec = _spec(checkpoint)
        weights = spec.encoder.weights
        like, seen = first.setdefault(weights, (checkpoint, spec))
        differing = tuple(name for name, _, _ in seen.diff(spec))
        found.append(Sight(checkpoint, spec.encoder.family, weights, like, differing))
    return found


def _spec(checkpoint: str) -> FeatureSpec:
    """Return the spec of a checkpoint's features, with the same frames and dtype for all."""
    files = open_files(checkpoint, "lmms-lab/LongVA-7B")
    config = read_config(files)
    name = ENCODER_OF.get(str(config.get("model_type")))
    if name is None:
        raise config.wrong(
            "model_type",
            f"one of {', '.join(ENCODER_OF)}",
            "only checkpoints with an encoder for videos are compared",
        )
    encoder = get_encoder(name, checkpoint=checkpoint, device="cpu", dtype="fp32")
    return FeatureSpec(encoder.identity, Sampling(1), "none", encoder.preprocessing)
