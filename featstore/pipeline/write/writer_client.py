"""The parent's side of the writer process: it is given records in shared slots, and reports what was committed."""

from __future__ import annotations

import os
import tempfile
from typing import IO, TYPE_CHECKING

from featstore.errors import StoreError
from featstore.pipeline.make_record import record_room
from featstore.pipeline.write.writer_process import (
    MODULE,
    Committed,
    PutFailure,
    PutRecord,
    PutWhole,
    WaitNotice,
    WriterReady,
    WriterSetup,
)
from featstore.store import report_waiting
from featstore.system.processes import ErrorMessage, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from multiprocessing.connection import Connection

    from featstore.encoders.base import Encoder
    from featstore.pipeline.options import IngestOptions
    from featstore.pipeline.summary import IngestSummary
    from featstore.store.rows import Failure
    from featstore.system.processes import Slots


def start_writer(
    stack: ExitStack,
    summary: IngestSummary,
    encoder: Encoder,
    cache_dir: str | os.PathLike[str],
    options: IngestOptions,
    slots: Slots,
) -> WriterProcess:
    """Return a writer that holds the dataset of a plan; `stack` ends it.

    Args:
        stack: ends what is started.
        summary: of the plan.
        encoder: makes the features; its names are written into a new feature set.
        cache_dir: the folder of datasets.
        options: see `featstore.ingest`.
        slots: hold a record each.
    """
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    payload_start, _ = record_room(summary.spec, summary.storage)
    setup = WriterSetup(
        cache_dir=os.fspath(cache_dir),
        dataset=summary.dataset,
        spec=summary.spec,
        storage=summary.storage,
        origin=encoder.origin,
        names=encoder.names,
        max_error=summary.budget.max_error,
        replace_storage=options.replace_storage,
        replace_max_error=options.max_error is not None,
        min_free=options.min_free,
        max_size=options.max_size,
        lock_wait=options.lock_wait,
        slots=slots,
        payload_start=payload_start,
    )
    writer = WriterProcess(setup, log=log)
    stack.callback(writer.close)
    summary.begun = True
    return writer


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
    def connections(self) -> list[Connection]:
        """Return what to wait for: readable when a commit is done, or the writer died."""
        return [self._process.connection]

    @property
    def idle(self) -> bool:
        """Return whether everything it was given is committed."""
        return self._unanswered == 0

    def put(self, record: PutRecord) -> None:
        """Give it a record whose payload was written to its slot."""
        self._send(record)

    def put_whole(self, slot: int, size: int) -> None:
        """Give it the record that the first `size` bytes of a slot are."""
        self._send(PutWhole(slot, size))

    def fail(self, failure: Failure, *, drop: bool = False) -> None:
        """Have a failure recorded; drop: and what is stored of the video removed."""
        self._send(PutFailure(failure, drop))

    def collect(self) -> Iterator[Committed]:
        """Yield the commits since the last call, without waiting; raise what the writer could not do."""
        while self._process.connection.poll():
            yield from self._commits()

    def finish(self) -> Iterator[Committed]:
        """Yield commits until everything it was given is in one; raise what the writer could not do."""
        while not self.idle:
            yield from self._commits()

    def close(self) -> None:
        """Let it end: it commits what it has, and exits."""
        self._process.connection.close()
        self._process.process.wait()

    def _send(self, message: PutRecord | PutWhole | PutFailure) -> None:
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
