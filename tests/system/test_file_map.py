import gc
import mmap
import os
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from toys import run_python, store_videos, toy_features

import featstore
from featstore.store.maintenance.seal import seal_dataset
from featstore.system import file_map
from featstore.system.file_map import (
    ADVICE_BYTES,
    PIECE_BYTES,
    hides_pages,
    is_resident,
    prefault,
    shows_pages,
)


def resident_pages(memory: mmap.mmap) -> int:
    address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
    pages = range(address, address + len(memory), mmap.PAGESIZE)
    return sum(is_resident(page, 1) for page in pages)


def dropped(path: Path) -> mmap.mmap:
    """Map a file that was made and dropped from the page cache."""
    path.write_bytes(os.urandom(PIECE_BYTES * 2 + 5))
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    memory = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    os.close(fd)
    if resident_pages(memory) > pages_of(memory) // 2:
        pytest.skip("the file system keeps its pages")
    return memory


def pages_of(memory: mmap.mmap) -> int:
    return -(-len(memory) // mmap.PAGESIZE)


@pytest.mark.parametrize("hidden", [False, True])
def test_what_was_dropped_from_the_file_map_is_there_again(tmp_path, monkeypatch, hidden):
    """Most of it: a busy system may take pages away again meanwhile."""
    memory = dropped(tmp_path / "file")
    monkeypatch.setattr(file_map, "hides_pages", lambda fd: hidden)
    for future in prefault(tmp_path / "file", 0, len(memory)):
        future.result()
    memory[:]  # waits for what is on its way
    assert resident_pages(memory) > pages_of(memory) // 2


def test_a_file_that_hides_its_pages_is_asked_for_and_not_copied(tmp_path, monkeypatch):
    """All its pages may be there already, and nobody can tell."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PIECE_BYTES + 7))
    asked = []
    monkeypatch.setattr(file_map, "hides_pages", lambda fd: True)
    monkeypatch.setattr(os, "preadv", lambda *a: pytest.fail("read again"))
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *words: asked.append(words))
    for future in prefault(path, 3, PIECE_BYTES + 4):
        future.result()
    starts = [*range(3, PIECE_BYTES, ADVICE_BYTES), PIECE_BYTES + 3]
    assert [start for start, _, _ in sorted(asked)] == starts
    assert sum(size for _, size, _ in asked) == PIECE_BYTES + 4
    assert max(size for _, size, _ in asked) == ADVICE_BYTES


AS_NOBODY = """
import os, sys, time, featstore
from featstore.system.file_map import *
[getattr(featstore, name) for name in featstore.__all__]
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for name in ("cold", "writable"):
    path = os.path.join(sys.argv[1], name)
    fd = os.open(path, os.O_RDONLY)
    print(hides_pages(fd))
    if name == "cold":
        for future in prefault(path, 0, os.fstat(fd).st_size):
            future.result()
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


def test_a_file_that_is_gone_is_no_error(tmp_path):
    for future in prefault(tmp_path / "nowhere", 0, 100):
        assert future.result() is None


def test_what_is_being_read_is_not_read_again(tmp_path, monkeypatch):
    """A look-up waits for what was read ahead of it, not behind what was asked for since."""
    go, read = threading.Event(), []

    def read_piece(path, offset, length):
        read.append((offset, length))
        if offset:
            go.wait(10)

    monkeypatch.setattr(file_map, "_read_piece", read_piece)
    first = prefault(tmp_path / "file", 0, PIECE_BYTES + 7)
    first[0].result(10)  # also where a part of it is there
    again = prefault(tmp_path / "file", 0, PIECE_BYTES + 7)
    assert again == first
    go.set()
    for future in first:
        future.result(10)
    assert sorted(read) == [(0, PIECE_BYTES), (PIECE_BYTES, 7)]
    for future in prefault(tmp_path / "file", 0, 1):
        future.result(10)
    assert len(read) == 3
