"""Are stored features still those the encoder gives? Decodes and encodes a sample of videos again and compares."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from featstore import defaults
from featstore.decoding.video_file import Video, identity_of
from featstore.encoders.base import checkpoint_options
from featstore.errors import (
    FeatureNotFound,
    NotFinite,
    RecordError,
    StoreError,
    StoreMismatch,
    VideoError,
)
from featstore.fields import all_finite, to_plain
from featstore.models.lookup import refusal, serves
from featstore.models.source_options import DECODERS_OF_SETS
from featstore.pipeline.on_demand import OnDemandEncoder
from featstore.spec import FeatureSpec
from featstore.store.selection import fits
from featstore.torch import measure_error, to_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from featstore.encoders.base import Encoder
    from featstore.records.quantization import QuantError
    from featstore.store.dataset import Dataset
    from featstore.store.rows import Entry, FeatureSet


class AnswersFromFeatures(Protocol):
    """A model that can be asked about features that are in no store."""

    def answer_features(self, prompt: str, features: torch.Tensor, **options: Any) -> list[int]:
        """Return the token ids of the answer to `prompt` about a video whose features are (rows, width)."""
        ...


@dataclass(frozen=True)
class Limits:
    """How far stored features may be from fresh ones.

    The defaults leave int8 on heavy-tailed features some room; the stored error itself is in `featstore info`.

    Attributes:
        relative_l2: largest relative L2 error of a video.
        cosine: smallest cosine of a video.
        identical: smallest share of greedy answers that must be the same, 0 to 1.
    """

    relative_l2: float = defaults.MAX_RELATIVE_L2
    cosine: float = defaults.MIN_COSINE
    identical: float = defaults.MIN_IDENTICAL


@dataclass(frozen=True)
class Comparison:
    """One video.

    Attributes:
        video_id: its id.
        error: how far its stored features are from fresh ones.
        identical: whether the answers are the same; None if none were generated.
    """

    video_id: str
    error: QuantError
    identical: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**vars(self), "error": all_finite(to_plain(self.error))}


@dataclass
class CompareReport:
    """The result of a comparison.

    Attributes:
        dataset: the dataset's name.
        spec: the feature set that was compared.
        limits: what is allowed.
        dtype: what the fresh features were computed in; the stored ones, as `spec` says.
        rows: the videos that were compared.
        failures: video id -> why it could not be compared.
    """

    dataset: str
    spec: FeatureSpec
    limits: Limits
    dtype: str
    rows: list[Comparison] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def identical(self) -> float | None:
        """Return the share of identical answers, None if none were generated."""
        answers = [row.identical for row in self.rows if row.identical is not None]
        return sum(answers) / len(answers) if answers else None

    @property
    def beyond(self) -> list[Comparison]:
        """Return the videos that are further off than the limits allow."""
        most, least = self.limits.relative_l2, self.limits.cosine
        errors = ((row, row.error) for row in self.rows)
        return [row for row, e in errors if not (e.relative_l2 <= most and e.cosine >= least)]

    @property
    def passed(self) -> bool:
        """Return whether something was compared and all of it is within the limits."""
        same = self.identical is None or self.identical >= self.limits.identical
        return bool(self.rows) and not self.beyond and same

    def summary(self) -> dict[str, Any]:
        """Return the figures over all videos."""
        errors = [row.error for row in self.rows]
        verdict = {"videos": len(errors), "identical": self.identical, "passed": self.passed}
        if not errors:
            return verdict
        largest = ("relative_l2", "max_abs", "token_p99", "token_max")
        l2, max_abs, p99, token_max = (max(getattr(e, name) for e in errors) for name in largest)
        return verdict | {
            "cosine_min": min(error.cosine for error in errors),
            "relative_l2_mean": statistics.fmean(error.relative_l2 for error in errors),
            "relative_l2_max": l2,
            "max_abs": max_abs,
            "token_p99_max": p99,
            "token_max": token_max,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        found = self.summary()
        videos, passed, identical = (found.pop(n) for n in ("videos", "passed", "identical"))
        words = ("max_relative_l2", "min_cosine", "min_identical")
        return {
            "dataset": self.dataset,
            "feature_set": self.spec.digest,
            "dtype": self.dtype,
            "limits": dict(zip(words, vars(self.limits).values(), strict=True)),
            "videos": videos,
            "passed": passed,
            "identical_share": identical,
            "errors": all_finite(found) or None,
            "compared": [row.to_dict() for row in self.rows],
            "failed": [{"video_id": name, "reason": why} for name, why in self.failures.items()],
        }


def compare(
    dataset: Dataset,
    encoder: Encoder,
    *,
    model: AnswersFromFeatures | None = None,
    prompt: str = defaults.COMPARE_PROMPT,
    max_new_tokens: int = defaults.COMPARE_MAX_NEW_TOKENS,
    samples: int = defaults.COMPARE_SAMPLES,
    seed: int = defaults.COMPARE_SEED,
    nframe: int | None = None,
    spec: str | None = None,
    decoder: str | None = None,
    limits: Limits | None = None,
    decode_timeout: float = defaults.DECODE_TIMEOUT,
    on_row: Callable[[Comparison], None] = lambda row: None,
) -> CompareReport:
    """Encode a sample of a dataset's videos again and compare with their stored features.

    A video whose file is gone, was replaced or cannot be decoded is a failure of the report, and so is one whose record
    is damaged or was removed in the meantime.

    Args:
        dataset: the dataset.
        encoder: makes the fresh features.
        model: answers `prompt` from stored and from fresh features, greedily; None for no answers.
        prompt: the question.
        max_new_tokens: maximum number of new tokens per answer.
        samples: number of videos, 1 or more; all if fewer are stored.
        seed: seed of the sample.
        nframe: number of frames of the feature set, to choose by it among those that are the encoder's; by default the
            dataset's default set if it is one of them, else the only one.
        spec: digest of the feature set or a prefix of it, likewise.
        decoder: `auto` or `exact`, likewise. The fresh frames are always those of the feature set's own decoder.
        limits: what is allowed; the defaults of `Limits` if None.
        decode_timeout: seconds that decoding a video may take.
        on_row: called after each video.

    Raises:
        StoreMismatch: no feature set is the encoder's, or several are.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be 1 or more")
    chosen = choose(dataset, encoder, nframe, spec, decoder)
    report = CompareReport(dataset.name, chosen, limits or Limits(), encoder.identity.dtype)
    entries = sorted(dataset.sets[chosen.digest].entries(), key=lambda entry: entry.video_id)
    random.Random(seed).shuffle(entries)
    on_demand = OnDemandEncoder(
        encoder, timeout=decode_timeout, decoder=DECODERS_OF_SETS[chosen.decoder]
    )
    try:
        for entry in entries[:samples]:
            try:
                row = _compare_one(dataset, on_demand, chosen, entry, model, prompt, max_new_tokens)
            except (VideoError, RecordError, FeatureNotFound, StoreError, NotFinite) as exc:
                report.failures[entry.video_id] = str(exc)
                continue
            report.rows.append(row)
            on_row(row)
    finally:
        on_demand.close()
    return report


def choose(
    dataset: Dataset,
    encoder: Encoder,
    nframe: int | None = None,
    spec: str | None = None,
    decoder: str | None = None,
) -> FeatureSpec:
    """Return the feature set that is compared with what the encoder gives; arguments and errors are `compare`'s."""
    fitting = fitting_sets(dataset, nframe, spec)
    serving = [
        found.spec for found in fitting if serves(found.spec, _wanted(encoder, found.spec, decoder))
    ]
    if not serving:
        wanted = _wanted(encoder, fitting[0].spec, decoder)
        raise StoreMismatch(refusal(fitting, dataset, wanted, checkpoint_options(encoder)))
    own = [found for found in serving if found.digest == dataset.feature_set.spec.digest]
    if own or len(serving) == 1:
        return (own or serving)[0]
    listed = "".join(f"\n  {found.describe()}" for found in serving)
    raise StoreMismatch(
        f"{len(serving)} feature sets of dataset {dataset.name!r} are of this encoder; name one with --spec, --nframe "
        f"or --decoder:{listed}"
    )


def fitting_sets(
    dataset: Dataset, nframe: int | None = None, spec: str | None = None
) -> list[FeatureSet]:
    """Return the feature sets that a choice leaves, before an encoder is known.

    Args:
        dataset: the dataset.
        nframe: number of frames of the feature set, if it matters.
        spec: digest of the feature set or a prefix of it, if it matters.

    Raises:
        StoreMismatch: there is none.
    """
    fitting = [found for found in dataset.sets.rows() if fits(found.spec, nframe, spec)]
    return fitting or [dataset.select(nframe, spec)]  # says what there is to choose from


def _wanted(encoder: Encoder, stored: FeatureSpec, decoder: str | None) -> FeatureSpec:
    """Return what the encoder makes in place of `stored`: of the same frames, unless `decoder` says otherwise."""
    identity = identity_of(decoder or DECODERS_OF_SETS.get(stored.decoder, defaults.DECODER))
    return FeatureSpec(encoder.identity, stored.sampling, identity, encoder.preprocessing)


def _compare_one(
    dataset: Dataset,
    on_demand: OnDemandEncoder,
    spec: FeatureSpec,
    entry: Entry,
    model: AnswersFromFeatures | None,
    prompt: str,
    max_new_tokens: int,
) -> Comparison:
    found = dataset.lookup(entry.video_id, spec=spec)
    encoded = on_demand.encode(Video(entry.video_id, entry.video_path), spec.sampling)
    if encoded.source.xxh3_128 != entry.source.xxh3_128:
        raise VideoError(
            f"{entry.video_path} was replaced since it was ingested; ingest it again",
            entry.video_path,
        )
    fresh = encoded.features(torch.float32)
    stored = to_tensor(found, device=fresh.device, dtype=torch.float32)
    error = measure_error(fresh, stored, ())
    if model is None:
        return Comparison(entry.video_id, error)
    answers = [
        model.answer_features(prompt, features, max_new_tokens=max_new_tokens)
        for features in (stored, fresh)
    ]
    return Comparison(entry.video_id, error, answers[0] == answers[1])
