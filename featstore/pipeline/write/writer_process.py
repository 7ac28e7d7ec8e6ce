"""The process that owns the write transaction: features come in shared memory and leave in commits.

A thread packs the next record while the disk writes the last one. No transaction is held while the parent has nothing
to say: what was put is committed first. When the parent dies it commits what it has received completely, and ends.
"""

# ruff: noqa: TC001 (the types of fields are read when a message is rebuilt)

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.decoding.frame_selection import Clip
from featstore.decoding.video_file import Video
from featstore.errors import FeatstoreError, StoreFull
from featstore.pipeline.make_record import make_header
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.records.record import pack_record, parse
from featstore.records.storage import Storage
from featstore.spec import FeatureSpec
from featstore.store import ingest_lock, report_waiting_to
from featstore.store.paths import dataset_path, make_folder
from featstore.store.rows import Entry, Failure
from featstore.store.writer import FeatureWriter
from featstore.system import libc
from featstore.system.processes import ErrorMessage, Slots, join_parent, receive, send

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MODULE = "featstore.pipeline.write.writer_process"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class WriterSetup:
    """The first message to the writer.

    spec, storage, origin, names, max_error, replace_storage, replace_max_error: see FeatureWriter.add_set.
    min_free, max_size, lock_wait: see featstore.IngestOptions.
    slots: hold a record each, its payload from `payload_start` on; the writer puts the record's prefix before it.
    """

    cache_dir: str
    dataset: str
    spec: FeatureSpec
    storage: Storage
    origin: str
    names: dict[str, str]
    max_error: float | None
    replace_storage: bool
    replace_max_error: bool
    min_free: int
    max_size: int | None
    lock_wait: float
    slots: Slots
    payload_start: int


@dataclass(frozen=True)
class WriterReady:
    """The writer holds the dataset."""


@dataclass(frozen=True)
class WaitNotice:
    """The writer waits for a lock; the sentence is for the user."""

    sentence: str


@dataclass(frozen=True)
class PutRecord:
    """A record to store.

    slot: of its payload. video, clip, source: what was encoded. grid: (height, width) of a unit's tokens, if they
    differ by video. storage: how the values are stored. scales: float32, as bytes. error: how far they are from the
    encoder's.
    """

    slot: int
    video: Video
    clip: Clip
    source: SourceFingerprint
    grid: tuple[int, int] | None
    storage: Storage
    scales: bytes
    error: QuantError


@dataclass(frozen=True)
class PutWhole:
    """A record to store that was made elsewhere and verified here: the first `size` bytes of a slot."""

    slot: int
    size: int


@dataclass(frozen=True)
class PutFailure:
    """A failure to record; drop: what is stored of the video is removed."""

    failure: Failure
    drop: bool


@dataclass(frozen=True)
class Committed:
    """What one commit made durable: (video id, record bytes) of the stored, ids of the failed.

    slots: free again. busy: seconds of work it took.
    """

    stored: tuple[tuple[str, int], ...]
    failed: tuple[str, ...]
    slots: tuple[int, ...]
    busy: float


def main() -> None:
    """Serve the parent; report any error to it, and end."""
    connection, setup = join_parent(WriterSetup, die_with_parent=False)
    # LMDB allocates the memory for each record again, and glibc has the kernel map and clear so much each time:
    # 80 to 100 ms for 66 MB in a virtual machine, 12 to 15 if it keeps what was freed.
    if libc.mallopt is not None:  # glibc's
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    report_waiting_to(lambda sentence: _tell(connection, WaitNotice(sentence)))
    try:
        _serve(connection, setup)
    except FeatstoreError as exc:
        _tell(connection, ErrorMessage.of(exc))


def _serve(connection: Connection, setup: WriterSetup) -> None:
    cache_dir, dataset = setup.cache_dir, setup.dataset
    folder = dataset_path(cache_dir, dataset)
    make_folder(folder)
    with (
        ingest_lock(folder, wait=setup.lock_wait),
        FeatureWriter(
            cache_dir, dataset, min_free=setup.min_free, max_size=setup.max_size
        ) as writer,
    ):
        writer.add_set(
            setup.spec,
            setup.storage,
            origin=setup.origin,
            names=setup.names,
            max_error=setup.max_error,
            replace_storage=setup.replace_storage,
            replace_max_error=setup.replace_max_error,
        )
        _tell(connection, WriterReady())
        _Session(connection, writer, setup).run()


@dataclass(frozen=True)
class _Packed:
    """A record ready to be put, and its slot."""

    slot: int
    header: Header
    record: memoryview


class _Session:
    """What was put since the last commit, and how long the writer has worked on it."""

    def __init__(self, connection: Connection, writer: FeatureWriter, setup: WriterSetup) -> None:
        self._connection = connection
        self._writer = writer
        self._setup = setup
        self._packed: queue.SimpleQueue[_Packed | PutFailure | BaseException] = queue.SimpleQueue()
        self._used: list[int] = []
        self._waiting = 0
        self._busy = 0.0

    def run(self) -> None:
        threading.Thread(target=self._hear, daemon=True).start()
        while True:
            if self._waiting and (self._writer.due or self._nothing_waits):
                self._commit()
            found = self._packed.get()
            if isinstance(found, (EOFError, ConnectionResetError)):
                return
            if isinstance(found, BaseException):
                raise found
            started = time.perf_counter()
            if isinstance(found, PutFailure):
                self._writer.fail(found.failure, drop=found.drop)
            else:
                self._put(found)
            self._waiting += 1
            self._busy += time.perf_counter() - started

    @property
    def _nothing_waits(self) -> bool:
        return self._packed.empty() and not self._connection.poll()

    def _hear(self) -> None:
        try:
            while True:
                message: PutRecord | PutWhole | PutFailure = receive(
                    self._connection, PutRecord, PutWhole, PutFailure
                )
                self._packed.put(
                    message if isinstance(message, PutFailure) else self._pack(message)
                )
        except BaseException as exc:
            self._packed.put(exc)

    def _pack(self, put: PutRecord | PutWhole) -> _Packed:
        memory = self._setup.slots.slot(put.slot)
        if isinstance(put, PutWhole):
            record = memory[: put.size]
            return _Packed(put.slot, parse(record).header, record)
        setup = self._setup
        found = pack_slot(put, memory, setup.spec, setup.dataset, setup.payload_start)
        return _Packed(put.slot, *found)

    def _put(self, packed: _Packed) -> None:
        try:
            self._writer.put(packed.header, packed.record)
        except StoreFull:
            self._commit()  # what was put before fits
            raise
        self._used.append(packed.slot)

    def _commit(self) -> None:
        started = time.perf_counter()
        rows = self._writer.commit()
        busy = self._busy + time.perf_counter() - started
        stored = tuple((row.video_id, row.record_bytes) for row in rows if isinstance(row, Entry))
        failed = tuple(row.video_id for row in rows if isinstance(row, Failure))
        _tell(self._connection, Committed(stored, failed, tuple(self._used), busy))
        self._used, self._waiting, self._busy = [], 0, 0.0


def pack_slot(
    put: PutRecord, memory: memoryview, spec: FeatureSpec, dataset: str, payload_start: int
) -> tuple[Header, memoryview]:
    """Return the header and the bytes of a record, made of the payload in `memory`, the slot that holds it."""
    header = make_header(
        spec,
        put.storage,
        dataset,
        put.video,
        put.clip,
        put.source,
        grid=put.grid,
        error=put.error,
    )
    payload = slice(payload_start, payload_start + header.raw_bytes)
    return pack_record(header, put.scales, memory, payload)


def _tell(connection: Connection, message: object) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what was committed stays
        send(connection, message)


if __name__ == "__main__":
    main()
