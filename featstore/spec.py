"""What determines features: the spec and its digest, which names the feature set.

Two runs whose specs have the same digest make the same numbers, up to the float noise of batch sizes and devices;
features made under one spec are never served for another. How the numbers are stored is not part of it. Weights
identify a checkpoint, its name does not.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from featstore.errors import StoreMismatch, how_many, plain_line
from featstore.fields import build, to_plain
from featstore.geometry import Geometry
from featstore.preprocessing import Preprocessing, UnknownPreprocessing
from featstore.sampling import UNKNOWN, Sampling
from featstore.system.forks import cached_property

CHECKPOINT_FAMILY = "longva"  # of the encoders that `featstore ingest` builds, given a checkpoint
DTYPES = ("fp16", "bf16", "fp32")  # what encoders compute in
IMPORTED = "imported"  # the family of features that came from files of other programs
# What those do not say: a spec has `unknown` in these places, and as dtype the widest.
UNKNOWN_PARTS = ("weights", "dtype", "sampling rule", "decoder", "preprocessing")
_EXACT = "pyav-presentation"  # the decoder that takes the frames a player shows
Setting: TypeAlias = str | int | float | bool | None
_SETTINGS = (str, int, float, bool, type(None))
_ABSENT = object()


@dataclass(frozen=True)
class EncoderIdentity:
    """Everything about an encoder that determines its features.

    Args:
        family: the encoder's name in featstore.encoders, as `longva`.
        weights: sha256 of the values of the tensors that are used, 64 hex digits.
        dtype: what it computes in, one of DTYPES.
        geometry: the rows it makes of frames.
        settings: every other option that determines its features, by name; options that the family does not know are
            among them. Kept sorted; do not change it.

    Raises:
        ValueError: there is no such dtype, or a setting is of another type or has more than 64 bits.
    """

    family: str
    weights: str
    dtype: str
    geometry: Geometry
    settings: dict[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the dtype and the settings' types, and sort the settings."""
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; use one of {', '.join(DTYPES)}")
        for name, value in self.settings.items():
            if type(name) is not str:
                raise ValueError(f"a setting is called {name!r:.80}; its name must be a string")
            if type(value) is int and not -(1 << 63) <= value < 1 << 64:
                raise ValueError(f"setting {name!r} is {value!r:.80}, which has more than 64 bits")
            if type(value) not in _SETTINGS or (type(value) is float and not math.isfinite(value)):
                raise ValueError(
                    f"setting {name!r} is {value!r:.80}; it must be a string, a finite number, a bool or None"
                )
        object.__setattr__(self, "settings", dict(sorted(self.settings.items())))

    def __hash__(self) -> int:
        """Return the hash of the weights: equal encoders have equal ones."""
        return hash(self.weights)


@dataclass(frozen=True)
class FeatureSpec:
    """What determines a video's features.

    Args:
        encoder: the encoder's identity.
        sampling: which frames it sees.
        decoder: what turns a file into frames; decoders that were verified to be byte-identical share a name.
        preprocessing: what happens to a frame before the encoder.
    """

    encoder: EncoderIdentity
    sampling: Sampling
    decoder: str
    preprocessing: Preprocessing

    @classmethod
    def of_imported(
        cls, geometry: Geometry, nframe: int, settings: dict[str, Setting]
    ) -> FeatureSpec:
        """Return the spec of imported features, which no computed ones have.

        Args:
            geometry: the rows of a video.
            nframe: most frames of a video.
            settings: what tells them from other imported features, as `model_signature`.
        """
        encoder = EncoderIdentity(IMPORTED, UNKNOWN, "fp32", geometry, settings)
        return cls(encoder, Sampling(nframe, UNKNOWN), UNKNOWN, UnknownPreprocessing())

    @property
    def imported(self) -> bool:
        """Return whether the features were imported: what computed them is not known, see UNKNOWN_PARTS."""
        return self.encoder.family == IMPORTED

    @cached_property
    def digest(self) -> str:
        """Return 32 hex digits that name the feature set: the start of sha256 of the spec's canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def max_rows(self) -> int:
        """Return the most rows that a video's features have."""
        return self.encoder.geometry.max_rows(self.sampling.nframe)

    def diff(self, other: FeatureSpec) -> list[tuple[str, str, str]]:
        """Return `(field, value here, value in other)` for each field that differs; `none` if one has no such field."""
        mine, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        pairs = [
            (name, mine.get(name, _ABSENT), theirs.get(name, _ABSENT))
            for name in dict.fromkeys([*mine, *theirs])
        ]
        # 1, 1.0 and True are equal, and have digests of their own.
        return [
            (name, _shown(here), _shown(there))
            for name, here, there in pairs
            if repr(here) != repr(there)
        ]

    def describe(self) -> str:
        """Return a line for people."""
        if self.imported:
            named = ", ".join(f"{name} {value}" for name, value in self.encoder.settings.items())
            frames = how_many(self.sampling.nframe, "frame")
            return plain_line(
                f"{self.digest[:8]}  imported, {named:.80}  {frames}, which is unknown"
            )
        return plain_line(
            f"{self.digest[:8]}  {self.encoder.family} weights {self.encoder.weights[:8]}  "
            f"{self.sampling}  {self.encoder.dtype}{'  exact' * (self.decoder == _EXACT)}"
        )

    def ingest_options(self) -> str:
        """Return the options of `featstore ingest` that make such features, given the checkpoint."""
        return (
            f"--nframe {self.sampling.nframe} --sampling {self.sampling.rule} "
            f"--dtype {self.encoder.dtype}{' --decoder exact' * (self.decoder == _EXACT)}"
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
                remedy="update featstore, and run featstore check --repair",
            ) from exc


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _shown(value: object) -> str:
    if value is _ABSENT:
        return "none"
    return repr(value) if value == "none" else str(value)
