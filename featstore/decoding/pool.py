"""The pool of decode workers: each one video at a time, killed and replaced when it takes too long or dies."""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from featstore import defaults
from featstore.decoding.worker import MODULE, DecodeResult, DecodeSetup, DecodeTask
from featstore.system.processes import WorkerProcess

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from featstore.decoding.frame_selection import Clip
    from featstore.decoding.video_file import Video
    from featstore.preprocessing import Preprocessing
    from featstore.records.header import SourceFingerprint
    from featstore.sampling import Sampling
    from featstore.system.processes import Slots

# decord leaks; a worker is replaced after so many videos.
VIDEOS_A_WORKER = 64


@dataclass(frozen=True)
class Decoded:
    """A video whose frames are in a slot, or the reason why they are not."""

    video: Video
    slot: int
    seconds: float
    clip: Clip | None = None
    source: SourceFingerprint | None = None
    error: str = ""


@dataclass
class _Worker:
    process: WorkerProcess
    video: Video | None = None
    task: DecodeTask | None = None
    started: float = 0.0
    log_place: int = 0
    done: int = 0


class DecoderPool:
    """Decodes a queue of videos into slots, as many at once as there are workers and free slots."""

    def __init__(
        self,
        frames: Slots,
        sampling: Sampling,
        preprocessing: Preprocessing,
        *,
        workers: int,
        timeout: float,
        log: IO[bytes],
        memory: int = defaults.DECODE_MEMORY,
        decoder: str = defaults.DECODER,
    ) -> None:
        """Start the workers.

        Args:
            frames: a slot takes the frames of one video.
            sampling: which frames are taken.
            preprocessing: how they are prepared.
            workers: number of processes.
            timeout: seconds a video may take before its worker is killed.
            log: takes what the workers print.
            memory: bytes a worker may take beside the slots.
            decoder: see featstore.decoding.video_file.decode.
        """
        self._timeout = timeout
        self._setup = DecodeSetup(frames, sampling, preprocessing, memory, decoder)
        self._log = log
        self._queue: deque[Video] = deque()
        self._free = deque(range(frames.count))
        self._workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(_Worker(self._start()))
        except BaseException:
            self.kill()
            raise

    def add(self, videos: list[Video]) -> None:
        """Queue videos, and start to decode."""
        self._queue.extend(videos)
        self._assign()

    def release(self, slot: int) -> None:
        """Free a slot, after its frames were encoded."""
        self._free.append(slot)
        self._assign()

    @property
    def connections(self) -> list[Connection]:
        """Return what to wait for: readable when a worker has answered, or died."""
        return [worker.process.connection for worker in self._workers if worker.video]

    @property
    def idle(self) -> bool:
        """Return whether nothing is queued and nothing is being decoded."""
        return not self._queue and not self.connections

    def collect(self) -> list[Decoded]:
        """Return the videos that were decoded, or failed, since the last call, without waiting."""
        done = []
        for worker in self._workers:
            if worker.video is None:
                continue
            seconds = time.monotonic() - worker.started
            if worker.process.connection.poll():
                done.append(self._finish(worker, seconds))
            elif seconds > self._timeout:
                done.append(self._replace(worker, self._too_long(worker.video), seconds))
        self._assign()
        return done

    def kill(self) -> None:
        """Kill all workers; what they were decoding is lost."""
        for worker in self._workers:
            worker.process.process.kill()
        for worker in self._workers:  # each dead already, also if an interrupt ends the wait
            worker.process.kill()
        self._workers = []

    def _start(self) -> WorkerProcess:
        return WorkerProcess(MODULE, self._setup, [self._setup.frames], self._log)

    def _assign(self) -> None:
        for worker in self._workers:
            if worker.video is None and self._queue and self._free:
                if worker.process.connection.poll():  # it owes no answer, so it has ended
                    self._renew(worker)
                worker.video = self._queue.popleft()
                worker.started = time.monotonic()
                worker.log_place = self._log.seek(0, os.SEEK_END)
                # Random, not counted: those of two processes that share a pipe after a fork must differ.
                number = secrets.randbits(63)
                worker.task = DecodeTask(number, worker.video.path, self._free.popleft())
                worker.process.send(worker.task)

    def _finish(self, worker: _Worker, seconds: float) -> Decoded:
        assert worker.video is not None
        try:
            result: DecodeResult = worker.process.receive(DecodeResult)
        except EOFError:
            return self._replace(worker, self._describe_end(worker), seconds)
        if result.task != worker.task:
            return self._replace(worker, self._not_asked(worker.video), seconds)
        seconds, error = result.seconds, result.error
        if result.out_of_memory:
            return self._replace(worker, self._out_of_memory(worker), seconds)
        if not error and seconds > self._timeout:  # whether anyone looked in time must not decide
            error = self._too_long(worker.video)
        clip, source = (None, None) if error else (result.clip, result.source)
        done = Decoded(worker.video, result.task.slot, seconds, clip, source, error)
        worker.video = None
        worker.done += 1
        if worker.done >= VIDEOS_A_WORKER:
            self._renew(worker)
        return done

    def _too_long(self, video: Video) -> str:
        return (
            f"{video.path}: decoding took longer than {self._timeout:g} s; ingest it with a larger --decode-timeout, "
            "or give a model a larger decode_timeout"
        )

    def _not_asked(self, video: Video) -> str:
        return (
            f"{video.path}: the decoder answered another request than this one, so the frames may be another video's "
            "and were not used; it was ended, ask again or ingest with --retry-failed"
        )

    def _describe_end(self, worker: _Worker) -> str:
        """Return why a worker died while it decoded its video."""
        assert worker.video is not None
        end = worker.process.describe_end(self._log)
        self._log.seek(worker.log_place)
        said = self._log.read()
        if (
            b"bad_alloc" in said
            or b"MemoryError" in said
            or b"cannot allocate memory" in said.lower()
        ):
            return self._out_of_memory(worker)
        if "SIGKILL" in end:
            return f"{worker.video.path}: the decoder was killed from outside, as a system does that has no memory left"
        return f"{worker.video.path}: the decoder died, {end}"

    def _out_of_memory(self, worker: _Worker) -> str:
        assert worker.video is not None
        size = f"{self._setup.memory_limit / 2**30:.3g} GiB"
        return (
            f"{worker.video.path} needed more than {size} of memory to decode; ingest it with a larger --decode-memory "
            "if it is sound"
        )

    def _replace(self, worker: _Worker, error: str, seconds: float) -> Decoded:
        assert worker.video is not None
        assert worker.task is not None
        done = Decoded(worker.video, worker.task.slot, seconds, error=error)
        worker.video = None
        self._renew(worker)
        return done

    def _renew(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process, worker.done = self._start(), 0
