"""The parent's side of the encoders: each a lane, given videos and heard when they are encoded.

One encoder runs in a thread of this process, several in a process each, rebuilt there from their recipes; both are
spoken to over a pipe. A lane that dies ends the ingest: to go on without it would take twice as long and say nothing of
it, and the same command goes on where it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import threading
from multiprocessing.connection import Pipe
from typing import IO, TYPE_CHECKING, Protocol

from featstore import errors
from featstore.errors import FeatstoreError, StoreMismatch
from featstore.fields import build
from featstore.pipeline.encode.encode_loop import serve
from featstore.spec import EncoderIdentity
from featstore.system.processes import Child, receive, send

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from multiprocessing.connection import Connection

    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.encode.encode_loop import Answer
    from featstore.pipeline.shared_memory import Memory

MODULE = "featstore.pipeline.encode.encoder_process"


class Lane(Protocol):
    """An encoder at work; readable `connection`: it has answered, or died."""

    connection: Connection

    @property
    def ready(self) -> bool:
        """Return whether its features are known to be those of the spec."""
        ...

    def give(self, request: dict[str, int]) -> None:
        """Have a video encoded; the request is a `Job`'s."""
        ...

    def collect(self) -> Iterator[Answer]:
        """Yield the answers since the last call, without waiting; raise what ended the encoder."""
        ...

    def close(self) -> None:
        """End it; what it is at is lost."""
        ...


def start_lanes(
    stack: ExitStack, encoder: Encoder, recipes: list[EncoderRecipe], memory: Memory
) -> list[Lane]:
    """Start a process for each recipe, or a thread for the encoder where there are none; `stack` ends them."""
    if not recipes:
        thread = ThreadLane(encoder, memory)
        stack.callback(thread.close)
        return [thread]
    lanes: list[Lane] = []
    for recipe in recipes:
        log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
        lane = ProcessLane(recipe, memory, batch_frames=encoder.batch_frames, log=log)
        stack.callback(lane.close)
        lanes.append(lane)
    return lanes


class ThreadLane:
    """An encoder object in a thread of this process."""

    ready = True

    def __init__(self, encoder: Encoder, memory: Memory) -> None:
        """Start the thread. It is no daemon: torch must not lose its thread in the middle of a batch."""
        self.connection, there = Pipe()
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        threading.Thread(
            target=self._run, args=(there, encoder, memory), name="featstore-encoder"
        ).start()

    def give(self, request: dict[str, int]) -> None:
        """Have a video encoded."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # shows when listened to
            send(self.connection, request)

    def collect(self) -> Iterator[Answer]:
        """Yield the answers; raise what the encoder raised."""
        while self.connection.poll():
            try:
                yield receive(self.connection)
            except (EOFError, ConnectionResetError):
                assert self._failure is not None
                raise self._failure from None

    def close(self) -> None:
        """Let it end its batch, and go.

        An interrupt may end the waiting: then the interpreter waits, when it ends. After an interrupted `join` it would
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


class ProcessLane:
    """An encoder in a process of its own."""

    def __init__(
        self, recipe: EncoderRecipe, memory: Memory, *, batch_frames: int, log: IO[bytes]
    ) -> None:
        """Start it; it is ready once it has shown its identity."""
        self._name = str(recipe)
        self._spec = memory.spec
        self._log = log
        self.ready = False
        first = {
            "recipe": recipe.to_dict(),
            "spec": memory.spec.to_dict(),
            "batch_frames": batch_frames,
        }
        self._child = Child(MODULE, memory.frame_slots, log, first, records=memory.record_slots)
        self.connection = self._child.connection

    def give(self, request: dict[str, int]) -> None:
        """Have a video encoded."""
        self._child.send(request)

    def collect(self) -> Iterator[Answer]:
        """Yield the answers; raise what ended the process."""
        while self.connection.poll():
            try:
                answer = self._child.receive()
            except EOFError:
                end = self._child.describe_end(self._log)
                raise FeatstoreError(
                    f"the encoder process ({self._name}) died, {end}; what was committed is stored: "
                    "run the same command again, without that device if it is at fault"
                ) from None
            if "failed" in answer:
                raise errors.retold(answer["failed"], f"{self._name}: {answer['message']}")
            if "identity" in answer:
                self._check(build(EncoderIdentity, answer["identity"]))
                self.ready = True
            else:
                yield answer

    def close(self) -> None:
        """Kill it."""
        self._child.kill()

    def _check(self, identity: EncoderIdentity) -> None:
        theirs = dataclasses.replace(self._spec, encoder=identity)
        if theirs.digest != self._spec.digest:
            name, expected, found = self._spec.diff(theirs)[0]
            raise StoreMismatch(
                f"the encoder {self._name} has {name} {found}, the first one has {expected}; all must make the same "
                "features: give them one checkpoint, which nothing replaces while they start, and one --dtype"
            )
