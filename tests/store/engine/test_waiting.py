"""Nobody waits for a lock for ever, in silence, or for a child that was forked."""

import contextlib
import os
import signal
import stat
import subprocess

import pytest
from locks import LOCK_FILES, taken
from quick import first_is_quick
from toys import run_python, start_python, store_videos, toy_features

from featstore.errors import StoreError, StoreLocked
from featstore.store.engine import locks, waiting
from featstore.store.engine.locks import single_flight_lock, write_lock
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.paths import FLIGHT_LOCK_FILE, WRITE_LOCK_FILE
from featstore.store.reader import FeatureStore

A = toy_features(1)


FORK = """
import contextlib, os, sys, threading, time, warnings
from pathlib import Path
from locks import taken

warnings.simplefilter("ignore")  # of a fork beside threads
folder, name = Path(sys.argv[1]), sys.argv[2]

def is_lock(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}").endswith(name)
    except OSError:
        return False

def opened():
    return sum(map(is_lock, os.listdir("/proc/self/fd")))

def fork():
    # The child tells how many descriptors of the lock file it has, and lives until this program ends.
    (answer, telling), (end, _ending) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(_ending)
        os.write(telling, b"%d" % opened())
        os.read(end, 1)
        os._exit(0)
    print(int(os.read(answer, 8)), flush=True)

def take_and_let_go():
    with taken(folder, name):
        pass
"""

WHILE_ONE_WAITS = """
waiting = threading.Thread(target=take_and_let_go)
with taken(folder, name):
    waiting.start()
    while opened() < 2:
        time.sleep(0.001)
    fork()
waiting.join()
take_and_let_go()
"""

BETWEEN_OPEN_AND_LOCK = """
opening, forked, real = threading.Event(), threading.Event(), os.open

def open_slowly(path, *arguments, **options):
    fd = real(path, *arguments, **options)
    if str(path).endswith(name):
        opening.set()
        forked.wait(0.3)
    return fd

os.open = open_slowly
with taken(folder, name):
    pass
opening.clear()
beside = threading.Thread(target=take_and_let_go)
beside.start()
opening.wait()
fork()
forked.set()
beside.join()
"""


@pytest.mark.parametrize("moment", first_is_quick([WHILE_ONE_WAITS, BETWEEN_OPEN_AND_LOCK]))
@pytest.mark.parametrize("name", first_is_quick(LOCK_FILES))
def test_a_forked_child_has_no_lock_of_its_parents(tmp_path, name, moment):
    """Else it holds for its whole life what a thread that waited was given after the fork."""
    done = run_python(FORK + moment, tmp_path, name, timeout=20)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


HOLD = """
import sys
from pathlib import Path
from locks import taken
with taken(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def impatient(monkeypatch):
    """Waiting that is said at once, and soon over."""
    for name in ("WRITE_WAIT", "FLIGHT_WAIT"):
        monkeypatch.setattr(locks, name, 0.2)
    for name in ("SAY_AFTER", "SAY_FLIGHT_AFTER"):
        monkeypatch.setattr(locks, name, 0.05)


def test_a_stopped_writer_is_named_while_it_is_waited_for_and_at_the_end(
    tmp_path, impatient, capsys
):
    with start_python(HOLD, tmp_path, WRITE_LOCK_FILE) as holder, contextlib.ExitStack() as stack:
        stack.callback(holder.kill)  # or a test that fails would wait for it
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
        who = rf"process {holder.pid} \(python\S*, stopped: kill -CONT {holder.pid} wakes it\)"
        with pytest.raises(StoreLocked, match=f"^{who} is writing into {tmp_path}, and still was"):
            write_lock(tmp_path)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        with pytest.raises(StoreLocked, match=who):
            raise StoreLocked(said[0])
        holder.send_signal(signal.SIGCONT)
        holder.communicate("done\n")
    write_lock(tmp_path).close()


def test_a_process_is_described_by_what_the_system_shows_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "_PROC", tmp_path)
    assert waiting._describe_process(7, "") == "process 7"
    assert waiting._describe_process(7, "since then") == "process 7 (since then)"
    (tmp_path / "7").mkdir()
    for state, said in (("S (sleeping)", ""), ("T (stopped)", ", stopped: kill -CONT 7 wakes it")):
        (tmp_path / "7" / "status").write_text(f"Name:\ta:\tb\nUmask:\t0022\nState:\t{state}\n")
        assert waiting._describe_process(7, "") == f"process 7 (a:\tb{said})"


def test_the_features_of_a_video_are_not_waited_for_for_ever(tmp_path, impatient, capsys):
    with start_python(HOLD, tmp_path, FLIGHT_LOCK_FILE) as holder:
        holder.stdout.readline()
        with (
            pytest.raises(StoreLocked, match="is making the features of a video for"),
            single_flight_lock(tmp_path, b"video"),
        ):
            pass
        assert "waiting for a process that cannot be seen" in capsys.readouterr().err
        holder.communicate("done\n")


def test_a_transaction_that_has_waited_in_vain_leaves_all_as_it_was(cache, impatient):
    store_videos(cache, "demo", {"a": A})
    with (
        taken(cache / "demo", WRITE_LOCK_FILE),
        pytest.raises(StoreLocked, match="is writing into"),
    ):
        WriteTransaction(cache / "demo")
    store_videos(cache, "demo", {"b": A})


@pytest.mark.slow
def test_an_ingest_says_for_whom_its_writer_waits(clips, cache):
    program = """
import sys
import featstore
from featstore.encoders.toy import ToyEncoder
featstore.ingest(sys.argv[1], sys.argv[2], "demo", encoder=ToyEncoder(), sampling=featstore.Sampling(4))
"""
    store_videos(cache, "demo", {"a": A})
    held = write_lock(cache / "demo")
    with start_python(program, clips, cache, stderr=subprocess.PIPE) as ingesting:
        line = next(line for line in ingesting.stderr if "waiting for" in line)
        assert f"waiting for process {os.getpid()} (" in line
        held.close()
        ingesting.communicate()
    assert ingesting.returncode == 0
    assert sorted(len(there) for there in FeatureStore(cache)["demo"].sets.values()) == [1, 3]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o600), (0o002, 0o660), (0, 0o666)])
def test_a_lock_file_can_be_read_by_those_alone_that_may_write_it(tmp_path, umask, mode):
    """To open it for reading would be enough to lock it."""
    before = os.umask(umask)
    try:
        for name in LOCK_FILES:
            with taken(tmp_path, name):
                pass
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_lock_file_of_an_older_release_is_closed_to_readers(tmp_path):
    (tmp_path / WRITE_LOCK_FILE).touch(0o644)
    (tmp_path / WRITE_LOCK_FILE).chmod(0o644)
    write_lock(tmp_path).close()
    assert stat.S_IMODE((tmp_path / WRITE_LOCK_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("there", path)])
@pytest.mark.parametrize("name", LOCK_FILES)
def test_what_is_no_file_in_place_of_a_lock_file_is_refused(tmp_path, name, make):
    make(tmp_path / name)
    refused = pytest.raises(
        StoreError, match=f"{name} cannot be locked: it is not a file; remove it"
    )
    with refused, taken(tmp_path, name):
        pass
