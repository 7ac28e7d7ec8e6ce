"""The driver of an ingest under Ray: it owns the plan, the queue and the writer, and gives videos to workers.

A video is done once its record is committed here. When a worker is lost, the videos it held are given out again, one
at a time to a worker that holds no other: only so is it certain which video kills its worker.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import featstore
from featstore.errors import FeatstoreError, RecordError, StoreFull, StoreMismatch, how_many
from featstore.pipeline.cluster.ray_worker import RayAnswer, RayJoin, RayVideos
from featstore.pipeline.summary import Tally
from featstore.records.record import parse
from featstore.store import report_waiting
from featstore.system.processes import ErrorMessage, pack_message, unpack_message

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    from featstore.decoding.video_file import Video
    from featstore.pipeline.summary import IngestSummary, Progress
    from featstore.pipeline.write.writer_client import WriterProcess
    from featstore.pipeline.write.writer_process import Committed
    from featstore.system.processes import Slots

_POLL_SECONDS = 0.2
_FETCH_SECONDS = 120.0  # for one record from another node; a node that was lost does not answer
_SAY_AFTER_SECONDS = 30.0  # without any worker
_MOST_CRASHES = 2  # of workers that held this video alone
_MOST_LOSSES = 8  # of workers one after the other, without a video done in between


@dataclass
class _Worker:
    """An actor and what it holds; stream: of the call at work. joining: of the one that reports what it is."""

    actor: Any
    joining: Any
    stream: Any = None
    node: str = ""
    held: dict[str, Video] = field(default_factory=dict)


class RayDriver:
    """Carries out the plan of an ingest with actors."""

    def __init__(
        self,
        hire: Callable[[], tuple[Any, Any]],
        summary: IngestSummary,
        writer: WriterProcess,
        slots: Slots,
        *,
        decoder: str,
        in_flight: int,
        stop: threading.Event,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            hire: starts an actor, and returns it and the reference of its `join`.
            summary: of the plan; `encoders` is the number of workers.
            writer: holds the dataset.
            slots: the writer's.
            decoder: the identity of the decoder that workers must have.
            in_flight: videos that a worker holds at most.
            stop: set it to end early.
            on_progress: called after each commit and each failure.
        """
        self._hire_actor = hire
        self._summary = summary
        self._writer = writer
        self._slots = slots
        self._decoder = decoder
        self._in_flight = in_flight
        self._stop = stop
        self._tally = Tally(summary, on_progress)
        self._free = deque(range(slots.count))
        self._queue: deque[Video] = deque()
        self._suspects: deque[Video] = deque()
        self._crashes: Counter[str] = Counter()
        self._workers: list[_Worker] = []
        self._losses = 0
        self._replaced: frozenset[str] = frozenset()
        self._since = time.monotonic()  # nobody has joined

    def run(self, todo: list[Video], replaced: frozenset[str] = frozenset()) -> None:
        """Ingest `todo`; see Scheduler.run."""
        started = time.monotonic()
        self._queue, self._replaced = deque(todo), replaced
        try:
            for _ in range(self._summary.encoders):
                self._hire()
            while self._left and not (self._stop.is_set() or self._summary.over_budget):
                self._give_out()
                self._receive()
                self._note(self._writer.collect())
            if self._stop.is_set():
                self._drain()
            self._note(self._writer.finish())
        except StoreFull as exc:
            self._summary.full = str(exc)
        finally:
            for worker in self._workers:
                _kill(worker)
        self._summary.interrupted = self._stop.is_set()
        self._summary.working_seconds = time.monotonic() - started

    @property
    def _left(self) -> bool:
        return bool(self._queue or self._suspects or any(w.held for w in self._workers))

    def _hire(self) -> None:
        self._workers.append(_Worker(*self._hire_actor()))

    def _give_out(self) -> None:
        ready = [worker for worker in self._workers if worker.node]
        for worker in ready:
            if worker.stream is not None:
                continue
            videos, keep = [], 0
            if self._suspects and not worker.held:
                videos = [self._suspects.popleft()]
            elif self._queue:
                share = math.ceil(len(self._queue) / len(ready))
                room = max(0, min(self._in_flight - len(worker.held), share))
                videos = [self._queue.popleft() for _ in range(room)]
                keep = self._in_flight // 2 if self._queue else 0
            worker.held |= {video.video_id: video for video in videos}
            if worker.held:
                call = worker.actor.work.options(
                    num_returns="streaming", _generator_backpressure_num_objects=2
                )
                worker.stream = call.remote(pack_message(RayVideos(tuple(videos))), keep)

    def _receive(self) -> None:
        """Wait a moment for answers, and take those there are; none while the writer has no room for a record."""
        import ray

        if ready := any(worker.node for worker in self._workers):
            self._since = time.monotonic()
        elif time.monotonic() - self._since > _SAY_AFTER_SECONDS:
            self._since = math.inf
            report_waiting("no worker has the resources to start yet, see ray status")
        if not self._free and ready:
            wait(self._writer.connections, _POLL_SECONDS)
            return
        waited = {w.stream or w.joining: w for w in self._workers if w.stream or w.joining}
        if not waited:
            time.sleep(_POLL_SECONDS)
            return
        # Also what has failed is ready. The first wait returns one, the second all that are.
        found, _ = ray.wait([*waited], num_returns=1, timeout=_POLL_SECONDS)
        if found:
            found, _ = ray.wait([*waited], num_returns=len(waited), timeout=0)
        for reference in found:
            if self._free:
                self._hear(waited[reference])

    def _hear(self, worker: _Worker) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            if worker.stream is None:
                self._check(worker, ray.get(worker.joining))
                return
            answer, record = ray.get(next(worker.stream), timeout=_FETCH_SECONDS)
            self._take(worker, unpack_message(answer, RayAnswer), record)
        except StopIteration:
            worker.stream = None
        except (RayError, RecordError) as exc:
            self._lose(worker, exc)

    def _check(self, worker: _Worker, data: bytes) -> None:
        """Let a worker join that makes the same features, and refuse any other."""
        joined, spec = unpack_message(data, RayJoin, ErrorMessage), self._summary.spec
        if isinstance(joined, ErrorMessage):
            raise joined.exception("a worker could not start: ")
        theirs = dataclasses.replace(
            spec,
            encoder=joined.encoder,
            preprocessing=joined.preprocessing,
            decoder=joined.decoder,
        )
        if joined.version != featstore.__version__:
            raise StoreMismatch(
                f"the worker on {joined.node} has featstore {joined.version}, the driver {featstore.__version__}; "
                "install the same on all nodes"
            )
        if theirs.digest != spec.digest:
            name, expected, found = spec.diff(theirs)[0]
            raise StoreMismatch(
                f"the worker on {joined.node} has {name} {found}, the driver has {expected}; all must make the same "
                "features: give every node the same checkpoint and packages, and one --dtype"
            )
        worker.joining, worker.node = None, joined.node

    def _take(self, worker: _Worker, answer: RayAnswer, record: Any) -> None:
        video, summary = worker.held.get(answer.video_id), self._summary
        if video is None:
            raise RecordError(f"a worker answered for {answer.video_id!r}, which it does not have")
        if record is None:
            self._fail(video, answer.reason)
        else:
            self._store(video, memoryview(record))
        del worker.held[video.video_id]
        summary.busy["decode"] += answer.decode
        summary.busy["encode"] += answer.encode
        self._losses = 0

    def _store(self, video: Video, record: memoryview) -> None:
        """Copy a record to the writer's slot, verify it there, and have it stored; RecordError if it is not sound."""
        if len(record) > self._slots.slot_bytes:
            raise RecordError(f"a record of {len(record)} bytes came, of more than there can be")
        slot = self._free[0]
        memory = self._slots.slot(slot)[: len(record)]
        memory[:] = record
        parsed = parse(memory)
        parsed.verify()
        header = parsed.header
        if (header.video_id, header.video_path) != (video.video_id, video.path):
            raise RecordError(f"a record of {header.video_id!r} came for {video.video_id!r}")
        self._summary.count(header.decoder, header.doubt)
        self._tally.encoded(video.video_id, header.shape[0], header.storage, header.error)
        self._writer.put_whole(self._free.popleft(), len(record))

    def _fail(self, video: Video, reason: str) -> None:
        failure = self._tally.failed(video, reason)
        self._writer.fail(failure, drop=video.video_id in self._replaced)

    def _lose(self, worker: _Worker, exc: Exception) -> None:
        """Give a worker up: what it held is given out again, and another is started in its place."""
        _kill(worker)
        self._workers.remove(worker)
        self._losses += 1
        why, held = _in_a_line(exc), [*worker.held.values()]
        for video in held:
            self._crashes[video.video_id] += len(held) == 1
            if self._crashes[video.video_id] < _MOST_CRASHES:
                self._suspects.append(video)
            else:
                self._fail(
                    video,
                    f"{video.path}: {_MOST_CRASHES} workers died while each was at work on it alone, at last: {why}",
                )
        if self._losses > _MOST_LOSSES:
            raise FeatstoreError(
                f"{self._losses} workers were lost one after the other, at last: {why}; what was committed is "
                "stored: mend the cause, and run the same command again"
            )
        if worker.node:
            report_waiting(
                f"a worker on {worker.node} was lost ({why}): {how_many(len(held), 'video')} of it are done again"
            )
        if self._left and not self._stop.is_set():
            self._hire()

    def _drain(self) -> None:
        """Take what the workers have encoded, and no more."""
        for worker in self._workers:
            worker.actor.stop.options(concurrency_group="control").remote()
        while any(worker.stream is not None for worker in self._workers):
            for worker in [worker for worker in self._workers if worker.stream is None]:
                _kill(worker)
                self._workers.remove(worker)
            self._receive()
            self._note(self._writer.collect())

    def _note(self, commits: Iterable[Committed]) -> None:
        for commit in commits:
            self._free += commit.slots
            self._tally.committed(commit.stored, commit.busy)


def _kill(worker: _Worker) -> None:
    import ray

    ray.kill(worker.actor, no_restart=True)


def _in_a_line(exc: Exception) -> str:
    from ray.exceptions import RayActorError

    if isinstance(exc, RayActorError):  # whose text has pages of Ray's logs
        return f"its process or its node ended, {type(exc).__name__}"
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[-1] if lines else ''}"[:300]
