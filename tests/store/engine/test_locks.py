import contextlib
import errno
import fcntl
import json
import os
import shutil
import threading
import time

import pytest
from locks import LOCK_FILES, taken
from toys import run_python, start_python

from featstore.errors import StoreError, StoreLocked, StoreNotFound
from featstore.store.engine import locks
from featstore.store.engine.locks import ingest_lock, single_flight_lock, write_lock
from featstore.store.paths import FLIGHT_LOCK_FILE, INGEST_LOCK_FILE, WRITE_LOCK_FILE

HOLD = """
import sys
from pathlib import Path
from featstore.store.engine.locks import ingest_lock
with ingest_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_ingest_is_refused_with_the_name_of_the_first(tmp_path):
    with start_python(HOLD, tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        holder_named = pytest.raises(
            StoreLocked, match=rf"process {holder.pid} \(python.*, since 20"
        )
        with holder_named, ingest_lock(tmp_path):
            pass
        holder.communicate("done\n")
    with ingest_lock(tmp_path):
        pass


def test_a_lock_dies_with_its_holder(tmp_path):
    with start_python(HOLD, tmp_path) as holder:
        holder.stdout.readline()
        holder.kill()
    with ingest_lock(tmp_path):
        note = json.loads((tmp_path / INGEST_LOCK_FILE).read_text())
    assert note["pid"] == os.getpid()


def test_two_threads_exclude_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited, and was not asked to"))
    with ingest_lock(tmp_path), pytest.raises(StoreLocked), ingest_lock(tmp_path):
        pass


def test_an_error_inside_lets_go(tmp_path):
    with pytest.raises(KeyError), ingest_lock(tmp_path):
        raise KeyError
    with ingest_lock(tmp_path):
        pass


def test_a_waiting_ingest_begins_when_the_other_ends(tmp_path):
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ingest_lock(tmp_path):
            held.set()
            done.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    threading.Timer(0.2, done.set).start()
    with ingest_lock(tmp_path, wait=30):
        assert done.is_set()
    other.join()


def test_waiting_ends_in_time(tmp_path):
    begun = time.monotonic()
    with ingest_lock(tmp_path), pytest.raises(StoreLocked), ingest_lock(tmp_path, wait=0.2):
        pass
    assert 0.2 <= time.monotonic() - begun < 20


def test_a_lock_on_a_folder_that_was_replaced_meanwhile_counts_for_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "demo"
    folder.mkdir()
    monkeypatch.setattr(time, "sleep", lambda seconds: replace())

    def replace() -> None:
        if not (tmp_path / "gone").exists():
            folder.rename(tmp_path / "gone")
            folder.mkdir()

    with ingest_lock(folder), ingest_lock(folder, wait=30):
        assert (folder / INGEST_LOCK_FILE).exists()


@pytest.mark.parametrize(
    "note", [b"", b"[1]", b"{}", b"\xff\xfe", b'{"pid":1,"host":"h","since":"t"}', b"7", b"null"]
)
def test_the_holder_is_named_whatever_the_note_says(tmp_path, note):
    with ingest_lock(tmp_path):
        (tmp_path / INGEST_LOCK_FILE).write_bytes(note)
        holder_named = pytest.raises(StoreLocked, match=rf"process {os.getpid()} \(.*\) is at work")
        with holder_named, ingest_lock(tmp_path):
            pass


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(StoreNotFound), ingest_lock(tmp_path / "nowhere"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_cannot_be_opened_is_a_store_error(tmp_path):
    (tmp_path / INGEST_LOCK_FILE).mkdir()
    with pytest.raises(StoreError, match="cannot be locked"), ingest_lock(tmp_path):
        pass


EXEC = """
import subprocess, sys
from pathlib import Path
from featstore.store.engine.locks import ingest_lock
with ingest_lock(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
print(child.pid)
"""


def test_a_program_that_was_started_meanwhile_does_not_inherit_the_lock(tmp_path):
    done = run_python(
        "import os, signal\n" + EXEC + "os.kill(child.pid, signal.SIGKILL); child.wait()", tmp_path
    )
    assert done.returncode == 0, done.stderr
    with ingest_lock(tmp_path):
        pass


@pytest.mark.parametrize("name", LOCK_FILES)
def test_a_lock_is_given_to_who_waits_for_it(tmp_path, monkeypatch, name):
    held = contextlib.ExitStack()
    held.enter_context(taken(tmp_path, name))
    monkeypatch.setattr(time, "sleep", lambda seconds: held.close())
    with taken(tmp_path, name):
        pass


def test_a_folder_that_is_removed_while_a_lock_is_waited_for(tmp_path, monkeypatch):
    """Who makes a video's features makes it again; who would change the dataset has none to change."""
    folder = tmp_path / "demo"
    monkeypatch.setattr(time, "sleep", lambda seconds: shutil.rmtree(folder))
    folder.mkdir()
    with single_flight_lock(folder, b"video"), single_flight_lock(folder, b"video"):
        assert (folder / FLIGHT_LOCK_FILE).exists()
    with ingest_lock(folder), pytest.raises(StoreNotFound), ingest_lock(folder, wait=30):
        pass
    assert not folder.exists()


@pytest.mark.parametrize("name", [INGEST_LOCK_FILE, WRITE_LOCK_FILE])
def test_a_lock_that_the_system_refuses_is_a_store_error_and_an_interrupt_is_none(
    tmp_path, monkeypatch, name
):
    def refuse(exc: BaseException) -> None:
        raise exc

    refused = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    for exc, kind in ((refused, StoreError), (KeyboardInterrupt(), KeyboardInterrupt)):
        monkeypatch.setattr(fcntl, "flock", lambda fd, how, exc=exc: refuse(exc))
        with pytest.raises(kind, match="cannot be locked: No locks" if exc is refused else None):
            taken(tmp_path, name).__enter__()


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
def test_a_file_that_may_not_be_written_can_be_locked_by_writers_and_is_refused_to_others(
    tmp_path, monkeypatch, number
):
    for name in LOCK_FILES:
        (tmp_path / name).touch(0o600)
    real = os.open

    def refuse_writing(path, flags, *mode, **options):
        if flags & os.O_RDWR and os.path.basename(path) in LOCK_FILES:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refuse_writing)
    allowed = number == errno.EACCES
    for name in LOCK_FILES:
        if allowed and name == WRITE_LOCK_FILE:
            write_lock(tmp_path).close()
            continue
        with pytest.raises(StoreError, match=f"cannot be locked: {os.strerror(number)}") as raised:
            taken(tmp_path, name).__enter__()
        assert ("takes write permission on its folder" in str(raised.value)) is allowed


def test_without_locks_on_bytes_one_video_is_made_at_a_time(tmp_path, monkeypatch):
    monkeypatch.delattr(fcntl, "F_OFD_SETLK")
    monkeypatch.setattr(locks, "FLIGHT_WAIT", 0.0)
    with (
        single_flight_lock(tmp_path, b"one"),
        pytest.raises(StoreLocked),
        single_flight_lock(tmp_path, b"other"),
    ):
        pass


def test_a_daemon_lets_go_of_a_lock_whose_descriptor_is_that_of_its_stdin(tmp_path):
    stdin = os.dup(0)
    os.close(0)
    try:
        with ingest_lock(tmp_path):
            assert os.path.samestat(os.fstat(0), (tmp_path / INGEST_LOCK_FILE).stat())
        with ingest_lock(tmp_path):
            pass
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
