import contextlib
import os
import shutil
import threading
import time

import lmdb
import pytest
from damage import put_raw
from toys import run_python, start_python, store_videos, toy_features

from featstore.errors import StoreError, StoreFull
from featstore.store.engine import pages, still_file, transaction
from featstore.store.engine.environment import Environment, open_environment
from featstore.store.engine.locks import LockFile, ingest_lock
from featstore.store.engine.still_file import hold_still
from featstore.store.engine.transaction import WriteTransaction, make_file
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.remove import remove_videos
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.paths import (
    DATA_FILE,
    INGEST_LOCK_FILE,
    LMDB_LOCK_FILE,
    SEAL_FILE,
    WRITE_LOCK_FILE,
)
from featstore.store.reader import FeatureStore, get

A = toy_features(1)
MANY = {str(i): A for i in range(30)}


@pytest.fixture
def proofs(monkeypatch) -> list[object]:
    """The files that were verified, from here on."""
    seen: list[object] = []
    real = pages.find_page_problems

    def find(folder):
        seen.append(folder)
        return real(folder)

    monkeypatch.setattr(pages, "find_page_problems", find)
    return seen


def copied(cache):
    """A copy that nobody looks at once the test is done."""
    return shutil.copytree(cache, cache.parent / "copy")


@pytest.mark.slow
def test_a_file_that_we_left_is_written_to_at_once(cache, proofs):
    store_videos(cache, "demo", {"a": A})
    del proofs[:]
    store_videos(cache, "demo", {"b": A, "c": A})
    remove_videos(cache, "demo", ["b"])
    done = run_python(
        "import sys; from toys import *; store_videos(sys.argv[1], 'demo', {'d': toy_features(1)})",
        cache,
    )
    assert done.returncode == 0, done.stderr
    store_videos(cache, "demo", {"e": A})
    assert proofs == []


def test_a_copied_file_is_verified_before_the_first_write_and_then_not_again(cache, proofs):
    store_videos(cache, "demo", MANY)
    copy = copied(cache)
    del proofs[:]
    store_videos(copy, "demo", {"b": A})
    assert proofs == [copy / "demo"]
    store_videos(copy, "demo", {"c": A})
    assert len(proofs) == 1
    assert check_dataset(copy, "demo").problems == []


@pytest.fixture
def bad_copy(cache):
    """A copy whose leaf pages lie about where their free space begins."""
    store_videos(cache, "demo", MANY)
    copy = copied(cache)
    file = copy / "demo" / "data.mdb"
    content = bytearray(file.read_bytes())
    for page in range(2 * 4096, len(content), 4096):
        if b"catalog/" in content[page : page + 4096]:
            content[page + 12] ^= 0x70
    file.write_bytes(content)
    return copy


def test_a_copy_with_a_damaged_page_may_not_be_written_to(bad_copy):
    refused = r"the pages of .* are damaged: .*nothing is written into it: copy what is good"
    for _ in range(2):
        with pytest.raises(StoreError, match=refused):
            WriteTransaction(bad_copy / "demo")


@pytest.mark.parametrize(
    "write",
    [
        lambda cache: store_videos(cache, "demo", {"new": A}),
        lambda cache: remove_videos(cache, "demo", ["1"]),
        lambda cache: compact_dataset(cache, "demo"),
        lambda cache: repair_dataset(cache, "demo"),
    ],
)
def test_whatever_would_write_leaves_a_damaged_copy_alone(bad_copy, write):
    before = (bad_copy / "demo" / "data.mdb").read_bytes()
    with pytest.raises(StoreError):
        write(bad_copy)
    assert (bad_copy / "demo" / "data.mdb").read_bytes() == before


def test_a_copy_that_was_cut_short_is_refused(cache):
    store_videos(cache, "demo", MANY)
    copy = copied(cache)
    file = copy / "demo" / "data.mdb"
    os.truncate(file, file.stat().st_size - 5000)
    with pytest.raises(StoreError, match="are damaged"):
        remove_videos(copy, "demo", ["1"])


def test_a_file_that_was_written_over_in_place_is_verified(cache, proofs):
    """As `cp` does: the inode stays, and the number of the last transaction may be the same."""
    store_videos(cache, "demo", {"a": A})
    store_videos(cache.parent / "other", "demo", {"b": A})
    del proofs[:]
    (cache / "demo" / "data.mdb").write_bytes(
        (cache.parent / "other" / "demo" / "data.mdb").read_bytes()
    )
    store_videos(cache, "demo", {"c": A})
    assert len(proofs) == 1
    assert set(FeatureStore(cache)["demo"]) == {"b", "c"}


def test_a_foreign_write_is_noticed(cache, proofs):
    store_videos(cache, "demo", {"a": A})
    put_raw(cache, "failures", b"x" * 64, b"nonsense")
    del proofs[:]
    remove_videos(cache, "demo", ["a"])
    assert len(proofs) == 1
    put_raw(cache, "failures", b"x" * 64, None)


@pytest.mark.crash
def test_after_a_kill_the_next_writer_verifies(cache, proofs):
    program = """
import os, signal, sys
from featstore.store.engine import transaction
from toys import *
transaction.leave_note = lambda *words: os.kill(os.getpid(), signal.SIGKILL)
store_videos(sys.argv[1], "demo", {"b": toy_features(1)})
"""
    store_videos(cache, "demo", {"a": A})
    assert run_python(program, cache).returncode == -9
    del proofs[:]
    store_videos(cache, "demo", {"c": A})
    assert len(proofs) == 1
    assert set(FeatureStore(cache)["demo"]) == {"a", "b", "c"}


@pytest.mark.parametrize("note", [b"", b"null", b"{}", b"\xff", b"[" * 4000])
def test_a_note_that_cannot_be_read_is_none(cache, proofs, note):
    store_videos(cache, "demo", {"a": A})
    (cache / "demo" / WRITE_LOCK_FILE).write_bytes(note)
    del proofs[:]
    remove_videos(cache, "demo", ["a"])
    assert len(proofs) == 1


def test_a_note_that_cannot_be_written_costs_a_long_ingest_one_proof(cache, proofs, monkeypatch):
    monkeypatch.setattr(LockFile, "write", lambda lock, note: None)
    store_videos(cache, "demo", {"a": A})
    environment = open_environment(cache / "demo")
    del proofs[:]
    store_videos(cache, "demo", MANY)
    assert len(proofs) <= 1
    del environment


@pytest.mark.parametrize("name", [WRITE_LOCK_FILE, INGEST_LOCK_FILE])
def test_a_lock_that_is_a_link_is_not_written_through(cache, tmp_path, name):
    """A folder from elsewhere may hold one that leads to a file of this user's."""
    store_videos(cache, "demo", {"a": A})
    (cache / "demo" / name).unlink(missing_ok=True)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (cache / "demo" / name).symlink_to(precious)
    with pytest.raises(StoreError, match="cannot be locked"):
        remove_videos(cache, "demo", ["a"])
    assert precious.read_text() == "mine"


def test_writers_take_turns_and_none_verifies_after_another(cache, proofs):
    store_videos(cache, "demo", {"a": A})
    del proofs[:]
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            store_videos(cache, "demo", {f"{name}{i}": A for i in range(20)})
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=write, args=(name,)) for name in "bcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert proofs == []
    assert len(FeatureStore(cache)["demo"]) == 61


HOLD = """
import sys
from pathlib import Path
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.engine.still_file import hold_still
from featstore.store.engine.transaction import WriteTransaction, make_file
txn = WriteTransaction(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


def test_the_right_to_write_dies_with_its_holder(cache):
    store_videos(cache, "demo", {"a": A})
    with start_python(HOLD, cache / "demo") as holder:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    WriteTransaction(cache / "demo").abort()


@pytest.mark.slow
def test_a_forked_child_does_not_keep_the_right_to_write(cache):
    store_videos(cache, "demo", {"a": A})
    program = """
import os, sys, time
from pathlib import Path
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.engine.still_file import hold_still
from featstore.store.engine.transaction import WriteTransaction, make_file
txn = WriteTransaction(Path(sys.argv[1]))
if os.fork() == 0:
    time.sleep(30)
    os._exit(0)
txn.abort()
again = WriteTransaction(Path(sys.argv[1]))
again.abort()
print("done", flush=True)
os.killpg(0, 9)
"""
    program = "import os; os.setpgid(0, 0)\n" + program
    done = run_python(program, cache / "demo", timeout=20)
    assert done.stdout == "done\n", done.stderr


def test_an_error_inside_lets_go(cache):
    store_videos(cache, "demo", {"a": A})

    def fail() -> None:
        with WriteTransaction(cache / "demo") as txn:
            txn.put("failures", b"x", b"y")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with ingest_lock(cache / "demo"), WriteTransaction(cache / "demo") as txn:
        assert txn.get("failures", b"x") is None


def test_a_smaller_value_put_over_a_larger_leaves_no_page_behind(cache):
    """Put over without a deletion, the file does not pass the pages, and never again."""
    store_videos(cache, "demo", {})
    with WriteTransaction(cache / "demo") as txn:
        for size in (50_000, 20_000, 3_000, 30_000, 10):
            txn.put("failures", b"k", bytes(size))
            assert txn.delete("failures", b"k")
            txn.put("failures", b"k", bytes(size * 2))
            txn.put("failures", b"k", bytes(size))
        txn.delete("failures", b"k")
        txn.put("failures", b"other", bytes(40_000))
        txn.put("failures", b"other", bytes(9_000))
    assert pages.find_page_problems(cache / "demo") == []
    put_raw(cache, "failures", b"other", None)


def test_a_writer_waits_until_who_reads_without_its_lock_file_lets_go(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})
    held = [get(cache, "demo", "a")]
    (cache / "demo" / LMDB_LOCK_FILE).unlink()

    def let_go(seconds: float) -> None:
        assert 0 < seconds < 1
        held.clear()

    monkeypatch.setattr(time, "sleep", let_go)
    store_videos(cache, "demo", {"b": A})
    assert held == []


def test_a_lock_file_that_missed_a_commit_is_removed_and_nothing_is_written(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})
    real = Environment.lmdb

    class Ahead:
        """liblmdb's environment, whose lock file knows of one commit less than the data file has."""

        def __init__(self, environment: Environment) -> None:
            self._lmdb = real.__get__(environment)

        def info(self):
            found = self._lmdb.info()
            return found | {"last_txnid": found["last_txnid"] + (self.begun is not None)}

        def begin(self, **options):
            Ahead.begun = self._lmdb.begin(**options)
            return Ahead.begun

        def __getattr__(self, name):
            return getattr(self._lmdb, name)

        begun = None

    monkeypatch.setattr(Environment, "lmdb", property(Ahead))
    with pytest.raises(StoreError, match=r"demo/lock\.mdb did not know of the last commit and was"):
        WriteTransaction(cache / "demo")
    monkeypatch.undo()
    assert not (cache / "demo" / LMDB_LOCK_FILE).exists()
    store_videos(cache, "demo", {"b": A})


def test_an_error_of_lmdb_while_beginning_or_making_a_file_names_the_folder(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})

    def full(*words, **options):
        raise lmdb.MapFullError("full")

    monkeypatch.setattr(Environment, "lmdb", property(full))
    monkeypatch.setattr(transaction, "open_liblmdb", full)
    with pytest.raises(StoreFull, match=f"^{cache}/demo: the map of"):
        WriteTransaction(cache / "demo")
    with pytest.raises(StoreFull, match=f"^{cache}: the map of"):
        make_file(cache, "manifest", b"k", b"m")
    monkeypatch.undo()
    with ingest_lock(cache / "demo"), WriteTransaction(cache / "demo"):
        pass


def test_a_file_in_the_making_is_where_a_compaction_passes_it_over(tmp_path, monkeypatch):
    """A kill leaves it there."""
    seen: list[str] = []
    real = os.link

    def link(source, target):
        seen.extend(path.name for path in tmp_path.iterdir())
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    make_file(tmp_path, "manifest", b"k", b"m")
    assert [name.startswith(".making-") for name in seen] == [True]


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_file_held_still_is_copied_and_what_hinders_that_names_the_dataset(
    cache, tmp_path, sealed, known
):
    store_videos(cache, "demo", {"a": A})
    held = get(cache, "demo", "a") if known else None
    if sealed:
        (cache / "demo" / SEAL_FILE).touch()
        if not known:
            (cache / "demo" / LMDB_LOCK_FILE).unlink()
    with hold_still(cache / "demo", sealed=sealed) as still:
        assert still.rows == 4  # the manifest, the set, the video's row and its record
        still.copy_compacted(tmp_path)
        with pytest.raises(StoreError, match=f"^{cache}/demo: .*File exists"):
            still.copy_compacted(tmp_path)
        assert (cache / "demo" / LMDB_LOCK_FILE).exists() is (known or not sealed)
    del held
    (cache / "demo" / SEAL_FILE).unlink(missing_ok=True)


def test_a_sealed_file_that_cannot_be_opened_to_be_copied_names_the_dataset(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})
    (cache / "demo" / SEAL_FILE).touch()

    def full(*words, **options):
        raise lmdb.MapFullError("full")

    monkeypatch.setattr(still_file, "open_liblmdb", full)
    with pytest.raises(StoreFull, match=f"^{cache}/demo: the map of"):
        hold_still(cache / "demo", sealed=True).__enter__()
    (cache / "demo" / SEAL_FILE).unlink()


def test_the_disk_writes_a_data_file_while_a_commit_still_puts_into_it(tmp_path, monkeypatch):
    early = []

    @contextlib.contextmanager
    def written_early(fd, size):
        early.append((os.fstat(fd).st_ino, size))
        yield

    monkeypatch.setattr(transaction, "written_early", written_early)
    make_file(tmp_path, "manifest", b"k", b"m")
    with WriteTransaction(tmp_path) as txn:
        txn.put("records", b"k", bytes(9000))
        txn.put("catalog", b"k", b"row")
    assert early == [(os.stat(tmp_path / DATA_FILE).st_ino, 9003)]
