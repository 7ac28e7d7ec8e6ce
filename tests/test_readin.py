import mmap
import os
import sys
import threading

import numpy as np
import pytest

from featstore import readin
from featstore.readin import PIECE_BYTES, is_resident, read_in


def resident_pages(memory: mmap.mmap) -> int:
    address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
    pages = range(address, address + len(memory), mmap.PAGESIZE)
    return sum(is_resident(page, 1) for page in pages)


def test_what_was_dropped_from_the_page_cache_is_there_again(tmp_path):
    """Most of it: a busy system may take pages away again meanwhile."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(PIECE_BYTES * 2 + 5))
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    memory = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    os.close(fd)
    total = -(-len(memory) // mmap.PAGESIZE)
    if resident_pages(memory) > total // 2:
        pytest.skip("the file system keeps its pages")
    for future in read_in(path, 0, len(memory)):
        future.result()
    assert resident_pages(memory) > total // 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs mincore as Linux has it")
def test_memory_in_use_is_resident():
    values = np.ones(100_000, np.uint8)
    assert is_resident(values.ctypes.data, len(values))


def test_a_file_that_is_gone_is_no_error(tmp_path):
    for future in read_in(tmp_path / "nowhere", 0, 100):
        assert future.result() is None


def test_what_is_being_read_is_not_read_again(tmp_path, monkeypatch):
    """A look-up waits for what was read ahead of it, not behind what was asked for since."""
    go, read = threading.Event(), []

    def read_piece(path, offset, length):
        read.append((offset, length))
        if offset:
            go.wait(10)

    monkeypatch.setattr(readin, "_read_piece", read_piece)
    first = read_in(tmp_path / "file", 0, PIECE_BYTES + 7)
    first[0].result(10)  # also where a part of it is there
    again = read_in(tmp_path / "file", 0, PIECE_BYTES + 7)
    assert again == first
    go.set()
    for future in first:
        future.result(10)
    assert sorted(read) == [(0, PIECE_BYTES), (PIECE_BYTES, 7)]
    for future in read_in(tmp_path / "file", 0, 1):
        future.result(10)
    assert len(read) == 3
