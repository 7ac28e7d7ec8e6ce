"""What takes the writer's place where records go elsewhere than into a dataset of this machine: they are handed out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.pipeline.write.writer_process import Committed, PutRecord, pack_slot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from featstore.records.header import Header
    from featstore.spec import FeatureSpec
    from featstore.store.rows import Failure
    from featstore.system.processes import Slots


@dataclass(frozen=True)
class MadeRecord:
    """A record as it is stored; its bytes are in a slot, and valid until the next one is taken."""

    header: Header
    record: memoryview


class RecordSink:
    """Has the face of a WriterProcess, and hands out what it is given as records and failures."""

    connections: tuple[Connection, ...] = ()

    def __init__(self, slots: Slots, spec: FeatureSpec, dataset: str, payload_start: int) -> None:
        """Start with nothing.

        Args:
            slots: hold a record each.
            spec: the feature set.
            dataset: the name of the dataset that the records are for.
            payload_start: where a payload starts in its slot.
        """
        self._slots = slots
        self._about = spec, dataset, payload_start
        self._given: deque[PutRecord | Failure] = deque()
        self._done: list[Committed] = []

    def put(self, record: PutRecord) -> None:
        """Take a record whose payload was written to its slot."""
        self._given.append(record)

    def fail(self, failure: Failure, *, drop: bool = False) -> None:
        """Take a failure; `drop` is for who records it to know."""
        self._given.append(failure)

    def take(self) -> Iterator[MadeRecord | Failure]:
        """Yield what was given since the last call; a record's slot is free again when the next is asked for."""
        while self._given:
            given = self._given.popleft()
            if not isinstance(given, PutRecord):
                yield given
                continue
            header, record = pack_slot(given, self._slots.slot(given.slot), *self._about)
            stored = (header.video_id, len(record))
            yield MadeRecord(header, record)
            self._done.append(Committed((stored,), (), (given.slot,), 0.0))

    def collect(self) -> Iterator[Committed]:
        """Yield what was handed out since the last call."""
        done, self._done = self._done, []
        yield from done

    finish = collect
