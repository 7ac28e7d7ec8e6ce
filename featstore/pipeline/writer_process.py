"""The process that owns the write transaction: features come in shared memory, leave in commits.

It never holds a transaction while it waits: whatever was put is committed before it listens again with nothing to do.
When its parent dies it commits what it was given whole, and ends.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from featstore.children import join_parent, receive, send
from featstore.errors import FeatstoreError, StoreFull
from featstore.quant import QuantError
from featstore.record import Header, SourceFingerprint
from featstore.spec import FeatureSpec
from featstore.store.catalog import Entry, Failure
from featstore.store.compact import clear_leftovers
from featstore.store.layout import dataset_path, make_folder
from featstore.store.lock import ingest_lock
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from featstore.children import Slots


def main() -> None:
    """Serve the parent; tell it of any error, and end."""
    connection, first, slots = join_parent(die_with_parent=False)
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
        _ingest_lock(folder, first["lock_wait"]),
        FeatureWriter(cache_dir, dataset, **limits) as writer,
    ):
        writer.add_set(spec, first["origin"])
        _tell(connection, {"kind": "ready"})
        _Session(connection, writer, spec, slots).run()


@contextlib.contextmanager
def _ingest_lock(folder: Path, wait: float) -> Iterator[None]:
    with ingest_lock(folder, wait=wait):
        clear_leftovers(folder)  # a killed compaction's: its room is wanted
        yield


class _Session:
    """What was put since the last commit, and how long the writer has worked on it."""

    def __init__(
        self, connection: Connection, writer: FeatureWriter, spec: FeatureSpec, slots: Slots
    ) -> None:
        self._connection = connection
        self._writer = writer
        self._spec = spec
        self._slots = slots
        self._used: list[int] = []
        self._waiting = 0
        self._busy = 0.0

    def run(self) -> None:
        while True:
            if self._waiting and (self._writer.due or not self._connection.poll()):
                self._commit()
            try:
                message = receive(self._connection)
            except (EOFError, ConnectionResetError):
                return
            begun = time.perf_counter()
            if message["kind"] == "put":
                self._put(message)
            else:
                self._writer.fail(self._spec, Failure(**message["failure"]))
            self._waiting += 1
            self._busy += time.perf_counter() - begun

    def _put(self, message: dict[str, Any]) -> None:
        fields = message["header"]
        header = Header(
            **{
                **fields,
                "shape": tuple(fields["shape"]),
                "source": SourceFingerprint(**fields["source"]),
                "error": QuantError(**fields["error"]),
            }
        )
        start = message["payload_start"]
        payload = slice(start, start + header.raw_bytes)
        memory = self._slots.slot(message["slot"])
        try:
            self._writer.put(
                self._spec, header, message["scale"], memory, payload, codec=message["codec"]
            )
        except StoreFull:
            self._commit()  # what was put before fits
            raise
        self._used.append(message["slot"])

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
