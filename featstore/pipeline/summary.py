"""What an ingest tells of itself: on the way, and at the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.spec import FeatureSpec
    from featstore.store.catalog import Failure

STAGES = ("decode", "encode", "write")


@dataclass
class Progress:
    """How far an ingest is; handed to `on_progress` whenever it changed."""

    total: int
    skipped: int
    done: int = 0
    failed: int = 0
    record_bytes: int = 0
    seconds: float = 0.0


@dataclass
class IngestSummary:
    """What an ingest came to.

    stored: videos committed now. skipped: stored before. failures: those of now. failed_before: those of earlier runs,
    left alone. record_bytes: committed now. needed_bytes: what the plan was reckoned to need. shared_bytes: memory for
    frames and records in flight. interrupted: stopped by request. full: why it stopped for lack of room.
    workers, encoders: processes that decoded, devices that encoded. seconds: all in all; working_seconds: since the
    first video was given out. decoders: videos read by each. busy: seconds of work by stage, summed over its workers.
    """

    dataset: str
    spec: FeatureSpec
    planned: int
    skipped: int
    replaced: int
    failed_before: list[Failure]
    needed_bytes: int
    workers: int
    encoders: int = 1
    stored: int = 0
    failures: list[Failure] = field(default_factory=list)
    record_bytes: int = 0
    shared_bytes: int = 0
    seconds: float = 0.0
    working_seconds: float = 0.0
    interrupted: bool = False
    full: str = ""
    decoders: dict[str, int] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def shares(self) -> dict[str, float]:
        """Return by stage the share of its time that it worked: 1.0 where all its workers always did."""
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        found = {"spec": self.spec.digest, "shares": self.shares, "bottleneck": self.bottleneck}
        return asdict(self) | found
