"""What determines features: the spec, its digest, signature and record keys.

Two runs whose specs have the same digest make the same numbers, up to the float noise of batch sizes and devices;
features made under one spec are never served for another. Weights identify a checkpoint, its name does not.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from featstore.errors import StoreMismatch, plain_line
from featstore.fields import build, to_plain
from featstore.preprocessing import Preprocessing
from featstore.sampling import Sampling
from featstore.system.forks import cached_property

DTYPES = ("fp16", "bf16", "fp32")  # what encoders compute in
# How values can be stored, and numpy's name for it; bf16, which numpy lacks, as its raw bits.
STORED_DTYPES = {"int8": "<i1", "bf16": "<u2", "fp16": "<f2", "fp32": "<f4"}
GRANULARITIES = ("channel", "token", "tensor", "none")  # how many scales: `none` for floats
STORAGES = tuple(
    (values, granularity)
    for values in STORED_DTYPES
    for granularity in GRANULARITIES
    if (values == "int8") == (granularity != "none")
)


@dataclass(frozen=True)
class EncoderIdentity:
    """Everything about an encoder that determines its features.

    Args:
        name: the encoder's name in featstore.encoders, as `longva`.
        weights: sha256 of the values of the tensors that are used, 64 hex digits.
        vision_tower: the tower's name in the config; part of the model signature, not of the digest.
        select_layer: number of the hidden state that is taken.
        select_feature: `patch`, or `cls_patch` to keep the class token.
        projector: as `mlp2x_gelu`, or `none`.
        pooling: as `average:2` for averages of 2 x 2 tokens, or `none`.
        architecture: the tower's other numbers as one sorted line, as `heads=16 hidden=1024`.
        preprocessing: what happens to a frame before.
        dtype: what it computes in, one of DTYPES.
        tokens_per_frame: T of its features (F, T, D).
        hidden_dim: D of its features (F, T, D).
    """

    name: str
    weights: str
    vision_tower: str
    select_layer: int
    select_feature: str
    projector: str
    pooling: str
    architecture: str
    preprocessing: Preprocessing
    dtype: str
    tokens_per_frame: int
    hidden_dim: int

    @cached_property
    def model_signature(self) -> str:
        """Return `MD5(f"{vision_tower}:layer{select_layer}")[:8]`: a name for people, which does not identify."""
        return _md5(f"{self.vision_tower}:layer{self.select_layer}")[:8]


@dataclass(frozen=True)
class FeatureSpec:
    """What determines a video's stored features.

    Args:
        encoder: the encoder's identity.
        sampling: which frames it sees.
        decoder: what turns a file into frames; decoders that were verified to be byte-identical share a name.
        quantization: how values are stored, one of STORED_DTYPES.
        scale: granularity of the int8 scale, one of GRANULARITIES; `none` for floats.

    Raises:
        ValueError: values cannot be stored so.
    """

    encoder: EncoderIdentity
    sampling: Sampling
    decoder: str
    quantization: str
    scale: str

    def __post_init__(self) -> None:
        """Check that values can be stored so."""
        if self.quantization not in STORED_DTYPES:
            raise ValueError(
                f"quantization is {self.quantization!r}; use one of {', '.join(STORED_DTYPES)}"
            )
        if (self.quantization, self.scale) not in STORAGES:
            raise ValueError(
                f"scale is {self.scale!r} with quantization {self.quantization!r}; int8 takes channel, token or "
                "tensor, floats take none"
            )

    @cached_property
    def digest(self) -> str:
        """Return 32 hex digits that name the feature set: sha256 of canonical JSON, without the tower's name."""
        row = self.to_dict()
        del row["encoder"]["vision_tower"]
        text = json.dumps(row, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def record_key(self, dataset: str, video_id: str) -> str:
        """Return `MD5(f"{dataset}:{video_id}:nframe{nframe}:model{model_signature}")`, 32 hex digits.

        Args:
            dataset: name of the dataset.
            video_id: the video's id in it.
        """
        return _md5(
            f"{dataset}:{video_id}:nframe{self.sampling.nframe}:model{self.encoder.model_signature}"
        )

    def diff(self, other: FeatureSpec) -> list[tuple[str, str, str]]:
        """Return `(field, value here, value in other)` for each field that determines features and differs."""
        mine, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        return [
            (name, str(mine[name]), str(theirs[name]))
            for name in mine
            if mine[name] != theirs[name] and name != "encoder.vision_tower"
        ]

    def describe(self) -> str:
        """Return a line for people."""
        stored = self.quantization if self.scale == "none" else f"{self.quantization}/{self.scale}"
        return plain_line(
            f"{self.digest[:8]}  {self.encoder.name} weights {self.encoder.weights[:8]}  "
            f"{self.sampling}  {self.encoder.dtype} -> {stored}"
        )

    def ingest_options(self) -> str:
        """Return the options of `featstore ingest` that make such features, given the checkpoint."""
        rule = self.sampling.rule
        scale = "" if self.scale == "none" else f" --scale {self.scale}"
        return (
            f"--nframe {self.sampling.nframe} --sampling {rule} --dtype {self.encoder.dtype} "
            f"--quantize {self.quantization}{scale}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain values, as a feature set's row has it."""
        row: dict[str, Any] = to_plain(self)
        return row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> FeatureSpec:
        """Return the spec that `to_dict` described.

        Args:
            row: plain values, from msgpack or JSON.

        Raises:
            StoreMismatch: the values are not those of a spec of this version.
        """
        try:
            return build(cls, row)
        except ValueError as exc:
            raise StoreMismatch(
                f"a feature set's row cannot be read ({exc!s:.200}); it was written by another version of featstore "
                "or is damaged",
                remedy="run featstore check",
            ) from exc


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _md5(text: str) -> str:
    # Not for security. Any string has one, also one with the surrogates of an undecodable file name.
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
