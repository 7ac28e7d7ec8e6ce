"""The stages of an ingest at work: decoders, encoders and the writer, each while the others are.

One loop hears them all and hands on what is ready; it computes nothing and waits for nobody in particular. Slots bound
the memory: a decoder needs a free one for its frames, a video needs one for its record before it is encoded, so whoever
is slowest makes the others wait.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import IO, TYPE_CHECKING, Any

from featstore.decoding.pool import Decoded, DecoderPool
from featstore.errors import StoreFull
from featstore.fields import to_plain
from featstore.pipeline.encode.encoder_workers import start_lanes
from featstore.pipeline.make_record import make_header
from featstore.pipeline.order import decode_order
from featstore.pipeline.shared_memory import Memory
from featstore.pipeline.summary import Progress
from featstore.pipeline.write.writer_client import WriterProcess
from featstore.records.quantization import QuantError
from featstore.records.sizes import record_room
from featstore.store.catalog import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import ExitStack

    from featstore.decoding.video_file import Video
    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.encode.encode_loop import Answer
    from featstore.pipeline.encode.encoder_workers import Lane
    from featstore.pipeline.summary import IngestSummary
    from featstore.pipeline.write.writer_client import Committed
    from featstore.system.processes import Slots

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Settings:
    """What the stages are told beside the spec: see `ingest`.

    decoding: timeout, memory and decoder of DecoderPool. limits: of the writer.
    """

    cache_dir: str | os.PathLike[str]
    codec: str
    decoding: dict[str, Any]
    limits: dict[str, Any]


@dataclass
class _Station:
    """A lane, the videos it has, and those of them whose frames it has not read yet."""

    lane: Lane
    videos: dict[int, tuple[Decoded, int]]  # number -> what was decoded, slot of its record
    unread: dict[int, int]  # slot -> frames

    @property
    def waiting(self) -> int:
        return sum(self.unread.values())


class Stages:
    """One ingest at work.

    encoder: an object, which runs in a thread here, or its recipes, one for each process to start.
    pool: what decodes; another than DecoderPool is for measuring what follows it.
    """

    def __init__(
        self,
        stack: ExitStack,
        summary: IngestSummary,
        encoder: Encoder,
        recipes: list[EncoderRecipe],
        settings: Settings,
        *,
        stop: threading.Event | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        pool: type[DecoderPool] = DecoderPool,
    ) -> None:
        """Start them all; `stack` ends them."""
        self._summary = summary
        self._codec = settings.codec
        self._batch_frames = encoder.batch_frames
        self._stop = stop or threading.Event()
        self._on_progress = on_progress
        self._begun = time.monotonic()
        self._ready: deque[Decoded] = deque()
        self._replaced: frozenset[str] = frozenset()
        self._numbers = iter(range(1 << 62))
        log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
        memory = Memory.reserve(
            summary.spec,
            workers=summary.workers,
            encoders=summary.encoders,
            batch_frames=encoder.batch_frames,
        )
        stack.callback(memory.close)
        summary.shared_bytes = memory.size
        records = memory.record_slots
        self._writer = _start_writer(stack, summary, encoder.origin, records, settings, log)
        self._records = deque(range(records.count))
        lanes = start_lanes(stack, encoder, recipes, memory)
        self._stations = [_Station(lane, {}, {}) for lane in lanes]
        self._pool = pool(
            memory.frame_slots,
            workers=summary.workers,
            **settings.decoding,
            setup={
                "sampling": to_plain(summary.spec.sampling),
                "preprocessing": to_plain(summary.spec.encoder.preprocessing),
            },
            log=log,
        )
        stack.callback(self._pool.kill)

    def go(self, todo: list[Video], replaced: frozenset[str] = frozenset()) -> None:
        """Ingest `todo`; ends early where it is stopped or the room is used up.

        replaced: ids of those that are stored from another file.
        """
        begun = time.monotonic()
        self._replaced = replaced
        self._pool.add(decode_order(todo))
        try:
            while self._unfinished and not self._stop.is_set():
                self._listen()
                self._feed()
                wait(self._connections(), _POLL_SECONDS)
            self._listen()
            self._pool.kill()
            self._note(self._writer.finish())
        except StoreFull as exc:
            self._summary.full = str(exc)
        self._summary.interrupted = self._stop.is_set()
        self._summary.working_seconds = time.monotonic() - begun

    @property
    def _unfinished(self) -> bool:
        encoding = any(station.videos for station in self._stations)
        return bool(self._ready or encoding or not self._pool.idle)

    def _connections(self) -> list[Any]:
        lanes = [station.lane.connection for station in self._stations]
        return [*self._pool.connections, *lanes, self._writer.connection]

    def _listen(self) -> None:
        """Hear everyone without waiting."""
        self._note(self._writer.collect())
        for station in self._stations:
            for answer in station.lane.collect():
                self._hear(station, answer)
        for decoded in self._pool.collect():
            self._summary.busy["decode"] += decoded.seconds
            if decoded.error:
                self._pool.release(decoded.slot)
                self._fail(decoded.video, decoded.error)
            elif decoded.clip is not None:
                decoders = self._summary.decoders
                decoders[decoded.clip.decoder] = decoders.get(decoded.clip.decoder, 0) + 1
                self._ready.append(decoded)

    def _feed(self) -> None:
        """Give each decoded video to the lane with the fewest frames before it, as long as no batch waits there.

        None is given out before all encoders are known to make the same features.
        """
        if not all(station.lane.ready for station in self._stations):
            return
        while self._ready and self._records:
            station = min(self._stations, key=lambda station: station.waiting)
            if station.waiting >= self._batch_frames:
                return
            self._give(station, self._ready.popleft())

    def _give(self, station: _Station, decoded: Decoded) -> None:
        assert decoded.clip is not None
        number, record, count = (
            next(self._numbers),
            self._records.popleft(),
            len(decoded.clip.indices),
        )
        station.videos[number] = decoded, record
        station.unread[decoded.slot] = count
        station.lane.give(
            {"video": number, "frames": decoded.slot, "count": count, "record": record}
        )

    def _hear(self, station: _Station, answer: Answer) -> None:
        self._summary.busy["encode"] += answer["busy"]
        for slot in answer.get("read", ()):
            del station.unread[slot]
            self._pool.release(slot)
        if "stored" in answer:
            decoded, record = station.videos.pop(answer["stored"])
            self._hand_over(decoded, record, answer)
        elif "refused" in answer:
            decoded, record = station.videos.pop(answer["refused"])
            self._records.append(record)
            self._fail(decoded.video, f"{decoded.video.path}: {answer['reason']}")

    def _hand_over(self, decoded: Decoded, record: int, answer: Answer) -> None:
        assert decoded.clip is not None
        assert decoded.source is not None
        spec, error = self._summary.spec, QuantError(**answer["error"])
        header = make_header(
            spec, self._summary.dataset, decoded.video, decoded.clip, decoded.source, error
        )
        self._writer.put(record, header, answer["scale"], self._codec)

    def _fail(self, video: Video, reason: str) -> None:
        digest = self._summary.spec.digest
        failure = Failure(video.video_id, video.path, digest, reason, time.time())
        self._summary.failures.append(failure)
        # The features of the file that was there before must not be served for this one.
        self._writer.fail(failure, drop=video.video_id in self._replaced)
        self._report()

    def _note(self, commits: Iterable[Committed]) -> None:
        for commit in commits:
            self._records += commit.slots
            self._summary.stored += len(commit.stored)
            self._summary.record_bytes += sum(size for _, size in commit.stored)
            self._summary.busy["write"] += commit.busy
            self._report()

    def _report(self) -> None:
        summary = self._summary
        self._on_progress(
            Progress(
                total=summary.planned,
                skipped=summary.skipped,
                done=summary.stored,
                failed=len(summary.failures),
                record_bytes=summary.record_bytes,
                seconds=time.monotonic() - self._begun,
            )
        )


def _start_writer(
    stack: ExitStack,
    summary: IngestSummary,
    origin: str,
    records: Slots,
    settings: Settings,
    log: IO[bytes],
) -> WriterProcess:
    room, _ = record_room(summary.spec)
    setup = {
        "cache_dir": os.fspath(settings.cache_dir),
        "dataset": summary.dataset,
        "spec": summary.spec.to_dict(),
        "origin": origin,
        **settings.limits,
    }
    writer = WriterProcess(records, prefix_room=room, setup=setup, log=log)
    stack.callback(writer.close)
    return writer
