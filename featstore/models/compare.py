"""Are stored features still those the encoder gives? Decodes and encodes a sample of videos afresh and compares."""

from __future__ import annotations

import random
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from featstore.decoding.video_file import DECODER, Video
from featstore.errors import (
    FeatureNotFound,
    NotFinite,
    RecordError,
    StoreError,
    StoreMismatch,
    VideoError,
)
from featstore.models.lookup import serves
from featstore.pipeline.on_demand import LiveEncoder
from featstore.spec import FeatureSpec
from featstore.store.selection import describe_mismatch, fits
from featstore.torch import measure_error, to_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from featstore.encoders.base import Encoder
    from featstore.models.longva.model import CachedLongVA
    from featstore.records.quantization import QuantError
    from featstore.records.record import Features
    from featstore.store.catalog import Entry, FeatureSet
    from featstore.store.dataset import Dataset

NO_SCALE = torch.empty((0, 0))


@dataclass(frozen=True)
class Limits:
    """How far stored features may be from fresh ones.

    relative_l2, cosine: of each video. identical: share of greedy answers that must be the same, 0 to 1.
    The defaults leave int8 on heavy-tailed features some room; the stored error itself is in `featstore info`.
    """

    relative_l2: float = 0.05
    cosine: float = 0.998
    identical: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """One video: how far its stored features are from fresh ones, and whether the answers are the same."""

    video_id: str
    error: QuantError
    identical: bool | None = None


@dataclass
class CompareReport:
    """What a comparison saw. failures: why videos could not be compared, by id."""

    dataset: str
    spec: FeatureSpec
    limits: Limits
    rows: list[Comparison] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def identical(self) -> float | None:
        """Return the share of identical answers, None where none were generated."""
        answers = [row.identical for row in self.rows if row.identical is not None]
        return sum(answers) / len(answers) if answers else None

    @property
    def beyond(self) -> list[Comparison]:
        """Return the videos that are further off than the limits allow."""
        limits = self.limits
        return [
            row
            for row in self.rows
            if not (
                row.error.relative_l2 <= limits.relative_l2 and row.error.cosine >= limits.cosine
            )
        ]

    @property
    def passed(self) -> bool:
        """Return whether something was compared and all of it lies within the limits."""
        same = self.identical is None or self.identical >= self.limits.identical
        return bool(self.rows) and not self.beyond and same

    def summary(self) -> dict[str, Any]:
        """Return the figures over all videos."""
        errors = [row.error for row in self.rows]
        if not errors:
            return {"videos": 0}
        return {
            "videos": len(errors),
            "cosine_min": min(error.cosine for error in errors),
            "relative_l2_mean": statistics.fmean(error.relative_l2 for error in errors),
            "relative_l2_max": max(error.relative_l2 for error in errors),
            "max_abs": max(error.max_abs for error in errors),
            "identical": self.identical,
            "passed": self.passed,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "dataset": self.dataset,
            "spec": self.spec.digest,
            "limits": asdict(self.limits),
            "summary": self.summary(),
            "videos": [
                {"video_id": row.video_id, **row.error.to_dict(), "identical": row.identical}
                for row in self.rows
            ],
            "failures": self.failures,
        }


def compare(
    dataset: Dataset,
    encoder: Encoder,
    *,
    model: CachedLongVA | None = None,
    prompt: str = "Describe this video.",
    max_new_tokens: int = 64,
    samples: int = 100,
    seed: int = 0,
    nframe: int | None = None,
    spec: str | None = None,
    limits: Limits | None = None,
    decode_timeout: float = 600.0,
    on_row: Callable[[Comparison], None] = lambda row: None,
) -> CompareReport:
    """Encode `samples` stored videos of `dataset` afresh with `encoder` and compare; fewer where fewer are stored.

    model: answers `prompt` from stored and from fresh features, greedily; None for no answers. seed: of the sample.
    nframe, spec: which feature set, where several serve the encoder. A video whose file is gone, was replaced or cannot
    be decoded is a failure of the report, and so is one whose record is damaged or was removed meanwhile. Raises
    StoreMismatch where no feature set is the encoder's, or several are.
    """
    chosen = _choose(dataset, encoder, nframe, spec)
    report = CompareReport(dataset.name, chosen, limits or Limits())
    entries = sorted(dataset.entries(chosen), key=lambda entry: entry.video_id)
    random.Random(seed).shuffle(entries)
    live = LiveEncoder(encoder, timeout=decode_timeout)
    try:
        for entry in entries[:samples]:
            try:
                row = _compare_one(dataset, live, chosen, entry, model, prompt, max_new_tokens)
            except (VideoError, RecordError, FeatureNotFound, StoreError, NotFinite) as exc:
                report.failures[entry.video_id] = str(exc)
                continue
            report.rows.append(row)
            on_row(row)
    finally:
        live.close()
    return report


def _choose(
    dataset: Dataset, encoder: Encoder, nframe: int | None, spec: str | None
) -> FeatureSpec:
    fitting = [found for found in dataset.sets() if fits(found.spec, nframe, spec)]
    if not fitting:
        fitting = [dataset.select(nframe, spec)]  # says what there is to choose from
    serving: list[FeatureSet] = [
        found
        for found in fitting
        if serves(
            found.spec, FeatureSpec(encoder.identity, found.spec.sampling, DECODER, "fp32", "none")
        )
    ]
    if len(serving) == 1:
        return serving[0].spec
    if not serving:
        made = fitting[0].spec
        wanted = FeatureSpec(
            encoder.identity, made.sampling, DECODER, made.quantization, made.scale
        )
        raise StoreMismatch(describe_mismatch(fitting, dataset.path, wanted, encoder.origin))
    listed = "".join(f"\n  {found.spec.describe()}" for found in serving)
    raise StoreMismatch(
        f"{len(serving)} feature sets of dataset {dataset.name!r} are of this encoder; name one with --spec or "
        f"--nframe:{listed}"
    )


def _compare_one(
    dataset: Dataset,
    live: LiveEncoder,
    spec: FeatureSpec,
    entry: Entry,
    model: CachedLongVA | None,
    prompt: str,
    max_new_tokens: int,
) -> Comparison:
    stored = dataset.lookup(entry.video_id, spec=spec)
    encoded = live.encode(Video(entry.video_id, entry.video_path), spec.sampling)
    if encoded.source.xxh3_128 != entry.source.xxh3_128:
        raise VideoError(
            f"{entry.video_path} was replaced since it was ingested; ingest it again",
            entry.video_path,
        )
    fresh = encoded.features(torch.float32)
    error = measure_error(
        fresh, to_tensor(stored, device=fresh.device, dtype=torch.float32), NO_SCALE
    )
    if model is None:
        return Comparison(entry.video_id, error)
    return Comparison(
        entry.video_id, error, _same_answers(model, stored, fresh, prompt, max_new_tokens)
    )


def _same_answers(
    model: CachedLongVA, stored: Features, fresh: torch.Tensor, prompt: str, max_new_tokens: int
) -> bool:
    kept = to_tensor(stored, device=fresh.device, dtype=torch.float32)
    first, second = (
        model.answer_features(prompt, features, max_new_tokens=max_new_tokens)
        for features in (kept, fresh)
    )
    return first == second
