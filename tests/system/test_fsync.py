"""What is asked of the disk before and beside a sync."""

import contextlib
import threading

import pytest

from featstore.system import fsync, libc
from featstore.system.fsync import written_early

LARGE = fsync._EARLY_BYTES


@pytest.fixture
def asked(monkeypatch):
    """Descriptors whose files the disk was asked to write, with an event that tells of each."""
    seen: list[int] = []
    told = threading.Event()

    def ask(fd, *_):
        seen.append(fd)
        told.set()

    monkeypatch.setattr(libc, "sync_file_range", ask)
    return seen, told


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "write-early"]


def test_the_disk_is_asked_to_write_while_much_is_written_and_no_more_afterwards(asked):
    seen, told = asked
    with contextlib.suppress(OSError), written_early(7, LARGE):
        assert told.wait(10)
        raise OSError("the disk")
    assert (set(seen), threads()) == ({7}, [])


def test_a_little_is_written_without_a_thread(asked):
    with written_early(7, LARGE - 1):
        assert threads() == []


def test_much_is_written_also_without_threads_or_the_call(asked, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    written = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with written_early(7, LARGE):
            written.append("without threads")
    monkeypatch.setattr(libc, "sync_file_range", None)
    with written_early(7, LARGE):
        written.append("without the call")
        assert threads() == []
    assert written == ["without threads", "without the call"]
