"""liblmdb's environments in this process: each lock file is opened once, and its table of readers is whole."""

import errno
import fcntl
import gc
import os
import weakref
from collections import deque

import pytest
from toys import run_python, store_videos, toy_features

from featstore.errors import StoreError, StoreFull
from featstore.store.engine import handles, reader_table
from featstore.store.engine.environment import open_environment
from featstore.store.engine.handles import (
    INODES,
    SEALED,
    Handle,
    _has_whole_table,
    _is_in_step,
    leave_inherited,
    mark,
    sweep,
)
from featstore.store.engine.locks import write_lock
from featstore.store.engine.reader_table import allocate_table
from featstore.store.engine.settings import FLOCK, MAP_BYTES, MAX_READERS, TABLE_BYTES
from featstore.store.engine.transaction import _mark_of_others
from featstore.store.reader import get

A = toy_features(1)


def test_a_table_is_whole_if_it_is_a_file_all_of_which_is_on_disk(tmp_path):
    table = tmp_path / "lock.mdb"
    assert not _has_whole_table(tmp_path)
    table.touch()
    assert not _has_whole_table(tmp_path)
    os.truncate(table, TABLE_BYTES)  # a hole
    assert not _has_whole_table(tmp_path)
    table.write_bytes(b"x" * TABLE_BYTES)
    assert _has_whole_table(tmp_path)
    with table.open("ab") as file:  # and a hole after it
        file.truncate(TABLE_BYTES + (1 << 20))
    assert not _has_whole_table(tmp_path)
    table.unlink()
    table.mkdir()
    (table / "full").write_bytes(b"x" * 100_000)
    assert not _has_whole_table(tmp_path)


def test_a_table_is_made_whole_with_the_umask_and_no_longer_than_it_was(cache):
    cache.mkdir()
    before = os.umask(0)
    try:
        allocate_table(cache)
    finally:
        os.umask(before)
    table = cache / "lock.mdb"
    assert (table.stat().st_size, table.stat().st_mode & 0o777) == (TABLE_BYTES, 0o666)
    os.truncate(table, 0)
    os.truncate(table, 10_000)
    allocate_table(cache)
    assert table.stat().st_size == 10_000
    assert _has_whole_table(cache)
    store_videos(cache, "demo", {"a": A})
    (cache / "demo" / "lock.mdb").unlink()
    assert get(cache, "demo", "a").shape == (16, 8)
    assert _has_whole_table(cache / "demo")


def test_a_disk_without_room_for_the_table_is_full_and_one_that_cannot_allocate_is_not(
    tmp_path, monkeypatch
):
    number = errno.ENOSPC
    monkeypatch.setattr(reader_table.libc, "fallocate", lambda *arguments: -1)
    monkeypatch.setattr(reader_table.libc, "error", lambda: OSError(number, os.strerror(number)))
    with pytest.raises(StoreFull, match=r"no room for the 64 KiB of lock\.mdb"):
        allocate_table(tmp_path)
    number = errno.EOPNOTSUPP
    allocate_table(tmp_path)
    number = errno.ENOSPC  # of something else
    monkeypatch.setattr(reader_table.libc, "fallocate", lambda *arguments: 0)
    allocate_table(tmp_path)


class Owner:
    """Of an environment."""


class Opened:
    """An environment of liblmdb's."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_handle_that_is_closed_again_closes_no_other_of_its_lock_file():
    """Who opens a lock file closes what has it open; the finalizer of that comes later."""
    owner, environments, lock_file = Owner(), [Opened() for _ in range(3)], (-1, 7)
    first = Handle(environments[0], lock_file, owner)
    first.close()
    second = Handle(environments[1], lock_file, owner)
    first.close()
    assert handles._handles[lock_file] is second
    second.close()
    assert lock_file not in handles._handles
    Handle(environments[2], None, owner).close()  # on a read-only disk
    assert [opened.closed for opened in environments] == [1, 1, 1]


def test_a_child_keeps_its_parents_environments_as_they_are(monkeypatch):
    """Closed, or without a reference, they would clear the parent's slots in the table of readers."""
    owner = Owner()
    opened, ended = Handle(Opened(), (-1, 7), owner), Handle(Opened(), None, owner)
    monkeypatch.setattr(handles, "_handles", {(-1, 7): opened})
    monkeypatch.setattr(handles, "_ended", deque([ended]))
    leave_inherited()
    sweep()
    assert not handles._handles
    kept = [weakref.ref(opened.lmdb), weakref.ref(ended.lmdb)]
    assert [environment().closed for environment in kept] == [0, 0]
    [inherited] = [pair for pair in handles._inherited if opened in pair[0].values()]
    assert ended in inherited[1]
    handles._inherited.remove(inherited)


def test_a_finalizer_in_the_midst_of_an_opening_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(handles, "_ended", deque([Handle(Opened(), None, Owner())]))
    with handles.lock:
        sweep()
        assert len(handles._ended) == 1
    sweep()
    assert not handles._ended


def test_a_file_that_may_not_be_written_is_opened_for_reading(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})
    asked: list[bool] = []
    real = handles.open_liblmdb

    def opened(name, *, readonly):
        asked.append(readonly)
        return real(name, readonly=readonly)

    monkeypatch.setattr(handles, "open_liblmdb", opened)
    get(cache, "demo", "a")
    gc.collect()
    (cache / "demo" / "lock.mdb").unlink()  # or it is still known
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    held = get(cache, "demo", "a")
    assert held.shape == (16, 8)
    assert asked == [False, True]
    assert open_environment(cache / "demo").lmdb.flags()["readonly"]


def test_an_environment_is_opened_with_our_numbers_and_locks_and_the_umask_of_files(cache):
    before = os.umask(0)
    try:
        store_videos(cache, "demo", {"a": A})
    finally:
        os.umask(before)
    environment = open_environment(cache / "demo")
    info, flags = environment.lmdb.info(), environment.lmdb.flags()
    assert (info["map_size"], info["max_readers"]) == (MAP_BYTES, MAX_READERS)
    assert (flags["lock"], flags["readonly"]) == (True, False)
    assert (cache / "demo" / "data.mdb").stat().st_mode & 0o777 == 0o666


def test_the_engine_is_ours_whatever_the_program_asks_of_others(cache):
    program = (
        "import sys; from toys import *; store_videos(sys.argv[1], 'demo', {'a': toy_features(1)})"
    )
    done = run_python(program, cache, LMDB_DEFAULT_LIB_VERSION="1")
    assert done.returncode == 0, done.stderr
    assert get(cache, "demo", "a").shape == (16, 8)


def marked(file: int) -> set[int]:
    """The bytes below 100, and the one of the highest inode, that others have marked."""
    found = set()
    for byte in (*range(100), INODES - 1):
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind, *_ = FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
        if kind != fcntl.F_UNLCK:
            found.add(byte)
    return found


def test_a_mark_is_one_byte_and_takes_the_place_of_the_last(tmp_path):
    path = tmp_path / "data.mdb"
    path.touch()
    with path.open("rb") as file, path.open("r+b") as other:
        for inode, byte in ((SEALED, 0), (7, 7), (8, 8), (SEALED, 0), (2 * INODES - 1, INODES - 1)):
            mark(file.fileno(), inode)
            assert marked(other.fileno()) == {byte}


def test_a_writer_sees_the_mark_of_any_lock_file_but_its_own(cache):
    store_videos(cache, "demo", {"a": A})
    environment = open_environment(cache / "demo")
    own = environment.lock_file[1]
    with (cache / "demo" / "data.mdb").open("rb") as other:
        mark(other.fileno(), own)
        assert _mark_of_others(environment) is None
        for inode in (SEALED, 1, own - 1, own + 1, INODES - 1):
            mark(other.fileno(), inode)
            assert _mark_of_others(environment) == inode


def test_a_lock_file_is_in_step_if_it_lacks_only_what_is_being_committed(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})
    environment = open_environment(cache / "demo")
    metas = handles.read_metas(environment.file, cache / "demo")

    def is_in_step(ahead: int) -> bool:
        later = [meta._replace(txn_id=meta.txn_id + ahead) for meta in metas]
        monkeypatch.setattr(handles, "read_metas", lambda data, folder: later)
        return _is_in_step(environment.lmdb, environment.file, cache / "demo")

    assert [is_in_step(ahead) for ahead in (-1, 0, 1, 2)] == [False, True, False, False]
    lock = write_lock(cache / "demo")
    assert [is_in_step(ahead) for ahead in (-1, 0, 1, 2)] == [False, True, True, False]
    lock.close()
    monkeypatch.undo()


def test_a_data_file_that_is_replaced_without_end_is_a_store_error(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})
    real = handles.read_metas

    def ahead(data, folder):
        return [meta._replace(txn_id=meta.txn_id + 1) for meta in real(data, folder)]

    monkeypatch.setattr(handles, "read_metas", ahead)
    with pytest.raises(StoreError, match=r"lock\.mdb is replaced again and again; see which"):
        get(cache, "demo", "a")
