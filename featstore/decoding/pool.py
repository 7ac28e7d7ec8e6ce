"""The pool of decode workers: each one video at a time, killed and replaced when it takes too long or dies."""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from featstore import defaults
from featstore.decoding.frame_selection import Clip
from featstore.records.record import SourceFingerprint
from featstore.system.processes import Child, Slots

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from featstore.decoding.video_file import Video

MODULE = "featstore.decoding.worker"
# decord leaks; a worker is replaced after so many videos.
VIDEOS_A_WORKER = 64


@dataclass(frozen=True)
class Decoded:
    """A video whose frames lie in a slot, or the reason why they do not."""

    video: Video
    slot: int
    seconds: float
    clip: Clip | None = None
    source: SourceFingerprint | None = None
    error: str = ""


@dataclass
class _Worker:
    child: Child
    video: Video | None = None
    slot: int = -1
    request: dict[str, Any] = field(default_factory=dict)
    begun: float = 0.0
    log_place: int = 0
    done: int = 0


class DecoderPool:
    """Decodes a queue of videos into slots, as many at once as there are workers and free slots.

    timeout: seconds a video may take before its worker is killed. memory: bytes a worker may take beside the slots.
    decoder: see featstore.decoding.video_file.decode.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        workers: int,
        timeout: float,
        setup: dict[str, Any],
        log: IO[bytes],
        memory: int = defaults.DECODE_MEMORY,
        decoder: str = defaults.DECODER,
    ) -> None:
        """Start the workers; `setup` is their first message."""
        self._slots = slots
        self._timeout = timeout
        self._memory = memory
        self._setup = {**setup, "memory_limit": memory, "decoder": decoder}
        self._log = log
        self._queue: deque[Video] = deque()
        self._free = deque(range(slots.count))
        self._workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(_Worker(self._start()))
        except BaseException:
            self.kill()
            raise

    def add(self, videos: list[Video]) -> None:
        """Queue videos, and start on them."""
        self._queue.extend(videos)
        self._assign()

    def release(self, slot: int) -> None:
        """Give a slot back whose frames were encoded."""
        self._free.append(slot)
        self._assign()

    @property
    def connections(self) -> list[Connection]:
        """Return what to wait for: readable when a worker has something to say, or died."""
        return [worker.child.connection for worker in self._workers if worker.video]

    @property
    def idle(self) -> bool:
        """Return whether nothing is queued and nothing is being decoded."""
        return not self._queue and not self.connections

    def collect(self) -> list[Decoded]:
        """Return the videos that came out since the last call, good or bad, without waiting."""
        done = []
        for worker in self._workers:
            if worker.video is None:
                continue
            seconds = time.monotonic() - worker.begun
            if worker.child.connection.poll():
                done.append(self._finish(worker, seconds))
            elif seconds > self._timeout:
                done.append(self._replace(worker, self._too_long(worker.video), seconds))
        self._assign()
        return done

    def kill(self) -> None:
        """End all workers at once; what they were at is lost."""
        for worker in self._workers:
            worker.child.process.kill()
        for worker in self._workers:  # each dead already, also where an interrupt ends the waiting
            worker.child.kill()
        self._workers = []

    def _start(self) -> Child:
        return Child(MODULE, self._slots, self._log, self._setup)

    def _assign(self) -> None:
        for worker in self._workers:
            if worker.video is None and self._queue and self._free:
                if worker.child.connection.poll():  # it owes no answer, so what is heard is its end
                    self._renew(worker)
                worker.video, worker.slot = self._queue.popleft(), self._free.popleft()
                worker.begun = time.monotonic()
                worker.log_place = self._log.seek(0, os.SEEK_END)
                # Drawn and not counted: those of two processes that share a pipe by a fork must differ.
                number = secrets.randbits(63)
                worker.request = {
                    "number": number,
                    "path": worker.video.path,
                    "slot": worker.slot,
                }
                worker.child.send(worker.request)

    def _finish(self, worker: _Worker, seconds: float) -> Decoded:
        assert worker.video is not None
        try:
            answer = worker.child.receive()
        except EOFError:
            return self._replace(worker, self._describe_end(worker), seconds)
        if answer.get("request") != worker.request:
            return self._replace(worker, self._not_asked(worker.video), seconds)
        seconds = answer["seconds"]
        if "out_of_memory" in answer:
            return self._replace(worker, self._out_of_memory(worker), seconds)
        if "error" in answer:
            done = Decoded(worker.video, worker.slot, seconds, error=answer["error"])
        elif seconds > self._timeout:  # whether anyone looked in time must not decide
            done = Decoded(worker.video, worker.slot, seconds, error=self._too_long(worker.video))
        else:
            clip, source = Clip(**answer["clip"]), SourceFingerprint(**answer["source"])
            done = Decoded(worker.video, worker.slot, seconds, clip, source)
        worker.video = None
        worker.done += 1
        if worker.done >= VIDEOS_A_WORKER:
            self._renew(worker)
        return done

    def _too_long(self, video: Video) -> str:
        return (
            f"{video.path}: decoding took longer than {self._timeout:g} s; raise --decode-timeout"
        )

    def _not_asked(self, video: Video) -> str:
        return (
            f"{video.path}: the decoder answered another request than this one, so the frames may be another video's "
            "and were not used; it was ended, ask again or ingest with --retry-failed"
        )

    def _describe_end(self, worker: _Worker) -> str:
        """Return why a worker died while it was at its video."""
        assert worker.video is not None
        end = worker.child.describe_end(self._log)
        self._log.seek(worker.log_place)
        if b"bad_alloc" in self._log.read():
            return self._out_of_memory(worker)
        if "SIGKILL" in end:
            return f"{worker.video.path}: the decoder was killed from outside, as a system does that has no memory left"
        return f"{worker.video.path}: the decoder died, {end}"

    def _out_of_memory(self, worker: _Worker) -> str:
        assert worker.video is not None
        size = f"{self._memory / 2**30:.3g} GiB"
        return f"{worker.video.path} needed more than {size} of memory to decode; raise --decode-memory if it is sound"

    def _replace(self, worker: _Worker, error: str, seconds: float) -> Decoded:
        assert worker.video is not None
        done = Decoded(worker.video, worker.slot, seconds, error=error)
        worker.video = None
        self._renew(worker)
        return done

    def _renew(self, worker: _Worker) -> None:
        worker.child.kill()
        worker.child, worker.done = self._start(), 0
