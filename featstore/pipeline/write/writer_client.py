"""The parent's side of the writer process: records in shared slots go there, word of what was committed comes back."""

from __future__ import annotations

import dataclasses
from typing import IO, TYPE_CHECKING, Any

from featstore import errors
from featstore.errors import StoreError
from featstore.store import report_waiting
from featstore.system.processes import Child, Slots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from featstore.records.record import Header
    from featstore.store.catalog import Failure

MODULE = "featstore.pipeline.write.writer_process"


@dataclasses.dataclass
class Committed:
    """What one commit made durable: (video id, record bytes) of the stored, ids of the failed.

    slots: free again. busy: seconds of work it took.
    """

    stored: list[tuple[str, int]]
    failed: list[str]
    slots: list[int]
    busy: float


class WriterProcess:
    """Spawns the writer and hands it records that lie in slots; a slot is free again with its commit.

    prefix_room: bytes kept free before each payload, where the writer puts the record's prefix.
    """

    def __init__(
        self, slots: Slots, *, prefix_room: int, setup: dict[str, Any], log: IO[bytes]
    ) -> None:
        """Start it and wait until it holds the dataset; raise what it could not do."""
        self._room = prefix_room
        self._log = log
        self._unanswered = 0
        self._child = Child(MODULE, slots, log, setup)
        try:
            while self._receive()["kind"] != "ready":
                pass
        except BaseException:
            self._child.kill()  # it was given nothing yet
            raise

    @property
    def connection(self) -> Connection:
        """Return what to wait for: readable when a commit is done, or the writer died."""
        return self._child.connection

    @property
    def idle(self) -> bool:
        """Return whether everything handed over was answered for."""
        return self._unanswered == 0

    def put(self, slot: int, header: Header, scale: bytes, codec: str) -> None:
        """Hand over the record whose payload was written to `slot`; scale: its float32 as bytes."""
        fields = dataclasses.asdict(header)
        self._send(
            {
                "kind": "put",
                "slot": slot,
                "header": fields,
                "scale": scale,
                "payload_start": self._room,
                "codec": codec,
            }
        )

    def fail(self, failure: Failure, *, drop: bool = False) -> None:
        """Have a failure recorded; `drop`: and what is stored of the video removed."""
        self._send({"kind": "fail", "failure": dataclasses.asdict(failure), "drop": drop})

    def collect(self) -> Iterator[Committed]:
        """Yield the commits since the last call, without waiting; raise what the writer could not do."""
        while self.connection.poll():
            yield from self._commits(self._receive())

    def finish(self) -> Iterator[Committed]:
        """Yield commits until all that was handed over is in one; raise what the writer could not do."""
        while not self.idle:
            yield from self._commits(self._receive())

    def close(self) -> None:
        """Let it end: it commits what it has, and goes."""
        self._child.connection.close()
        self._child.process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        self._unanswered += 1
        self._child.send(message)

    def _receive(self) -> dict[str, Any]:
        try:
            message = self._child.receive()
        except EOFError:
            end = self._child.describe_end(self._log)
            self.close()
            raise StoreError(
                f"the writer process died, {end}; what it committed is stored: run the same command again"
            ) from None
        if message["kind"] == "error":
            self.close()
            raise getattr(errors, message["type"])(message["message"])
        if message["kind"] == "said":
            report_waiting(message["sentence"])
        return message

    def _commits(self, message: dict[str, Any]) -> Iterator[Committed]:
        if message["kind"] == "committed":
            self._unanswered -= len(message["stored"]) + len(message["failed"])
            stored = [(video, size) for video, size in message["stored"]]
            yield Committed(stored, message["failed"], message["slots"], message["busy"])
