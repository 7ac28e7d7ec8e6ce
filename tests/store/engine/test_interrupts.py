"""An interrupt at any moment of a write leaves the process able to write."""

import sys
from itertools import count

import pytest
from toys import put_video, store_videos, toy_features, toy_spec

from featstore.store.engine import locks
from featstore.store.engine.locks import write_lock
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.reader import FeatureStore
from featstore.store.writer import FeatureWriter

SPEC, A = toy_spec(), toy_features(1)
# None with a `with` on a lock: a tracer could interrupt between its block and its end, where a signal cannot.
BEGIN = [WriteTransaction.__init__, write_lock, locks._hold]
COMMIT = [WriteTransaction.commit, FeatureWriter.commit]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "WRITE_WAIT", 0.0)


def interrupt(line, functions, act):
    """Interrupt `act` before a line, counted over the functions; return the error with what its traceback keeps."""
    watched = {function.__code__ for function in functions}
    left = line

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code not in watched:
            return None
        left -= event == "line"
        if left == 0:
            left = -1
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt as exc:
        return exc
    finally:
        sys.settrace(before)
    return None


def test_a_writer_interrupted_while_it_begins_keeps_no_other_out(cache):
    """The process kept the lock, or LMDB's transaction, and refused its own next write."""
    store_videos(cache, "demo", {"a": A})
    caught = []
    for line in count(1):
        begun = []
        caught.append(
            interrupt(line, BEGIN, lambda to=begun: to.append(WriteTransaction(cache / "demo")))
        )
        if caught[-1] is None:
            begun.pop().abort()
        WriteTransaction(cache / "demo").abort()
        if caught[-1] is None:
            break
    assert line > 20


def test_a_writer_interrupted_while_it_commits_goes_on(cache):
    caught = []
    writer = FeatureWriter(cache, "demo", min_free=0)
    for line in count(1):
        writer.add_set(SPEC, origin="toy")
        put_video(writer, SPEC, f"{line}", A)
        caught.append(interrupt(line, COMMIT, writer.commit))
        writer.abort()
        WriteTransaction(cache / "demo").abort()
        assert writer.commit() == []
        if caught[-1] is None:
            break
    assert line > 10
    assert f"{line}" in FeatureStore(cache)["demo"]


def test_a_lock_that_nobody_refers_to_is_let_go(tmp_path):
    """An interrupt may come when the file is locked and nobody has it yet."""
    write_lock(tmp_path)
    write_lock(tmp_path).close()
