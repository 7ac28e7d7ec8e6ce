"""The parent's side of the writer process: it is given records in shared slots, and reports what was committed."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from featstore.errors import StoreError
from featstore.pipeline.write.writer_process import (
    MODULE,
    Committed,
    PutFailure,
    PutRecord,
    WaitNotice,
    WriterReady,
    WriterSetup,
)
from featstore.store import report_waiting
from featstore.system.processes import ErrorMessage, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from featstore.store.rows import Failure


class WriterProcess:
    """Starts the writer and gives it the records in slots; a slot is free again with its commit."""

    def __init__(self, setup: WriterSetup, *, log: IO[bytes]) -> None:
        """Start it and wait until it holds the dataset; raise what it could not do."""
        self._log = log
        self._unanswered = 0
        self._process = WorkerProcess(MODULE, setup, [setup.slots], log)
        try:
            while not isinstance(self._receive(), WriterReady):
                pass
        except BaseException:
            self._process.kill()  # it was given nothing yet
            raise

    @property
    def connection(self) -> Connection:
        """Return what to wait for: readable when a commit is done, or the writer died."""
        return self._process.connection

    @property
    def idle(self) -> bool:
        """Return whether everything it was given is committed."""
        return self._unanswered == 0

    def put(self, record: PutRecord) -> None:
        """Give it a record whose payload was written to its slot."""
        self._send(record)

    def fail(self, failure: Failure, *, drop: bool = False) -> None:
        """Have a failure recorded; drop: and what is stored of the video removed."""
        self._send(PutFailure(failure, drop))

    def collect(self) -> Iterator[Committed]:
        """Yield the commits since the last call, without waiting; raise what the writer could not do."""
        while self.connection.poll():
            yield from self._commits()

    def finish(self) -> Iterator[Committed]:
        """Yield commits until everything it was given is in one; raise what the writer could not do."""
        while not self.idle:
            yield from self._commits()

    def close(self) -> None:
        """Let it end: it commits what it has, and exits."""
        self._process.connection.close()
        self._process.process.wait()

    def _send(self, message: PutRecord | PutFailure) -> None:
        self._unanswered += 1
        self._process.send(message)

    def _commits(self) -> Iterator[Committed]:
        message = self._receive()
        if isinstance(message, Committed):
            self._unanswered -= len(message.stored) + len(message.failed)
            yield message

    def _receive(self) -> Committed | WaitNotice | WriterReady:
        message: Committed | WaitNotice | WriterReady | ErrorMessage
        try:
            message = self._process.receive(Committed, WaitNotice, WriterReady, ErrorMessage)
        except EOFError:
            end = self._process.describe_end(self._log)
            self.close()
            raise StoreError(
                f"the writer process died, {end}; what it committed is stored: run the same command again"
            ) from None
        if isinstance(message, ErrorMessage):
            self.close()
            raise message.exception()
        if isinstance(message, WaitNotice):
            report_waiting(message.sentence)
        return message
