"""What each way of storing features costs and keeps: a sample, stored in every way in memory and read back.

Features are encoded once. Each storage makes the record of them that an ingest would store, and everything is measured
on what is read back from it.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from featstore import defaults
from featstore.errors import FeatstoreError, QuantizeError, RecordError
from featstore.fields import all_finite
from featstore.models.greedy_answer import GreedyAnswer
from featstore.models.study_record import make_record, read_record
from featstore.records.quantization import QuantError, refuse_non_finite
from featstore.records.storage import Storage
from featstore.torch import measure_error
from featstore.torch.upload.cudart import find_device, refuse_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from featstore.models.compare import AnswersFromFeatures

T = TypeVar("T")
_SCALES = ("tensor", "token", "channel", "channel_token")
STORAGES = (
    *(Storage("int8", scales, codec) for scales in _SCALES for codec in ("raw", "lz4", "zstd")),
    *(Storage(values, codec=c) for values in ("bf16", "fp16", "fp32") for c in ("raw", "planes")),
)
_PEER = Storage("int8", "channel")
_NUMPY_DTYPES = (np.float16, np.float32)
MAX_ROWS = 1 << 24
_REPEATS = 3  # the quickest counts: what else a machine does only adds to it


@dataclass(frozen=True)
class Losses:
    """What features lose by being stored.

    Attributes:
        error: how far those read back are from the encoder's.
        logit_kl: see `GreedyAnswer.compare`; None without a model.
        identical: whether the greedy answer stays the same; None without a model.
    """

    error: QuantError
    logit_kl: float | None = None
    identical: bool | None = None


@dataclass(frozen=True)
class StudyRow:
    """One video, stored in one way.

    Attributes:
        video_id: its id.
        storage: how it was stored.
        shape: (rows, width) of its features.
        record_bytes: bytes of the record.
        losses: what was lost.
        store_seconds: seconds to quantize and pack it.
        read_seconds: seconds from the record to a bf16 tensor, where the features are.
    """

    video_id: str
    storage: Storage
    shape: tuple[int, int]
    record_bytes: int
    losses: Losses
    store_seconds: float
    read_seconds: float

    def flat(self) -> dict[str, Any]:
        """Return plain values, one level of them."""
        return {
            "video_id": self.video_id,
            "storage": str(self.storage),
            "rows": self.shape[0],
            "width": self.shape[1],
            "record_bytes": self.record_bytes,
            **asdict(self.losses.error),
            "logit_kl": self.losses.logit_kl,
            "identical": self.losses.identical,
            "store_seconds": self.store_seconds,
            "read_seconds": self.read_seconds,
        }


@dataclass
class Study:
    """What was found so far.

    Attributes:
        features: what was stored, for people.
        max_error: the largest error of a video, the 99th percentile over its tokens, that does not count as too large.
        peer: the storage beside whose times those of the others are given.
        rows: a row for each video and storage.
        failures: video id -> why it could not be studied; also `<video id> as <storage>`.
    """

    features: str
    max_error: float = defaults.MAX_ERROR
    peer: str = str(_PEER)
    rows: list[StudyRow] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """Return a summary a storage, of the videos that it could store.

        Bytes and seconds are a video's on average, errors those of the worst video. `ratio` is bf16's bytes over the
        record's, `too_large` the number of videos beyond `max_error`, `store_x` and `read_x` are the median over videos
        of the time beside the peer's.
        """
        grouped: dict[str, list[StudyRow]] = {}
        for row in self.rows:
            grouped.setdefault(str(row.storage), []).append(row)
        peers = {row.video_id: row for row in grouped.get(self.peer, [])}
        return [
            {"storage": str(storage), "videos": len(rows)} | self._summary(rows, peers)
            for storage, rows in grouped.items()
        ]

    def _summary(self, rows: list[StudyRow], peers: Mapping[str, StudyRow]) -> dict[str, Any]:
        errors = [row.losses.error for row in rows]
        asked = [row.losses for row in rows if row.losses.logit_kl is not None]
        total = sum(row.record_bytes for row in rows)
        beside = [(row, peers[row.video_id]) for row in rows if row.video_id in peers]
        return {
            "record_bytes": round(total / len(rows)),
            "ratio": sum(2 * row.shape[0] * row.shape[1] for row in rows) / total,
            "relative_l2": max(error.relative_l2 for error in errors),
            "token_p99": max(error.token_p99 for error in errors),
            "token_max": max(error.token_max for error in errors),
            "cosine": min(error.cosine for error in errors),
            "too_large": sum(not error.token_p99 <= self.max_error for error in errors),
            "logit_kl": _mean(losses.logit_kl or 0.0 for losses in asked),
            "identical": sum(losses.identical is True for losses in asked) if asked else None,
            "store_seconds": _mean(row.store_seconds for row in rows),
            "read_seconds": _mean(row.read_seconds for row in rows),
            "store_x": _median(row.store_seconds / peer.store_seconds for row, peer in beside),
            "read_x": _median(row.read_seconds / peer.read_seconds for row, peer in beside),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "features": self.features,
            "max_error": self.max_error,
            "peer": self.peer,
            "table": [_in_words(row) for row in self.table()],
            "studied": [_in_words(row.flat()) for row in self.rows],
            "failed": [{"video_id": name, "reason": why} for name, why in self.failures.items()],
        }


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in the words of `--json`, in which `storage` is a map, and `identical` of one video."""
    words = {"storage": "stored_as"} | (
        {} if "video_id" in row else {"identical": "identical_answers"}
    )
    return all_finite({words.get(name, name): value for name, value in row.items()})


def run_study(
    study: Study,
    sources: Mapping[str, Callable[[], torch.Tensor]],
    *,
    storages: Sequence[Storage] = STORAGES,
    model: AnswersFromFeatures | None = None,
    prompt: str = defaults.COMPARE_PROMPT,
    max_new_tokens: int = defaults.COMPARE_MAX_NEW_TOKENS,
    on_video: Callable[[str], None] = lambda video_id: None,
) -> None:
    """Store the features of each video in every way, and add what is found to `study`.

    Args:
        study: gets the rows and failures of a video when it is done.
        sources: video id -> a function that returns its features (rows, width), fp16, bf16 or fp32 on any device.
        storages: the ways.
        model: answers `prompt` from the features of the encoder and from those read back; None for no answers.
        prompt: the question.
        max_new_tokens: maximum number of new tokens per answer.
        on_video: called with the id of each video that was studied.
    """
    for video_id, load in sources.items():
        try:
            features = load()
            answer = GreedyAnswer(model, prompt, max_new_tokens, features) if model else None
        except FeatstoreError as exc:
            study.failures[video_id] = str(exc)
            continue
        known: dict[Storage, Losses] = {}
        rows = []
        for storage in storages:
            try:
                rows.append(_study_one(video_id, features, storage, answer, known))
            except (QuantizeError, RecordError) as exc:
                study.failures[f"{video_id} as {storage}"] = exc.found
        study.rows += rows
        on_video(video_id)


def find_place(device: str) -> torch.device:
    """Return the device that `--device` names; FeatstoreError if it is not available."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = find_device(device)
    refuse_missing(place)
    return place


def read_features(path: Path, device: torch.device) -> torch.Tensor:
    """Return the features in a .npy file, (rows, width); axes before the last two are rows, too.

    Args:
        path: the file, float16 or float32.
        device: where they go.

    Raises:
        FeatstoreError: it cannot be read, or holds no features.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise FeatstoreError(f"{path} cannot be read as a .npy file: {exc}") from exc
    if not isinstance(found, np.ndarray):
        raise FeatstoreError(f"{path} is an archive; features are one array, saved with numpy.save")
    rows = math.prod(found.shape[:-1])
    if found.dtype not in _NUMPY_DTYPES or found.ndim < 2 or not found.size or rows > MAX_ROWS:
        raise FeatstoreError(
            f"{path} holds {found.dtype} of shape {found.shape}; features are float16 or float32 (rows, width), of at "
            f"most {MAX_ROWS} rows"
        )
    features = torch.from_numpy(np.array(found).reshape(rows, -1))
    try:
        refuse_non_finite(features.numel() - int(features.isfinite().sum()), features.numel())
    except QuantizeError as exc:
        raise FeatstoreError(f"{path}: {exc}") from exc
    return features.to(device)


def _study_one(
    video_id: str,
    features: torch.Tensor,
    storage: Storage,
    answer: GreedyAnswer | None,
    known: dict[Storage, Losses],
) -> StudyRow:
    """Return the row of a storage; `known` has the losses by what decides them, all but the codec."""
    record, store_seconds = _timed(lambda: make_record(video_id, features, storage))
    _, read_seconds = _timed(lambda: read_record(record, features.device, torch.bfloat16))
    values = replace(storage, codec="raw")
    if values not in known:
        back = read_record(record, features.device, torch.float32)
        error = measure_error(features, back, ())
        known[values] = Losses(error, *(answer.compare(back) if answer else ()))
    rows, width = features.shape
    return StudyRow(
        video_id, storage, (rows, width), len(record), known[values], store_seconds, read_seconds
    )


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what `work` returns, and the seconds of its quickest run; it must wait for its device."""
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return result, min(seconds)


def _mean(values: Iterable[float]) -> float | None:
    found = [*values]
    return statistics.fmean(found) if found else None


def _median(values: Iterable[float]) -> float | None:
    found = [*values]
    return statistics.median(found) if found else None
