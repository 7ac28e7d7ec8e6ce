"""Decoders that end while they have nothing to do, or whose starter ends, cost no video."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from multiprocessing.connection import wait

import pytest
from toys import children_of

from featstore.decoding.pool import Decoded, DecoderPool
from featstore.decoding.video_file import Video, fingerprint
from featstore.decoding.worker import MODULE, DecodeTask
from featstore.preprocessing import ShortestEdgeCrop
from featstore.sampling import Sampling
from featstore.system.processes import Slots

pytestmark = pytest.mark.slow

SQUARE = ShortestEdgeCrop(shortest_edge=32, crop_height=32, crop_width=32)


@pytest.fixture
def make_pool():
    """Pools of one worker and one slot, killed when the test is done."""
    with ExitStack() as stack:

        def make() -> DecoderPool:
            slots = Slots.create(1, 4 * 32 * 32 * 3)
            stack.callback(slots.close)
            log = stack.enter_context(tempfile.TemporaryFile())
            pool = DecoderPool(slots, Sampling(4), SQUARE, workers=1, log=log, timeout=30.0)
            stack.callback(pool.kill)
            return pool

        yield make


def decode(pool: DecoderPool, path) -> Decoded:
    pool.add([Video(path.name, str(path))])
    while True:
        wait(pool.connections, 0.2)
        for done in pool.collect():
            pool.release(done.slot)
            return done


def decoders() -> list[int]:
    return children_of(os.getpid(), MODULE)


def test_a_decoder_that_died_with_nothing_to_do_is_replaced_and_no_video_is_blamed(
    clips, make_pool
):
    pool = make_pool()
    first = decode(pool, clips / "blink.mp4")
    (victim,) = decoders()
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    second = decode(pool, clips / "blink.mp4")
    assert (first.error, second.error) == ("", "")
    assert second.source == first.source
    assert victim not in decoders()


def test_a_decoder_outlives_the_thread_that_started_it(clips, make_pool):
    """A server has a thread for each request, and the decoder that the first one started serves them all."""
    pools, found, pids = [], [], []

    def request() -> None:
        pools.append(pools[0] if pools else make_pool())
        found.append(decode(pools[0], clips / "blink.mp4").error)
        pids.extend(decoders())

    for _ in range(3):
        thread = threading.Thread(target=request)
        thread.start()
        thread.join()
        time.sleep(0.1)  # for what the end of the thread may send
    assert found == [""] * 3
    assert len(set(pids)) == 1


def test_what_a_decoder_answers_to_another_request_is_not_taken_for_this_ones(clips, make_pool):
    """So it comes where two processes speak over one pipe, as after a fork."""
    pool, (mine, other) = make_pool(), (clips / "blink.mp4", clips / "color_bars.mp4")
    decode(pool, mine)
    (before,) = decoders()
    (worker,) = pool._workers
    worker.process.send(DecodeTask(1, str(other), 0))
    assert "answered another request" in decode(pool, mine).error
    assert before not in decoders()
    again = decode(pool, mine)
    assert (again.error, again.source) == ("", fingerprint(str(mine)))
