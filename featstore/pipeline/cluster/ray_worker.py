"""A worker of an ingest under Ray: it decodes and encodes as an ingest of one machine does, and yields the records.

It keeps nothing on a disk, and what it makes counts only once the driver has stored it: a worker that is believed dead
and goes on does no harm.
"""

# ruff: noqa: TC001 (the types of fields are read when a message is rebuilt)

from __future__ import annotations

import platform
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import featstore
from featstore.decoding.video_file import Video, identity_of
from featstore.encoders.registry import EncoderRecipe
from featstore.errors import FeatstoreError
from featstore.pipeline.make_record import record_room
from featstore.pipeline.options import IngestOptions
from featstore.pipeline.scheduler import Scheduler
from featstore.pipeline.summary import IngestSummary
from featstore.pipeline.write.record_sink import MadeRecord, RecordSink
from featstore.preprocessing import Preprocessing
from featstore.records.budget import ErrorBudget
from featstore.records.storage import Storage
from featstore.spec import EncoderIdentity, FeatureSpec
from featstore.system.processes import ErrorMessage, pack_message, unpack_message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from featstore.encoders.base import Encoder


@dataclass(frozen=True)
class RayWork:
    """What a worker is to make; recipe: builds its encoder. workers: decode processes."""

    dataset: str
    spec: FeatureSpec
    storage: Storage
    budget: ErrorBudget
    recipe: EncoderRecipe
    workers: int
    decode_timeout: float
    decode_memory: int
    decoder: str


@dataclass(frozen=True)
class RayJoin:
    """What a worker is, for the driver to compare with itself: featstore's version, and what determines features."""

    version: str
    node: str
    encoder: EncoderIdentity
    preprocessing: Preprocessing
    decoder: str


@dataclass(frozen=True)
class RayVideos:
    """Videos to decode and encode."""

    videos: tuple[Video, ...]


@dataclass(frozen=True)
class RayAnswer:
    """What became of a video: its record comes with it, or there is a reason.

    decode, encode: seconds of work since the last answer.
    """

    video_id: str
    reason: str
    decode: float
    encode: float


class RayWorker:
    """The class of the actors; `stop` is called while `work` goes on, all else one after the other."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._scheduler: Scheduler | None = None
        self._held = 0

    def join(self, work: bytes) -> bytes:
        """Build the encoder of a RayWork; return a RayJoin, or an ErrorMessage. Messages are bytes, never pickled."""
        try:
            self._work: RayWork = unpack_message(work, RayWork)
            self._encoder: Encoder = self._work.recipe.build()
            about = self._encoder.identity, self._encoder.preprocessing
            decoder = identity_of(self._work.decoder)
            joined = RayJoin(featstore.__version__, platform.node(), *about, decoder)
        except FeatstoreError as exc:
            return pack_message(ErrorMessage.of(exc))
        return pack_message(joined)

    def work(self, videos: bytes, keep: int) -> Iterator[tuple[bytes, Any]]:
        """Take videos, and yield what became of any, a RayAnswer and a record, until at most `keep` are left here."""
        if self._scheduler is None:
            self._scheduler = self._start()
        found = unpack_message(videos, RayVideos).videos
        self._held += len(found)
        self._scheduler.add(list(found))
        while True:
            for made in self._sink.take():
                self._held -= 1
                yield self._answer(made)
            if self._held <= keep or self._stop.is_set():
                return
            self._scheduler.step()

    def stop(self) -> None:
        """Let `work` end with what is encoded."""
        self._stop.set()

    def _start(self) -> Scheduler:
        work = self._work
        start, _ = record_room(work.spec, work.storage)
        self._summary = IngestSummary(
            dataset=work.dataset,
            spec=work.spec,
            storage=work.storage,
            planned=0,
            skipped=0,
            replaced=0,
            restored=0,
            failed_before=[],
            needed_bytes=0,
            budget=work.budget,
            workers=work.workers,
        )
        options = IngestOptions(
            decode_timeout=work.decode_timeout,
            decode_memory=work.decode_memory,
            decoder=work.decoder,
        )
        sink = partial(RecordSink, spec=work.spec, dataset=work.dataset, payload_start=start)

        def keep_sink(slots: Any) -> RecordSink:
            self._sink = sink(slots)
            return self._sink

        return Scheduler(self._stack, self._summary, self._encoder, [], keep_sink, options=options)

    def _answer(self, made: Any) -> tuple[bytes, Any]:
        busy, self._summary.busy = (
            self._summary.busy,
            {**self._summary.busy, "decode": 0.0, "encode": 0.0},
        )
        seconds = busy["decode"], busy["encode"]
        if isinstance(made, MadeRecord):
            record = np.frombuffer(made.record, np.uint8)  # Ray copies it before it asks for more
            return pack_message(RayAnswer(made.header.video_id, "", *seconds)), record
        return pack_message(RayAnswer(made.video_id, made.reason, *seconds)), None
