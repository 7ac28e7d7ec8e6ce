"""What an ingest reports: its progress, and its summary at the end."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from featstore.errors import plain_line
from featstore.formats.facts import failure_facts
from featstore.records.budget import ErrorBudget, too_many
from featstore.store.rows import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from featstore.decoding.video_file import Video
    from featstore.records.quantization import QuantError
    from featstore.records.storage import Storage
    from featstore.spec import FeatureSpec

STAGES = ("decode", "encode", "write")
_LOG = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far an ingest is; given to `on_progress` whenever it changed.

    Attributes:
        total: videos to ingest.
        skipped: videos stored before.
        done: videos committed so far.
        failed: videos that failed so far.
        record_bytes: bytes committed so far.
        seconds: since the start.
    """

    total: int
    skipped: int
    done: int = 0
    failed: int = 0
    record_bytes: int = 0
    seconds: float = 0.0


@dataclass
class IngestSummary:
    """The result of an ingest.

    Attributes:
        dataset: its name.
        spec: the feature set.
        storage: how its features are stored.
        planned: videos to ingest.
        skipped: videos stored before.
        replaced: those planned that are stored from another file.
        restored: those planned that are stored in another way than `storage`.
        beyond_limit: videos that the limit leaves for later.
        failed_before: failures of earlier runs, which were not tried again.
        clashes: videos left out, for another file is stored under their ids.
        budget: how far stored values may be from the encoder's.
        needed_bytes: the most that the planned records take.
        workers: processes that decoded.
        encoders: devices that encoded.
        begun: its writer holds the dataset.
        stored: videos committed.
        failures: videos that failed.
        record_bytes: bytes committed.
        shared_bytes: memory for frames and records in flight.
        seconds: the whole ingest.
        working_seconds: since the first video was given out.
        interrupted: it was stopped by request.
        full: why it stopped for lack of room, else empty.
        missed: videos that missed the error budget and are stored as asked for all the same.
        lossless: videos that missed it and are stored losslessly.
        lossless_before: videos stored before that are stored losslessly, if the budget is the same.
        lossless_bytes: bytes that these take beyond what they take as asked for.
        over_budget: why it stopped since too many of the first videos missed it, else empty.
        decoders: number of videos read by each decoder.
        doubts: number of videos by why their frames may not be those asked for; without those that have no doubt.
        busy: seconds of work by stage, summed over its workers.
    """

    dataset: str
    spec: FeatureSpec
    storage: Storage
    planned: int
    skipped: int
    replaced: int
    restored: int
    failed_before: list[Failure]
    needed_bytes: int
    beyond_limit: int = 0
    clashes: list[Failure] = field(default_factory=list)
    budget: ErrorBudget = field(default_factory=ErrorBudget)
    workers: int = 1
    encoders: int = 1
    begun: bool = False
    stored: int = 0
    failures: list[Failure] = field(default_factory=list)
    record_bytes: int = 0
    shared_bytes: int = 0
    seconds: float = 0.0
    working_seconds: float = 0.0
    interrupted: bool = False
    full: str = ""
    missed: int = 0
    lossless: int = 0
    lossless_before: int = 0
    lossless_bytes: int = 0
    over_budget: str = ""
    decoders: dict[str, int] = field(default_factory=dict)
    doubts: dict[str, int] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def shares(self) -> dict[str, float]:
        """Return by stage the share of its time that it worked: 1.0 if all its workers always did."""
        if not self.working_seconds:
            return dict.fromkeys(STAGES, 0.0)
        workers = {"decode": self.workers, "encode": self.encoders, "write": 1}
        return {
            stage: self.busy[stage] / (workers[stage] * self.working_seconds) for stage in STAGES
        }

    @property
    def bottleneck(self) -> str:
        """Return the stage that worked the largest share of its time: what to have more of."""
        shares = self.shares
        return max(STAGES, key=lambda stage: shares[stage])

    def count(self, decoder: str, doubt: str) -> None:
        """Count a video that was decoded, by what, and why its frames may not be those asked for."""
        self.decoders[decoder] = self.decoders.get(decoder, 0) + 1
        if doubt:
            self.doubts[doubt] = self.doubts.get(doubt, 0) + 1

    @property
    def before(self) -> tuple[int, int]:
        """Return how many videos missed the budget before, and how many were stored."""
        return (self.lossless_before, self.skipped) if self.lossless_before else (0, 0)

    def count_commit(self, stored: tuple[tuple[str, int], ...], extra: Mapping[str, int]) -> None:
        """Count videos that were committed.

        Args:
            stored: (video id, record bytes) of each.
            extra: bytes that those would take as asked for that are stored losslessly instead, by video id.
        """
        self.stored += len(stored)
        self.record_bytes += sum(size for _, size in stored)
        more = [size - extra[video] for video, size in stored if video in extra]
        self.lossless += len(more)
        self.lossless_bytes += sum(more)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON, in the words of featstore.formats.facts."""
        plain = asdict(self)
        for name in ("spec", "budget", "begun", "failures", "restored"):
            del plain[name]
        for name, rows in (
            ("failed", self.failures),
            ("failed_before", self.failed_before),
            ("clashes", self.clashes),
        ):
            plain[name] = [failure_facts(self.dataset, row) for row in rows]
        return {
            "dataset": self.dataset,
            "feature_set": self.spec.digest,
            **plain,
            "stored_otherwise": self.restored,
            "max_error": self.budget.max_error,
            "on_max_error": self.budget.on_miss,
            "shares": self.shares,
            "bottleneck": self.bottleneck if self.stored else None,
        }


class Tally:
    """Counts in a summary what comes of the videos, and reports the progress."""

    def __init__(
        self, summary: IngestSummary, on_progress: Callable[[Progress], None] | None
    ) -> None:
        """Count in `summary`; `on_progress` is called after each commit and each failure."""
        self._summary = summary
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._encoded = 0
        self._lossless: dict[str, int] = {}  # what videos would take as asked for, by id

    def encoded(self, video_id: str, rows: int, storage: Storage, error: QuantError) -> None:
        """Count a video that was encoded; if too many of the first missed the error budget, the work is to end.

        Args:
            video_id: its id.
            rows: number of its features' rows.
            storage: how they are stored.
            error: how far they are from the encoder's.
        """
        summary = self._summary
        self._encoded += 1
        if storage == summary.storage:
            summary.missed += summary.budget.misses(error)
            return
        shape = rows, summary.spec.encoder.geometry.row_width
        nframe = summary.spec.sampling.nframe
        self._lossless[video_id] = summary.storage.record_bytes(shape, nframe)
        if not summary.over_budget:
            count = len(self._lossless)
            summary.over_budget = too_many(
                count, self._encoded, summary.budget, summary.storage, summary.before
            )

    def failed(self, video: Video, reason: str) -> Failure:
        """Count a video that cannot be ingested, and return its row."""
        digest = self._summary.spec.digest
        failure = Failure(video.video_id, video.path, digest, reason, time.time())
        self._summary.failures.append(failure)
        _LOG.debug("failed %s", plain_line(f"{video.video_id}: {reason}"))
        self._report()
        return failure

    def committed(self, stored: tuple[tuple[str, int], ...], busy: float) -> None:
        """Count a commit: (video id, record bytes) of what it stored, seconds of work it took."""
        self._summary.count_commit(stored, self._lossless)
        self._summary.busy["write"] += busy
        for video_id, size in stored:
            _LOG.debug("stored %s, %d bytes", plain_line(video_id), size)
        self._report()

    def _report(self) -> None:
        if self._on_progress is None:
            return
        summary = self._summary
        self._on_progress(
            Progress(
                total=summary.planned,
                skipped=summary.skipped,
                done=summary.stored,
                failed=len(summary.failures),
                record_bytes=summary.record_bytes,
                seconds=time.monotonic() - self._started,
            )
        )
