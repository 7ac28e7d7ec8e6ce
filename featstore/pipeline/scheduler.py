"""One ingest at work: decoders, encoders and the writer, each while the others are.

One loop receives from all of them and passes on what is ready; it computes nothing and waits for none in particular.
Slots bound the memory: a decoder needs a free one for its frames, a video needs one for its record before it is
encoded, so the slowest makes the others wait.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from featstore.decoding.pool import Decoded, DecoderPool
from featstore.errors import StoreFull
from featstore.pipeline.encode.base import EncodeRefusal, EncodeResult
from featstore.pipeline.encode.batches import EncodeTask
from featstore.pipeline.encode.encoder_workers import start_encoders
from featstore.pipeline.make_record import record_room
from featstore.pipeline.shared_memory import Memory, batch_units
from featstore.pipeline.summary import Progress
from featstore.pipeline.write.writer_client import WriterProcess
from featstore.pipeline.write.writer_process import PutRecord, WriterSetup
from featstore.records.budget import too_many
from featstore.store.rows import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import ExitStack

    from featstore.decoding.video_file import Video
    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.encode.base import EncoderAnswer
    from featstore.pipeline.encode.encoder_workers import EncoderWorker
    from featstore.pipeline.options import IngestOptions
    from featstore.pipeline.summary import IngestSummary
    from featstore.pipeline.write.writer_process import Committed

_POLL_SECONDS = 0.2


@dataclass
class _WorkerState:
    """An encoder, the videos it has, and those of them whose frames it has not read yet."""

    worker: EncoderWorker
    videos: dict[int, tuple[Decoded, int]]  # number -> what was decoded, slot of its record
    unread: dict[int, int]  # slot -> units

    @property
    def waiting(self) -> int:
        return sum(self.unread.values())


class Scheduler:
    """Runs the processes of one ingest, and passes each video from one to the next."""

    def __init__(
        self,
        stack: ExitStack,
        summary: IngestSummary,
        encoder: Encoder,
        recipes: list[EncoderRecipe],
        cache_dir: str | os.PathLike[str],
        *,
        options: IngestOptions,
        stop: threading.Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        pool: type[DecoderPool] = DecoderPool,
    ) -> None:
        """Start the processes.

        Args:
            stack: ends them.
            summary: of the plan; updated as the work goes on.
            encoder: runs in a thread here if there are no recipes.
            recipes: one for each encoder process.
            cache_dir: the folder of datasets.
            options: see `featstore.ingest`.
            stop: set it to end early.
            on_progress: called after each commit and each failure.
            pool: what decodes; another than DecoderPool is for measuring what follows it.
        """
        self._summary = summary
        self._batch_units = batch_units(encoder.identity.geometry, encoder.batch_frames)
        self._stop = stop or threading.Event()
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._ready: deque[Decoded] = deque()
        self._replaced: frozenset[str] = frozenset()
        self._numbers = iter(range(1 << 62))
        self._encoded = 0
        self._lossless: dict[str, int] = {}  # what videos would take as asked for, by id
        log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
        spec, storage = summary.spec, summary.storage
        memory = Memory.reserve(
            spec,
            storage,
            workers=summary.workers,
            encoders=summary.encoders,
            batch_frames=encoder.batch_frames,
            budget=summary.budget,
        )
        stack.callback(memory.close)
        summary.shared_bytes = memory.size
        self._records = deque(range(memory.record_slots.count))
        payload_start, _ = record_room(spec, storage)
        setup = WriterSetup(
            cache_dir=os.fspath(cache_dir),
            dataset=summary.dataset,
            spec=spec,
            storage=storage,
            origin=encoder.origin,
            names=encoder.names,
            max_error=summary.budget.max_error,
            replace_storage=options.replace_storage,
            replace_max_error=options.max_error is not None,
            min_free=options.min_free,
            max_size=options.max_size,
            lock_wait=options.lock_wait,
            slots=memory.record_slots,
            payload_start=payload_start,
        )
        self._writer = WriterProcess(setup, log=log)
        stack.callback(self._writer.close)
        workers = start_encoders(stack, encoder, recipes, memory)
        self._encoders = [_WorkerState(worker, {}, {}) for worker in workers]
        self._pool = pool(
            memory.frame_slots,
            spec.sampling,
            spec.preprocessing,
            workers=summary.workers,
            timeout=options.decode_timeout,
            log=log,
            memory=options.decode_memory,
            decoder=options.decoder,
        )
        stack.callback(self._pool.kill)

    def run(self, todo: list[Video], replaced: frozenset[str] = frozenset()) -> None:
        """Ingest `todo` in its order; ends early if it is stopped, no room is left or too many miss the budget.

        Args:
            todo: the videos.
            replaced: ids of those that are stored from another file.
        """
        started = time.monotonic()
        self._replaced = replaced
        self._pool.add(todo)
        try:
            while self._unfinished and not (self._stop.is_set() or self._summary.over_budget):
                self._collect()
                self._feed()
                wait(self._connections(), _POLL_SECONDS)
            self._collect()
            self._pool.kill()
            self._note(self._writer.finish())
        except StoreFull as exc:
            self._summary.full = str(exc)
        self._summary.interrupted = self._stop.is_set()
        self._summary.working_seconds = time.monotonic() - started

    @property
    def _unfinished(self) -> bool:
        encoding = any(state.videos for state in self._encoders)
        return bool(self._ready or encoding or not self._pool.idle)

    def _connections(self) -> list[Any]:
        encoders = [state.worker.connection for state in self._encoders]
        return [*self._pool.connections, *encoders, self._writer.connection]

    def _collect(self) -> None:
        """Receive all answers there are, without waiting."""
        self._note(self._writer.collect())
        for state in self._encoders:
            for answer in state.worker.collect():
                self._handle(state, answer)
        for decoded in self._pool.collect():
            self._summary.busy["decode"] += decoded.seconds
            if decoded.error:
                self._pool.release(decoded.slot)
                self._fail(decoded.video, decoded.error)
            elif decoded.clip is not None:
                self._summary.count(decoded.clip)
                self._ready.append(decoded)

    def _feed(self) -> None:
        """Give each decoded video to the encoder with the fewest units before it, as long as no batch waits there.

        None is given out before all encoders are known to make the same features.
        """
        if not all(state.worker.ready for state in self._encoders):
            return
        while self._ready and self._records:
            state = min(self._encoders, key=lambda state: state.waiting)
            if state.waiting >= self._batch_units:
                return
            self._give(state, self._ready.popleft())

    def _give(self, state: _WorkerState, decoded: Decoded) -> None:
        assert decoded.clip is not None
        number, record = next(self._numbers), self._records.popleft()
        count = len(decoded.clip.indices)
        units = self._summary.spec.encoder.geometry.units(count)
        state.videos[number] = decoded, record
        state.unread[decoded.slot] = units
        task = EncodeTask(number, decoded.slot, count, units, decoded.clip.size, record)
        state.worker.give(task)

    def _handle(self, state: _WorkerState, answer: EncoderAnswer) -> None:
        self._summary.busy["encode"] += answer.busy
        if isinstance(answer, EncodeResult):
            decoded, record = state.videos.pop(answer.video)
            self._store(decoded, record, answer)
        elif isinstance(answer, EncodeRefusal):
            decoded, record = state.videos.pop(answer.video)
            self._records.append(record)
            self._fail(decoded.video, f"{decoded.video.path}: {answer.reason}")
        else:
            for slot in answer.read:
                del state.unread[slot]
                self._pool.release(slot)

    def _store(self, decoded: Decoded, record: int, answer: EncodeResult) -> None:
        assert decoded.clip is not None
        assert decoded.source is not None
        self._judge(decoded, answer)
        self._writer.put(
            PutRecord(
                record,
                decoded.video,
                decoded.clip,
                decoded.source,
                answer.grid,
                answer.storage,
                answer.scales,
                answer.error,
            )
        )

    def _judge(self, decoded: Decoded, answer: EncodeResult) -> None:
        """Count a video that missed the error budget, and end the work if too many of the first did."""
        assert decoded.clip is not None
        summary, geometry = self._summary, self._summary.spec.encoder.geometry
        self._encoded += 1
        if answer.storage == summary.storage:
            summary.missed += summary.budget.misses(answer.error)
            return
        rows = geometry.layout(len(decoded.clip.indices), answer.grid).rows
        asked = summary.storage.record_bytes(
            (rows, geometry.row_width), summary.spec.sampling.nframe
        )
        self._lossless[decoded.video.video_id] = asked
        if not summary.over_budget:
            count = len(self._lossless)
            summary.over_budget = too_many(count, self._encoded, summary.budget, summary.storage)

    def _fail(self, video: Video, reason: str) -> None:
        digest = self._summary.spec.digest
        failure = Failure(video.video_id, video.path, digest, reason, time.time())
        self._summary.failures.append(failure)
        # The features of the earlier file must not be served for this one.
        self._writer.fail(failure, drop=video.video_id in self._replaced)
        self._report()

    def _note(self, commits: Iterable[Committed]) -> None:
        for commit in commits:
            self._records += commit.slots
            self._summary.count_commit(commit.stored, self._lossless)
            self._summary.busy["write"] += commit.busy
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
