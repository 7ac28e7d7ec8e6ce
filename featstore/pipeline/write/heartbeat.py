"""What an ingest, or a run of shares, is at: a small file of each, written now and then, and what all say together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featstore.defaults import PACE_SECONDS, PACE_VIDEOS
from featstore.errors import StoreError, plain_line
from featstore.fields import build, to_plain
from featstore.store.paths import STATUS_FILE
from featstore.store.shards.places import STATUS_FOLDER, shard_file

if TYPE_CHECKING:
    from featstore.pipeline.summary import IngestSummary
    from featstore.store.shards.places import FilePlace

EVERY_SECONDS = 10.0
EVERY_SECONDS_ALONE = 2.0
_LOOK_SECONDS = 0.2  # whether it has begun
ALONE = "ingest"  # in place of the share, of an ingest without shares, into one file; what it says lies beside that
OLD_SECONDS = 60.0
MAX_FAILURES = 10_000
MAX_STATUS_BYTES = 64 << 20
RUNNING = ("starting", "running", "sealing")


@dataclass(frozen=True)
class FailedVideo:
    """A video that failed in a share, and why."""

    video_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class ShareStatus:
    """What a share said of itself last.

    Attributes:
        share: as `3-of-8`; ALONE without shares.
        state: `starting`, `running`, `sealing`; or `done`, `interrupted`, `full`, `stopped`, `error`.
        videos: how many it has to see to.
        stored: how many were stored before or are by now.
        new: those of them that are stored by this process.
        failed: how many failed, before or now.
        record_bytes: bytes of records of those stored by this process.
        started: when the process began, seconds since 1970.
        time: when it said so.
        host: its machine.
        pid: its process.
        paced: videos that this process saw to since one was stored first, and in how many seconds.
        failures: of this process, the first ones.
    """

    share: str
    state: str
    videos: int
    stored: int = 0
    new: int = 0
    failed: int = 0
    record_bytes: int = 0
    started: float = 0.0
    time: float = 0.0
    host: str = ""
    pid: int = 0
    paced: tuple[int, float] = (0, 0.0)
    failures: list[FailedVideo] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Return videos seen to each second by this process, as the bar does: soon without the time to start."""
        videos, seconds = self.paced
        if videos < PACE_VIDEOS or seconds < PACE_SECONDS:
            videos, seconds = self.new + len(self.failures), self.time - self.started
        return videos / seconds if seconds > 0 else 0.0

    @property
    def left(self) -> int:
        """Return how many videos it still has to see to."""
        return max(0, self.videos - self.stored - self.failed)

    def is_old(self, now: float) -> bool:
        """Return whether it should have said more by `now`: its process may be gone."""
        return self.state in RUNNING and now - self.time > OLD_SECONDS


class Heartbeat:
    """Writes the status of a share when it begins, every ten seconds, and when it ends; usable in `with`.

    A status that cannot be written stops no ingest; of a share only the first, for its shards could not be, either.
    """

    def __init__(
        self,
        place: FilePlace,
        dataset: str,
        share: str = ALONE,
        videos: int | None = None,
        *,
        on: bool = True,
    ):
        """Begin, unless it is not `on`; without a number of videos, when the writer has begun: all are in its plan."""
        self.state = "starting"
        of_share = shard_file(dataset, f"{STATUS_FOLDER}/{share}.json")
        self._place, self._name = (
            place,
            of_share if videos is not None else f"{dataset}/{STATUS_FILE}",
        )
        self._share, self._videos, self._started = share, videos, time.time()
        self._rounds: list[IngestSummary] = []
        self._first: tuple[int, float] | None = None  # videos seen to once one was stored, and when
        self._on = on
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="featstore-status", daemon=True)

    def watch(self, summary: IngestSummary) -> None:
        """Follow a round of the ingest from its plan on."""
        self._rounds.append(summary)
        self.state = "running"
        self._write()

    def finish(self, summary: IngestSummary) -> None:
        """Say how it ended."""
        ways = {
            "interrupted": summary.interrupted,
            "full": summary.full,
            "stopped": summary.over_budget,
        }
        self.state = next((state for state, holds in ways.items() if holds), "done")

    def __enter__(self) -> Heartbeat:
        """Write the first status."""
        if self._on:
            if self._videos is not None:
                self._place.put(self._name, pack_status(self._status()))
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Write the last one."""
        if not self._on:
            return
        self._ended.set()
        self._thread.join()
        if kind is not None:
            self.state = "interrupted" if issubclass(kind, KeyboardInterrupt) else "error"
        self._write()

    @property
    def _begun(self) -> bool:
        # Another ingest may be at work on the one file, until this one holds the dataset's lock.
        return self._videos is not None or any(summary.begun for summary in self._rounds)

    def _beat(self) -> None:
        every = EVERY_SECONDS_ALONE if self._videos is None else EVERY_SECONDS
        while not self._ended.wait(every if self._begun else _LOOK_SECONDS):
            self._write()

    def _write(self) -> None:
        if self._on and self._begun:
            with contextlib.suppress(StoreError):
                self._place.put(self._name, pack_status(self._status()))

    def _status(self) -> ShareStatus:
        rounds = [*self._rounds]
        idle = self.state == "running" and not any(any(found.busy.values()) for found in rounds)
        first = rounds[:1]  # whose plan says what was there before
        failures = [row for summary in rounds for row in [*summary.failures]]
        new = sum(summary.stored for summary in rounds)
        before = sum(len(found.failed_before) + len(found.clashes) for found in first)
        stored = sum(summary.skipped for summary in first)
        planned = sum(summary.planned for summary in first) + stored + before
        now, ended = time.time(), new + len(failures)
        if new and self._first is None:
            self._first = ended, now
        done, since = self._first or (ended, now)
        return ShareStatus(
            share=self._share,
            state="starting" if idle else self.state,
            videos=planned if self._videos is None else self._videos,
            stored=stored + new,
            new=new,
            failed=before + len(failures),
            record_bytes=sum(summary.record_bytes for summary in rounds),
            started=self._started,
            time=now,
            host=socket.gethostname(),
            pid=os.getpid(),
            paced=(ended - done, now - since),
            failures=[
                FailedVideo(row.video_id, row.video_path, row.reason)
                for row in failures[:MAX_FAILURES]
            ],
        )


def pack_status(status: ShareStatus) -> bytes:
    """Return a status as JSON; file names that are not UTF-8 as escapes."""
    return (json.dumps(to_plain(status), indent=1) + "\n").encode()


def read_statuses(place: FilePlace, dataset: str) -> tuple[list[ShareStatus], list[str]]:
    """Return what each share of `dataset` said last, and what is wrong with those that cannot be read."""
    folder = shard_file(dataset, STATUS_FOLDER)
    shares = filter(re.compile(r"[0-9]+-of-[0-9]+\.json").fullmatch, place.names(folder))
    files = [f"{folder}/{name}" for name in sorted(shares, key=_share_order)]
    files += [f"{dataset}/{STATUS_FILE}"] * (STATUS_FILE in place.names(dataset))
    found, wrong = [], []
    for name in files:
        try:
            status = build(ShareStatus, json.loads(place.read(name, MAX_STATUS_BYTES)))
            seen = (status.stored, status.new, status.failed, status.paced[0])
            numbers = (status.videos, *seen, status.record_bytes)
            if not all(0 <= number < 1 << 63 for number in numbers):
                raise ValueError(f"its numbers cannot be, as {numbers!r:.80}")
            found.append(status)
        except (StoreError, ValueError, RecursionError) as exc:
            wrong.append(f"{place.where}/{name} cannot be read: {plain_line(str(exc))}")
    return found, wrong


def _share_order(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]{1,9}", name)))[::-1]


def reasons(statuses: list[ShareStatus]) -> dict[str, int]:
    """Return why videos failed and how many, most frequent first; a reason without the file that it begins with."""
    found: Counter[str] = Counter()
    for status in statuses:
        for failed in status.failures:
            found[failed.reason.removeprefix(failed.path).lstrip(": ")[:200]] += 1
    return dict(found.most_common())


def describe_run(statuses: list[ShareStatus], now: float) -> dict[str, Any]:
    """Return what the shares come to, as plain values: counts, rate, seconds left, who is silent.

    Of runs with different numbers of shares, which divide the same videos, that is the one that was heard of last.
    """
    newest = max(statuses, key=lambda status: status.time).share.partition("-of-")[2]
    statuses = [status for status in statuses if status.share.partition("-of-")[2] == newest]
    at_work = [status for status in statuses if status.state in RUNNING and not status.is_old(now)]
    left = [status.left / status.rate for status in at_work if status.rate and status.left]
    return {
        "shares": len(statuses),
        "videos": sum(status.videos for status in statuses),
        "stored": sum(status.stored for status in statuses),
        "failed": sum(status.failed for status in statuses),
        "record_bytes": sum(status.record_bytes for status in statuses),
        "videos_per_second": sum(status.rate for status in at_work),
        "seconds_left": max(left, default=None),
        "reasons": reasons(statuses),
        "old": [status.share for status in statuses if status.is_old(now)],
    }
