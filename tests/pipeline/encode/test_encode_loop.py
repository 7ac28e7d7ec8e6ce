"""The loop between the parent and a batch encoder, with encoders that are played."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from multiprocessing.connection import Pipe

import pytest

from featstore.encoders.toy import ToyEncoder
from featstore.pipeline.encode import encode_loop
from featstore.pipeline.encode.base import BatchProgress
from featstore.pipeline.encode.batches import EncodeTask
from featstore.pipeline.encode.encode_loop import serve
from featstore.system.processes import receive, send

BATCH_SECONDS = 0.15


class PlayedGpu:
    """Works on a batch for `BATCH_SECONDS` while the loop goes on, and counts how often it is asked."""

    depth = 2

    def __init__(self) -> None:
        self._until: list[float] = []
        self.sizes: list[int] = []
        self.queued: list[int] = []  # batches at work once each was taken
        self.asked = 0
        self.closed = False

    @property
    def in_flight(self) -> int:
        return len(self._until)

    @property
    def owes(self) -> bool:
        return bool(self._until)

    def submit(self, batch) -> None:
        begin = max([time.monotonic(), *self._until])
        self._until.append(begin + BATCH_SECONDS)
        self.sizes.append(sum(chunk.count for chunk in batch))
        self.queued.append(len(self._until))

    def collect(self):
        self.asked += 1
        done = [until for until in self._until if until <= time.monotonic()]
        self._until = self._until[len(done) :]
        return [BatchProgress((), BATCH_SECONDS) for _ in done]

    def close(self) -> None:
        self.closed = True


@contextmanager
def served(monkeypatch, encoder):
    """The parent's end of a loop that works `encoder` in batches of 4 frames."""
    monkeypatch.setattr(encode_loop, "make_batch_encoder", lambda *_: encoder)
    here, there = Pipe()
    thread = threading.Thread(
        target=serve, args=(there, ToyEncoder(), None), kwargs={"batch_frames": 4}
    )
    thread.start()
    try:
        yield here
    finally:
        here.close()
        thread.join()
        there.close()


def task(number: int, count: int) -> EncodeTask:
    return EncodeTask(number, frames=number, count=count, units=count, size=(28, 28), record=number)


def test_the_loop_sleeps_while_a_batch_is_at_work_and_too_few_frames_wait(monkeypatch):
    """To poll without a pause takes a core from the decoders; a turn a millisecond makes 300 of them here."""
    encoder = PlayedGpu()
    with served(monkeypatch, encoder) as parent:
        send(parent, task(0, 4))
        send(parent, task(1, 3))  # no full batch: it waits for more until the first is done
        for _ in range(2):
            receive(parent, BatchProgress)
    assert (encoder.sizes, encoder.queued) == ([4, 3], [1, 1])
    assert encoder.asked < 1000


def test_full_batches_are_queued_while_one_is_at_work(monkeypatch):
    encoder = PlayedGpu()
    with served(monkeypatch, encoder) as parent:
        send(parent, task(0, 12))
        for _ in range(3):
            receive(parent, BatchProgress)
    assert (encoder.sizes, encoder.queued) == ([4, 4, 4], [1, 2, 2])


def test_the_loop_ends_when_the_parent_is_gone(monkeypatch):
    encoder = PlayedGpu()
    with served(monkeypatch, encoder) as parent:
        send(parent, task(0, 4))
    assert encoder.closed


@pytest.mark.parametrize("kind", [EOFError, ConnectionResetError, BrokenPipeError])
@pytest.mark.parametrize("step", ["submit", "collect"])
def test_an_encoders_own_broken_connection_is_not_taken_for_the_parents(monkeypatch, kind, step):
    encoder = PlayedGpu()

    def fail(*args):
        raise kind("the encoder's own")

    setattr(encoder, step, fail)
    monkeypatch.setattr(encode_loop, "make_batch_encoder", lambda *_: encoder)
    here, there = Pipe()
    with here, there:
        send(here, task(0, 4))
        with pytest.raises(kind, match="the encoder's own"):
            serve(there, ToyEncoder(), None, batch_frames=4)
    assert encoder.closed
