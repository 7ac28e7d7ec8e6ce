import ctypes
import gc
import mmap
import os
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from queue import SimpleQueue
from unittest.mock import Mock

import numpy as np
import pytest
from toys import run_python, store_videos, toy_features

import featstore
from featstore.errors import StoreError
from featstore.store.maintenance.seal import seal_dataset
from featstore.system import file_map, libc, reading_ahead
from featstore.system.file_map import (
    READ_AHEAD_BYTES,
    FileMap,
    FixedMap,
    hides_pages,
    is_evicted,
    is_resident,
    shows_pages,
)
from featstore.system.reading_ahead import prefault, read_ahead


def resident_pages(memory: FixedMap) -> int:
    pages = range(memory.address, memory.address + memory.length, mmap.PAGESIZE)
    return sum(is_resident(page, 1) for page in pages)


PIECE = 2 << 20


def dropped(path: Path) -> FixedMap:
    """Map a file that was made and dropped from the page cache."""
    path.write_bytes(os.urandom(2 * PIECE + 5))
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    memory = FixedMap(path)
    if resident_pages(memory) > pages_of(memory) // 2:
        pytest.skip("the file system keeps its pages")
    return memory


def pages_of(memory: FixedMap) -> int:
    return -(-memory.length // mmap.PAGESIZE)


def touch(memory: FixedMap, offset: int, length: int) -> None:
    """Wait for what is on its way."""
    assert len(ctypes.string_at(memory.address + offset, length)) == length


def test_what_was_dropped_from_the_file_map_is_there_again(tmp_path):
    """Most of it: a busy system may take pages away again meanwhile."""
    memory = dropped(tmp_path / "file")
    prefault(memory, memory.address, memory.length)
    touch(memory, 0, memory.length)
    assert resident_pages(memory) > pages_of(memory) // 2


def test_no_more_is_read_than_what_is_asked_for(tmp_path):
    memory = dropped(tmp_path / "file")
    before = resident_pages(memory)
    prefault(memory, memory.address + PIECE // 2, PIECE)
    touch(memory, PIECE // 2, PIECE)
    assert resident_pages(memory) <= before + PIECE // mmap.PAGESIZE


@pytest.mark.parametrize("most", [READ_AHEAD_BYTES, 3 * PIECE])
def test_a_file_is_asked_for_in_parts_that_the_system_reads_whole(tmp_path, monkeypatch, most):
    """Also one that hides its pages: all may be there already, and nobody can tell."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PIECE + 7))
    asked = []
    monkeypatch.setattr(file_map, "hides_pages", lambda fd: True)
    monkeypatch.setattr(file_map, "_read_ahead_bytes", lambda fd: most)
    memory = FixedMap(path)
    monkeypatch.setattr(libc, "madvise", lambda *words: asked.append(words))
    prefault(memory, memory.address + 3, PIECE + 4)
    starts = range(0, PIECE + 7, most)
    assert [at - memory.address for at, _, _ in asked] == [*starts]
    assert sum(size for _, size, _ in asked) == PIECE + 7
    assert max(size for _, size, _ in asked) == min(most, PIECE + 7)


LARGE = 2 << 20


def hole(path: Path, length: int) -> FixedMap:
    """Map a file of which no page was ever in memory."""
    path.touch()
    os.truncate(path, length)
    return FixedMap(path)


def test_around_a_large_record_nothing_is_read_when_it_is_touched(tmp_path):
    """Nor when it is touched through a second map. A page that a busy system takes away comes back with more."""
    start, length = (10 << 20) + 5 * mmap.PAGESIZE, (30 << 20) + 3 * mmap.PAGESIZE
    found = []
    for name in "abc":
        for memory in (hole(tmp_path / name, 60 << 20), FixedMap(tmp_path / name)):
            prefault(memory, memory.address + start, length)
            touch(memory, start, length)
        found.append(resident_pages(memory))
        if found[-1] <= length // mmap.PAGESIZE:
            return
    pytest.fail(f"of {length // mmap.PAGESIZE} pages, {found} were read")


def test_of_a_large_record_only_what_is_short_of_large_pages_is_asked_for(tmp_path, monkeypatch):
    memory = hole(tmp_path / "file", 64 << 20)
    memory.read_ahead_bytes = LARGE
    asked = []
    monkeypatch.setattr(libc, "madvise", lambda *words: asked.append(words) or 0)
    monkeypatch.setattr(reading_ahead, "_has_large_pages", True)
    monkeypatch.setattr(reading_ahead, "_ends", deque())
    prefault(memory, memory.address + LARGE + 4096, 20 * LARGE)
    readings = [
        (at - memory.address, size) for at, size, how in asked if how == reading_ahead._WILLNEED
    ]
    assert readings == [(LARGE + 4096, LARGE - 4096), (21 * LARGE, 4096)]
    tails = [(at - memory.address, size) for at, size, how in asked if how == reading_ahead._RANDOM]
    assert tails == [(17 * LARGE, 4 * LARGE)]
    asked.clear()
    for _ in range(reading_ahead._MAX_ENDS):
        prefault(memory, memory.address, 8 * LARGE)
    again = [(at - memory.address, size) for at, size, how in asked if how == reading_ahead._NORMAL]
    assert again == tails
    assert len(reading_ahead._ends) == reading_ahead._MAX_ENDS


@pytest.mark.parametrize("large", [True, False])
def test_what_is_read_ahead_comes_without_being_touched(tmp_path, monkeypatch, large):
    monkeypatch.setattr(reading_ahead, "_has_large_pages", large and reading_ahead._has_large_pages)
    memory = hole(tmp_path / "file", 40 << 20)
    start, length = (4 << 20) + 3, 20 << 20
    read_ahead(memory, memory.address + start, length)
    deadline = time.monotonic() + 30
    while not is_resident(memory.address + start, length):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ahead_of_use_large_records_are_read_in_a_thread_of_each_process(tmp_path, monkeypatch):
    monkeypatch.setattr(reading_ahead, "_has_large_pages", True)
    monkeypatch.setattr(reading_ahead, "_reader", reading_ahead._Reader())
    touched: SimpleQueue[int] = SimpleQueue()

    def advise(at, size, how):
        if how == reading_ahead._POPULATE_READ:
            touched.put(at - memory.address)
        return 0

    memory = hole(tmp_path / "file", 64 << 20)
    monkeypatch.setattr(libc, "madvise", advise)
    for start in (0, 16 << 20, 32 << 20):
        read_ahead(memory, memory.address + start, 10 << 20)
    assert [touched.get(timeout=20) for _ in range(3)] == [0, 16 << 20, 32 << 20]
    if (child := os.fork()) == 0:
        read_ahead(memory, memory.address, 10 << 20)
        os._exit(touched.get(timeout=20))
    assert os.waitpid(child, 0)[1] == 0


def test_without_a_thread_large_records_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(reading_ahead, "_has_large_pages", True)
    monkeypatch.setattr(reading_ahead, "_reader", reading_ahead._Reader())
    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError))
    memory, asked = hole(tmp_path / "file", 20 << 20), []
    memory.read_ahead_bytes = 10 << 20
    monkeypatch.setattr(libc, "madvise", lambda *words: asked.append(words[1:]) or 0)
    read_ahead(memory, memory.address, memory.length)
    assert [words for words in asked if words[1] == reading_ahead._WILLNEED] == [(10 << 20, 3)] * 2


def test_what_is_in_memory_is_not_asked_for(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(5000))
    memory = FixedMap(tmp_path / "file")
    monkeypatch.setattr(libc, "madvise", lambda *words: pytest.fail("asked"))
    touch(memory, 0, 5000)
    prefault(memory, memory.address, 5000)


def test_a_page_that_was_dropped_is_called_evicted(tmp_path):
    memory = dropped(tmp_path / "file")
    page = memory.address + mmap.PAGESIZE
    assert is_evicted(page + 5) or is_resident(page, 1)
    touch(memory, mmap.PAGESIZE, 1)
    assert not is_evicted(page + 5)


def test_a_file_that_was_cut_short_is_an_error_and_no_end(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(5000))
    with path.open("rb") as file:
        memory = FileMap(file.fileno())
    assert memory.read(4096, 904) == bytes(904)
    os.truncate(path, 100)
    with pytest.raises(StoreError, match="the file ends before 904 bytes at 4096"):
        memory.read(4096, 904)


AS_NOBODY = """
import os, sys, time, featstore
from featstore.system.file_map import *
from featstore.system.reading_ahead import prefault
[getattr(featstore, name) for name in featstore.__all__]
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for name in ("cold", "writable"):
    path = os.path.join(sys.argv[1], name)
    print(hides_pages(os.open(path, os.O_RDONLY)))
    if name == "cold":
        memory = FixedMap(path)
        prefault(memory, memory.address, memory.length)
time.sleep(1)
features = featstore.get(os.path.join(sys.argv[1], "cache"), "demo", "a")
print(shows_pages(features.owner.address), is_resident(features.data.ctypes.data, 1))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="to be another takes root")
def test_of_a_file_that_is_only_read_no_page_is_called_resident():
    """Linux says that all are, so what was cold was taken for hot, and read by faults."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        memory = dropped(Path(place, "cold"))
        Path(place, "writable").touch()
        os.chmod(f"{place}/writable", 0o666)
        store_videos(f"{place}/cache", "demo", {"a": toy_features(1)})
        seal_dataset(f"{place}/cache", "demo")
        done = run_python(AS_NOBODY, place)
        assert done.stdout == "True\nFalse\nFalse False\n", done.stderr
        assert resident_pages(memory) > pages_of(memory) // 2


def test_a_map_is_doubted_while_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(file_map, "hides_pages", lambda fd: True)
    store_videos(tmp_path, "demo", {"a": toy_features(1)})
    features = featstore.open(tmp_path)["demo"]["a"]
    address = features.data.ctypes.data
    assert not shows_pages(address)
    assert not is_resident(address, 1)
    del features
    gc.collect()
    assert shows_pages(address)


def test_a_file_of_ones_own_hides_no_page(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    assert not hides_pages(fd)
    os.close(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="needs mincore as Linux has it")
def test_memory_in_use_is_resident():
    values = np.ones(100_000, np.uint8)
    assert is_resident(values.ctypes.data, len(values))
