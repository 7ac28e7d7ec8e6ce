"""The process that owns the write transaction: features come in shared memory, leave in commits.

A thread packs the next record while the disk writes the last one. No transaction is held while the parent has nothing
to say: whatever was put is committed first. When the parent dies it commits what it was given whole, and ends.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError, StoreFull
from featstore.records.quantization import QuantError
from featstore.records.record import Header, SourceFingerprint
from featstore.spec import FeatureSpec
from featstore.store import ingest_lock, report_waiting_to
from featstore.store.catalog import Entry, Failure
from featstore.store.paths import dataset_path, make_folder
from featstore.store.writer import FeatureWriter, pack_record
from featstore.system import libc
from featstore.system.processes import join_parent, receive, send

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from featstore.system.processes import Slots


def main() -> None:
    """Serve the parent; tell it of any error, and end."""
    connection, first, slots = join_parent(die_with_parent=False)
    # LMDB allocates the room for each record anew, and glibc has the kernel map and clear so much memory each time:
    # 80 to 100 ms for 66 MB in a virtual machine, 12 to 15 if it keeps what was freed.
    libc.keep_freed_memory()
    report_waiting_to(lambda sentence: _tell(connection, {"kind": "said", "sentence": sentence}))
    try:
        _serve(connection, first, slots)
    except FeatstoreError as exc:
        _tell(connection, {"kind": "error", "type": type(exc).__name__, "message": str(exc)})


def _serve(connection: Connection, first: dict[str, Any], slots: Slots) -> None:
    cache_dir, dataset = first["cache_dir"], first["dataset"]
    spec = FeatureSpec.from_dict(first["spec"])
    folder = dataset_path(cache_dir, dataset)
    make_folder(folder)
    limits = {"min_free": first["min_free"], "max_size": first["max_size"]}
    with (
        ingest_lock(folder, wait=first["lock_wait"]),
        FeatureWriter(cache_dir, dataset, **limits) as writer,
    ):
        writer.add_set(spec, first["origin"])
        _tell(connection, {"kind": "ready"})
        _Session(connection, writer, spec, slots).run()


@dataclass(frozen=True)
class _Packed:
    """A record ready to be put, and the slot it lies in."""

    slot: int
    header: Header
    record: memoryview


@dataclass(frozen=True)
class _Failed:
    """A failure to record, and whether what is stored of the video goes."""

    failure: Failure
    drop: bool


class _Session:
    """What was put since the last commit, and how long the writer has worked on it."""

    def __init__(
        self, connection: Connection, writer: FeatureWriter, spec: FeatureSpec, slots: Slots
    ) -> None:
        self._connection = connection
        self._writer = writer
        self._spec = spec
        self._slots = slots
        self._packed: queue.SimpleQueue[_Packed | _Failed | BaseException] = queue.SimpleQueue()
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
            begun = time.perf_counter()
            if isinstance(found, _Failed):
                self._writer.fail(self._spec, found.failure, drop=found.drop)
            else:
                self._put(found)
            self._waiting += 1
            self._busy += time.perf_counter() - begun

    @property
    def _nothing_waits(self) -> bool:
        return self._packed.empty() and not self._connection.poll()

    def _hear(self) -> None:
        try:
            while True:
                message = receive(self._connection)
                if message["kind"] == "fail":
                    self._packed.put(_Failed(Failure(**message["failure"]), message["drop"]))
                else:
                    self._packed.put(self._pack(message))
        except BaseException as exc:
            self._packed.put(exc)

    def _pack(self, message: dict[str, Any]) -> _Packed:
        fields = message["header"]
        header = Header(
            **{
                **fields,
                "shape": tuple(fields["shape"]),
                "source": SourceFingerprint(**fields["source"]),
                "error": QuantError(**fields["error"]),
            }
        )
        start, slot = message["payload_start"], message["slot"]
        payload, memory = slice(start, start + header.raw_bytes), self._slots.slot(slot)
        packed = pack_record(header, message["scale"], memory, payload, codec=message["codec"])
        return _Packed(slot, *packed)

    def _put(self, packed: _Packed) -> None:
        try:
            self._writer.put_packed(self._spec, packed.header, packed.record)
        except StoreFull:
            self._commit()  # what was put before fits
            raise
        self._used.append(packed.slot)

    def _commit(self) -> None:
        begun = time.perf_counter()
        rows = self._writer.commit()
        busy = self._busy + time.perf_counter() - begun
        _tell(
            self._connection,
            {
                "kind": "committed",
                "stored": [[r.video_id, r.record_bytes] for r in rows if isinstance(r, Entry)],
                "failed": [r.video_id for r in rows if isinstance(r, Failure)],
                "slots": self._used,
                "busy": busy,
            },
        )
        self._used, self._waiting, self._busy = [], 0, 0.0


def _tell(connection: Connection, message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what was committed stays
        send(connection, message)


if __name__ == "__main__":
    main()
