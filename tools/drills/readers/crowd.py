"""Too many at one door: two ingests on one dataset, and more readers than the reader table holds."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from drills.crash.steps import DATASET, fill
from drills.shared import processes
from drills.shared.clips import make_clips
from drills.shared.content import NFRAME, drill_encoder, drill_spec, put

import featstore
from featstore.errors import StoreError, StoreLocked
from featstore.sampling import Sampling
from featstore.store.engine import handles, reader_table
from featstore.store.reader import FeatureStore
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from pathlib import Path

CLIPS = 6
TABLE = 4
LOCKED, DONE = 11, 12


def two_ingests(place: Path) -> list[str]:
    """Begin an ingest beside another: one that will not wait must name the holder, one that waits must go on."""
    clips, cache = place / "clips", place / "cache"
    make_clips(clips, CLIPS, broken=False)
    first = processes.start(place / "first", _ingest, clips, cache, 0.0, 1.0)
    deadline = time.monotonic() + 60
    while not (cache / DATASET / "data.mdb").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    hasty = processes.start(place / "hasty", _ingest, clips, cache, 0.0, 0.0)
    patient = processes.start(place / "patient", _ingest, clips, cache, 60.0, 0.0)
    codes = [processes.wait_exit(pid, 90) for pid in (first, hasty, patient)]
    problems = []
    if codes != [DONE, LOCKED, DONE]:
        problems.append(f"three ingests on one dataset ended with {codes}")
    said = (place / "hasty").read_text()
    if "process" not in said or "wait for it to end" not in said:
        problems.append(f"the ingest that would not wait said {said!r}")
    stored = processes.ask(lambda: len(FeatureStore(cache)[DATASET]))
    if stored != CLIPS:
        problems.append(f"two ingests stored {stored} of {CLIPS} videos")
    return problems


def full_table(place: Path) -> list[str]:
    """Fill a small reader table: the next reader must be told so, and served once a slot is free.

    The slot of a killed reader is free with the next commit. (With a full table liblmdb cannot be opened at all, so
    that a new process cannot clear it.)
    """
    cache = place / "cache"
    return processes.ask(_crowd, cache)


def _ingest(clips: Path, cache: Path, wait: float, pause: float) -> None:
    encoder = drill_encoder()

    class Slow(type(encoder)):  # type: ignore[misc]
        """Takes its time, so that the others meet it at work."""

        def encode(self, frames: object) -> object:
            time.sleep(pause)
            return super().encode(frames)

    encoder.__class__ = Slow
    try:
        featstore.ingest(
            [clips],
            cache,
            DATASET,
            encoder=encoder,
            sampling=Sampling(NFRAME),
            options=featstore.IngestOptions(workers=1, min_free=0, lock_wait=wait),
        )
    except StoreLocked as exc:
        print(exc, flush=True)
        os._exit(LOCKED)
    os._exit(DONE)


def _crowd(cache: Path) -> list[str]:
    # The table has the size that its first user wanted: 192 bytes, and 64 for each slot but the first.
    handles.MAX_READERS, reader_table.TABLE_BYTES = TABLE, 192 + 64 * (TABLE - 1)
    fill(cache, DATASET, ["a"])
    writer = FeatureWriter(cache, DATASET, min_free=0)
    held: list[int] = []
    while len(held) <= TABLE and (said := processes.ask(_try, cache)) == "served":
        held.append(_holder(cache))
    problems = []
    if "readers are at work" not in said:
        problems.append(f"one reader too many was told {said!r}")
    processes.sigkill(held.pop())
    put(writer, drill_spec(), "b", 1)
    writer.commit()
    said = processes.ask(_try, cache)
    if said != "served":
        problems.append(f"after a reader was killed the next was told {said!r}")
    for pid in held:
        processes.sigkill(pid)
    return problems


def _holder(cache: Path) -> int:
    read, write = os.pipe()
    pid = processes.start(cache.parent / "held", _hold, cache, write)
    os.close(write)
    os.read(read, 1)
    return pid


def _hold(cache: Path, write: int) -> None:
    features = FeatureStore(cache)[DATASET].lookup("a", spec=drill_spec())
    os.write(write, b".")
    time.sleep(600)
    del features


def _try(cache: Path) -> str:
    try:
        FeatureStore(cache)[DATASET].lookup("a", spec=drill_spec())
    except StoreError as exc:
        return str(exc)
    return "served"
