"""The parent's side of the encoders: each is given videos and answers when they are encoded.

One encoder runs in a thread of this process, several in a process each, built again there from their recipes; both are
reached over a pipe. An encoder that dies ends the ingest: going on without it would take twice as long and not say so,
and the same command resumes where it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import threading
from multiprocessing.connection import Pipe
from typing import IO, TYPE_CHECKING, TypeAlias

from featstore.errors import FeatstoreError, StoreMismatch
from featstore.pipeline.encode.base import (
    BatchProgress,
    EncodeRefusal,
    EncodeResult,
    EncoderReady,
    EncoderSetup,
)
from featstore.pipeline.encode.encode_loop import serve
from featstore.system.processes import ErrorMessage, WorkerProcess, receive, send

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from multiprocessing.connection import Connection

    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.encode.base import EncoderAnswer
    from featstore.pipeline.encode.batches import EncodeTask
    from featstore.pipeline.shared_memory import Memory

MODULE = "featstore.pipeline.encode.encoder_process"


EncoderWorker: TypeAlias = "EncoderThread | EncoderProcess"


def start_encoders(
    stack: ExitStack, encoder: Encoder, recipes: list[EncoderRecipe], memory: Memory
) -> list[EncoderWorker]:
    """Start a process for each recipe, or a thread for the encoder if there are none; `stack` ends them."""
    if not recipes:
        thread = EncoderThread(encoder, memory)
        stack.callback(thread.close)
        return [thread]
    workers: list[EncoderWorker] = []
    for recipe in recipes:
        log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
        worker = EncoderProcess(recipe, memory, batch_frames=encoder.batch_frames, log=log)
        stack.callback(worker.close)
        workers.append(worker)
    return workers


class EncoderThread:
    """An encoder object in a thread of this process; its `connection` is readable when it has answered, or died."""

    ready = True

    def __init__(self, encoder: Encoder, memory: Memory) -> None:
        """Start the thread. It is not a daemon: torch must not lose its thread in the middle of a batch."""
        self.connection, there = Pipe()
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        threading.Thread(
            target=self._run, args=(there, encoder, memory), name="featstore-encoder"
        ).start()

    def give(self, task: EncodeTask) -> None:
        """Have a video encoded."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `collect` will tell
            send(self.connection, task)

    def collect(self) -> Iterator[EncoderAnswer]:
        """Yield the answers since the last call, without waiting; raise what the encoder raised."""
        while self.connection.poll():
            try:
                answer: EncoderAnswer = receive(
                    self.connection, BatchProgress, EncodeResult, EncodeRefusal
                )
                yield answer
            except (EOFError, ConnectionResetError):
                assert self._failure is not None
                raise self._failure from None

    def close(self) -> None:
        """Let it finish its batch and end.

        An interrupt may end the wait: then the interpreter waits, when it exits. After an interrupted `join` it would
        not (Python 3.12 and older take the thread for ended), and kill the thread inside torch, which aborts.
        """
        self.connection.close()
        self._ended.wait()

    def _run(self, there: Connection, encoder: Encoder, memory: Memory) -> None:
        try:
            serve(there, encoder, memory, batch_frames=encoder.batch_frames)
        except BaseException as exc:
            self._failure = exc
        finally:
            there.close()
            self._ended.set()


class EncoderProcess:
    """An encoder in a process of its own; its `connection` is readable when it has answered, or died."""

    def __init__(
        self, recipe: EncoderRecipe, memory: Memory, *, batch_frames: int, log: IO[bytes]
    ) -> None:
        """Start it; it is ready once it has reported its identity."""
        self._name = str(recipe)
        self._spec = memory.spec
        self._log = log
        self.ready = False
        frames, records = memory.frame_slots, memory.record_slots
        setup = EncoderSetup(
            recipe, memory.spec, memory.storage, batch_frames, frames, records, memory.budget
        )
        self._process = WorkerProcess(MODULE, setup, (frames, records), log)
        self.connection = self._process.connection

    def give(self, task: EncodeTask) -> None:
        """Have a video encoded."""
        self._process.send(task)

    def collect(self) -> Iterator[EncoderAnswer]:
        """Yield the answers since the last call, without waiting; raise what ended the process."""
        while self.connection.poll():
            answer = self._receive()
            if isinstance(answer, ErrorMessage):
                raise answer.exception(f"{self._name}: ")
            if isinstance(answer, EncoderReady):
                self._check(answer)
                self.ready = True
            else:
                yield answer

    def _receive(self) -> EncoderAnswer | EncoderReady | ErrorMessage:
        answer: EncoderAnswer | EncoderReady | ErrorMessage
        try:
            answer = self._process.receive(
                BatchProgress, EncodeResult, EncodeRefusal, EncoderReady, ErrorMessage
            )
        except EOFError:
            end = self._process.describe_end(self._log)
            raise FeatstoreError(
                f"the encoder process ({self._name}) died, {end}; what was committed is stored: "
                "run the same command again, without that device if it is at fault"
            ) from None
        return answer

    def close(self) -> None:
        """Kill it; what it is encoding is lost."""
        self._process.kill()

    def _check(self, ready: EncoderReady) -> None:
        theirs = dataclasses.replace(
            self._spec, encoder=ready.identity, preprocessing=ready.preprocessing
        )
        if theirs.digest != self._spec.digest:
            name, expected, found = self._spec.diff(theirs)[0]
            raise StoreMismatch(
                f"the encoder {self._name} has {name} {found}, the first one has {expected}; all must make the same "
                "features: give them one checkpoint, which nothing replaces while they start, and one --dtype"
            )
