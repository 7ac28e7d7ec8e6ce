"""One ingest at work: decoders, encoders and the writer, each while the others are.

One loop receives from all of them and passes on what is ready; it computes nothing and waits for none in particular.
Slots bound the memory: a decoder needs a free one for its frames, a video needs one for its record before it is
encoded, so the slowest makes the others wait.
"""

from __future__ import annotations

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
from featstore.pipeline.shared_memory import Memory, batch_units
from featstore.pipeline.summary import Tally
from featstore.pipeline.write.writer_process import PutRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import ExitStack

    from featstore.decoding.video_file import Video
    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.encode.base import EncoderAnswer
    from featstore.pipeline.encode.encoder_workers import EncoderWorker
    from featstore.pipeline.options import IngestOptions
    from featstore.pipeline.summary import IngestSummary, Progress
    from featstore.pipeline.write.record_sink import RecordSink
    from featstore.pipeline.write.writer_client import WriterProcess
    from featstore.pipeline.write.writer_process import Committed
    from featstore.system.processes import Slots

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
        writer: Callable[[Slots], WriterProcess | RecordSink],
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
            writer: starts what takes the records that are in slots.
            options: see `featstore.ingest`.
            stop: set it to end early.
            on_progress: called after each commit and each failure.
            pool: what decodes; another than DecoderPool is for measuring what follows it.
        """
        self._summary = summary
        self._batch_units = batch_units(encoder.identity.geometry, encoder.batch_frames)
        self._stop = stop or threading.Event()
        self._tally = Tally(summary, on_progress)
        self._ready: deque[Decoded] = deque()
        self._replaced: frozenset[str] = frozenset()
        self._numbers = iter(range(1 << 62))
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
        self._writer = writer(memory.record_slots)
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
        self.add(todo)
        try:
            while self._unfinished and not (self._stop.is_set() or self._summary.over_budget):
                self.step()
            self._collect()
            self._pool.kill()
            self._note(self._writer.finish())
        except StoreFull as exc:
            self._summary.full = str(exc)
        self._summary.interrupted = self._stop.is_set()
        self._summary.working_seconds = time.monotonic() - started

    def add(self, videos: list[Video]) -> None:
        """Queue videos, and start to decode."""
        self._pool.add(videos)

    def step(self) -> None:
        """Pass on what is ready, and wait a moment for more."""
        self._collect()
        self._feed()
        wait(self._connections(), _POLL_SECONDS)

    @property
    def _unfinished(self) -> bool:
        encoding = any(state.videos for state in self._encoders)
        return bool(self._ready or encoding or not self._pool.idle)

    def _connections(self) -> list[Any]:
        encoders = [state.worker.connection for state in self._encoders]
        return [*self._pool.connections, *encoders, *self._writer.connections]

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
                self._summary.count(decoded.clip.decoder, decoded.clip.doubt)
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
        layout = self._summary.spec.encoder.geometry.layout(len(decoded.clip.indices), answer.grid)
        self._tally.encoded(decoded.video.video_id, layout.rows, answer.storage, answer.error)
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

    def _fail(self, video: Video, reason: str) -> None:
        failure = self._tally.failed(video, reason)
        # The features of the earlier file must not be served for this one.
        self._writer.fail(failure, drop=video.video_id in self._replaced)

    def _note(self, commits: Iterable[Committed]) -> None:
        for commit in commits:
            self._records += commit.slots
            self._tally.committed(commit.stored, commit.busy)
