import errno
import inspect
import os
import shutil
import threading
from pathlib import Path

import lmdb
import numpy as np
import pytest
from toys import expected, run_python, store_videos, toy_features, toy_spec

from featstore.errors import (
    FeatureNotFound,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreNotFound,
)
from featstore.records.storage import PAGE
from featstore.store import reader
from featstore.store.engine import environment as environment_module
from featstore.store.engine import handles, lmdb_errors, tree
from featstore.store.engine import snapshot as snapshot_module
from featstore.store.engine.environment import Keeper, open_environment, with_room
from featstore.store.engine.lmdb_errors import store_error
from featstore.store.engine.transaction import make_file
from featstore.store.engine.tree import Place
from featstore.store.maintenance.check import check_dataset
from featstore.store.paths import SEAL_FILE
from featstore.store.reader import FeatureStore, get
from featstore.store.writer import FeatureWriter

LMDB_ERRORS = [
    cls for _, cls in inspect.getmembers(lmdb, inspect.isclass) if issubclass(cls, lmdb.Error)
]
A = toy_features(1)


@pytest.mark.parametrize("cls", LMDB_ERRORS)
def test_every_error_of_lmdb_becomes_a_store_error_that_says_what_to_do(tmp_path, cls):
    error = store_error(cls("MDB_WHATEVER: in its own words"), tmp_path)
    assert isinstance(error, StoreError)
    assert str(error).startswith(f"{tmp_path}: ")
    assert "in its own words" in str(error)
    assert ";" in str(error), "what was found; what to do"
    if cls is not lmdb.Error:
        assert "LMDB refused" not in str(error), "a named error deserves its own sentence"


def test_what_looks_damaged_is_checked_and_copied_from_but_not_removed(tmp_path):
    """It may be a good file that was put in another's place, or hold all but one video."""
    errors = [store_error(cls("in its own words"), tmp_path) for cls in LMDB_ERRORS]
    damaged = [error for error in errors if isinstance(error, StoreDamaged)]
    for error in [*damaged, tree.damaged(tmp_path, "page 7 is no page")]:
        assert "featstore check" in str(error)
        assert "featstore merge" in str(error)
        assert "remove" not in str(error)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lmdb.MapFullError("full"), StoreFull),
        (lmdb.DiskError("No space left on device"), StoreFull),
        (lmdb.Error("mdb_txn_commit: No space left on device"), StoreFull),
        (lmdb.Error("mdb_txn_begin: Invalid argument"), StoreError),
        (lmdb.InvalidError("not an LMDB file"), StoreMismatch),
        (lmdb.VersionMismatchError("version"), StoreMismatch),
    ],
)
def test_errors_of_lmdb_that_a_caller_may_act_on_have_their_class(tmp_path, error, kind):
    assert type(store_error(error, tmp_path)) is kind


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            lmdb.LockError("Resource temporarily unavailable"),
            "number, {pid}, in .*--pid=",
        ),
        (lmdb.Error(os.strerror(errno.EMFILE)), "ulimit -n"),
        (lmdb.Error(os.strerror(errno.ENFILE)), "ulimit -n"),
        (lmdb.MapFullError("full"), "the map of 4 TiB is full"),
        (lmdb.MemoryError("memory"), "no address space for the map of 4 TiB; let go of"),
        (lmdb.ReadersFullError("readers"), "1022 readers are at work"),
    ],
)
def test_errors_of_lmdb_that_a_user_may_act_on_name_the_number_or_the_option(tmp_path, error, said):
    with pytest.raises(StoreError, match=f"{tmp_path}: .*{said.format(pid=os.getpid())}"):
        raise store_error(error, tmp_path)


def test_an_unnamed_error_on_a_full_disk_is_a_full_disk(tmp_path, monkeypatch):
    """A full disk reaches us as `Input/output error` as often as by its name."""
    monkeypatch.setattr(lmdb_errors, "is_full", lambda path: True)
    assert (
        type(store_error(lmdb.Error("mdb_txn_commit: Input/output error"), tmp_path)) is StoreFull
    )


def make_data_file(cache: Path, content: bytes) -> None:
    (cache / "demo").mkdir(parents=True)
    (cache / "demo" / "data.mdb").write_bytes(content)


@pytest.mark.parametrize(
    "content",
    [b"abc", bytes(20_000), np.random.default_rng(0).bytes(50_000), b"\xde\xc0\xef\xbe" * 5000],
    ids=["short", "zeros", "noise", "magic"],
)
def test_a_file_that_is_not_lmdbs_is_refused(tmp_path, content):
    make_data_file(tmp_path, content)
    for use in (FeatureStore(tmp_path).__getitem__, lambda name: FeatureWriter(tmp_path, name)):
        with pytest.raises(
            StoreError, match=rf"^{tmp_path}/demo: .* not of LMDB engine 0.9 .* or da"
        ):
            use("demo")
    with pytest.raises(StoreError):
        check_dataset(tmp_path, "demo")
    assert (tmp_path / "demo" / "data.mdb").read_bytes() == content


def test_an_empty_file_is_refused(tmp_path):
    make_data_file(tmp_path, b"")
    with pytest.raises(StoreError):
        FeatureStore(tmp_path)["demo"]


def test_a_file_of_lmdb_engine_1_is_refused(tmp_path):
    (tmp_path / "demo").mkdir()
    lmdb.open(str(tmp_path / "demo"), lib_version=1).close()
    for use in (FeatureStore(tmp_path).__getitem__, lambda name: FeatureWriter(tmp_path, name)):
        with pytest.raises(StoreMismatch, match=r"not of LMDB engine 0\.9"):
            use("demo")


def test_a_folder_without_a_file_is_no_dataset(tmp_path):
    with pytest.raises(
        StoreNotFound, match=r"there is no dataset in .*; make it with featstore ingest"
    ):
        open_environment(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_process_has_one_environment_for_a_file_by_whatever_name(cache, tmp_path):
    store_videos(cache, "demo", {"a": A})
    (tmp_path / "link").symlink_to(cache)
    one = open_environment(cache / "demo")
    assert open_environment(tmp_path / "link" / "demo") is one
    assert FeatureWriter(cache, "demo")._keeper.environment is one
    del one
    (cache / "demo" / SEAL_FILE).touch()
    sealed = open_environment(cache / "demo")
    assert sealed.reads_alone
    assert open_environment(tmp_path / "link" / "demo") is sealed


def test_what_is_kept_of_a_full_address_space_is_let_go_of_once_and_no_other_error_is_tried_again(
    cache,
):
    store_videos(cache, "demo", {"a": A})
    keeper = Keeper(cache / "demo")
    keeper.open()
    for kept, error in (
        (True, StoreError("another")),
        (False, store_error(lmdb.MemoryError(os.strerror(errno.ENOMEM)), cache)),
        (False, store_error(lmdb.Error(os.strerror(errno.EMFILE)), cache)),
    ):
        tries: list[object] = []

        def make(error=error, tries=tries) -> None:
            tries.append(keeper.environment)
            raise error from (error.__cause__ or Exception(str(error)))

        keeper.open()
        with pytest.raises(StoreError):
            with_room(make)
        assert len(tries) == 2 - kept
        assert (keeper.environment is not None) is kept
    keeper.open()


def test_of_all_keepers_those_used_last_keep_their_environments(cache, monkeypatch):
    monkeypatch.setattr(environment_module, "KEPT_ENVIRONMENTS", 2)
    keepers = []
    for name in ("one", "two", "three"):
        store_videos(cache, name, {"a": A})
        keepers.append(Keeper(cache / name))
    for number, kept in ((0, [0]), (1, [0, 1]), (0, [0, 1]), (2, [0, 2]), (1, [1, 2])):
        keepers[number].open()
        assert [at for at, keeper in enumerate(keepers) if keeper.environment is not None] == kept


def test_of_all_records_those_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(snapshot_module, "CACHED_RECORDS", 2)
    cache = snapshot_module.Cache()
    for key, kept in ((b"a", b"a"), (b"b", b"ab"), (b"c", b"bc"), (b"b", b"cb"), (b"d", b"bd")):
        cache.put(key, object())
        assert b"".join(cache._records) == kept
        assert cache.get(kept[:1]) is not None
        cache._records.move_to_end(kept[-1:])


def test_a_value_that_the_file_no_longer_has_is_damage_and_no_bus_error(cache):
    store_videos(cache, "demo", {"a": A})
    snapshot = open_environment(cache / "demo").snapshot()
    size = snapshot.mapping.file_bytes()
    assert len(snapshot.view(Place(size - 10, 10))) == 10
    for place in (Place(size - 10, 11), Place(size, 1), Place(size + 5, 0)):
        with pytest.raises(StoreDamaged, match=f"{cache}/demo: .* are gone"):
            snapshot.view(place)


def test_an_environment_closes_with_its_last_reference(cache):
    def opened():
        path = cache / "demo"  # other tests of this process may have kept theirs
        return sum(known.path == path for known in environment_module._environments.values())

    store_videos(cache, "demo", {"a": A})
    assert opened() == 0
    features = get(cache, "demo", "a")
    assert opened() == 1
    reader._shared.clear()
    assert opened() == 1, "the view keeps it"
    del features
    assert opened() == 0


def test_a_file_replaced_while_it_is_opened_is_not_taken_for_the_new_one(cache, monkeypatch):
    store_videos(cache, "demo", {"old": A})
    store_videos(cache / "aside", "demo", {"new": A})
    real_open = handles.open_liblmdb

    def replaced_meanwhile(folder, *, readonly):
        opened = real_open(folder, readonly=readonly)
        if (cache / "aside" / "demo").exists():
            (cache / "demo").rename(cache / "before")
            (cache / "aside" / "demo").rename(cache / "demo")
        return opened

    monkeypatch.setattr(handles, "open_liblmdb", replaced_meanwhile)
    assert list(FeatureStore(cache)["demo"]) == ["new"]
    shutil.rmtree(cache / "before")


def test_a_folder_removed_while_it_is_opened_is_opened_again_if_another_took_its_place(
    cache, monkeypatch
):
    store_videos(cache, "demo", {"old": A})
    store_videos(cache / "aside", "demo", {"new": A})
    real_open = handles.open_liblmdb

    def removed_meanwhile(name, **options):
        monkeypatch.undo()
        shutil.rmtree(cache / "demo")
        (cache / "aside" / "demo").rename(cache / "demo")
        return real_open(name, **options)

    monkeypatch.setattr(handles, "open_liblmdb", removed_meanwhile)
    assert list(FeatureStore(cache)["demo"]) == ["new"]


def test_one_snapshot_is_shared_until_something_is_committed(cache):
    store_videos(cache, "demo", {"a": A})
    environment = open_environment(cache / "demo")
    first = environment.snapshot()
    assert environment.snapshot() is first
    store_videos(cache, "demo", {"b": A})
    second = environment.snapshot()
    assert second is not first
    assert first.count("catalog") == 1
    assert second.count("catalog") == 2
    assert len(list(first.keys("records"))) == 1


def test_a_listing_is_of_one_snapshot_whatever_is_committed_meanwhile(cache):
    store_videos(cache, "demo", {str(i): A for i in range(10)})
    entries = FeatureStore(cache)["demo"].entries()
    seen = [next(entries).video_id]
    store_videos(cache, "demo", {str(i): A for i in range(10, 20)})
    seen += [entry.video_id for entry in entries]
    assert sorted(seen, key=int) == [str(i) for i in range(10)]


def test_tables_do_not_run_into_each_other(tmp_path):
    make_file(tmp_path, "manifest", b"k", b"m")
    environment = open_environment(tmp_path)
    with environment.lmdb.begin(write=True) as txn:
        for table, name in snapshot_module.TABLES.items():
            txn.put(name, table.encode())
            txn.put(name + b"\xff" * 400, b"last")
    snapshot = environment.snapshot()
    for table in snapshot_module.TABLES:
        assert snapshot.read(table, b"") == table.encode()
        assert snapshot.count(table) == 2 + (table == "manifest")
        assert [value for _, value in snapshot.rows(table, b"\xff")] == [b"last"]


def test_an_empty_value_is_an_empty_view(tmp_path):
    make_file(tmp_path, "records", b"k", b"")
    view = open_environment(tmp_path).snapshot().get("records", b"k")
    assert view is not None
    assert bytes(view) == b""


@pytest.mark.parametrize("frames", [1, 4, 700])
def test_a_payload_lies_on_a_page_of_the_map_and_is_read_only(cache, frames):
    """So that typed views are aligned, however small the record is."""
    store_videos(cache, "demo", {"a": toy_features(0, frames)}, spec=toy_spec(700))
    data = get(cache, "demo", "a").data
    assert data.ctypes.data % PAGE == 0
    assert not data.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        data[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        data.flags.writeable = True


def test_many_threads_read_at_once(cache):
    store_videos(cache, "demo", {str(i): toy_features(i) for i in range(20)})
    wanted = {str(i): expected(toy_features(i)) for i in range(20)}
    failures: list[object] = []
    stop = threading.Event()

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(300):
                video = str(rng.integers(20))
                if not np.array_equal(get(cache, "demo", video).data, wanted[video]):
                    failures.append(video)
        except BaseException as exc:
            failures.append(exc)

    def write() -> None:
        try:
            while not stop.is_set():
                store_videos(cache, "demo", {"other": A})
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=hammer, args=(i,)) for i in range(6)]
    writing = threading.Thread(target=write)
    for thread in [*threads, writing]:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    writing.join()
    assert failures == []


def test_a_sealed_dataset_is_read_without_liblmdb_and_without_its_lock_file(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})
    (cache / "demo" / "lock.mdb").unlink()
    (cache / "demo" / SEAL_FILE).touch()
    with monkeypatch.context() as patch:
        patch.setattr(handles, "open_liblmdb", lambda *_, **__: pytest.fail("opened by liblmdb"))
        features = get(cache, "demo", "a")
        assert np.array_equal(features.data, expected(A))
        with pytest.raises(FeatureNotFound, match=f"--cache-dir {cache}"):
            get(cache, "demo", "b")
    assert not (cache / "demo" / "lock.mdb").exists()
    with pytest.raises(StoreError, match="is sealed: it is read without locks"):
        store_videos(cache, "demo", {"b": A})
    del features
    (cache / "demo" / SEAL_FILE).unlink()
    store_videos(cache, "demo", {"b": A})
    assert sorted(FeatureStore(cache)["demo"]) == ["a", "b"]


def test_a_store_can_be_written_and_described_while_the_process_ends(cache):
    """Finalizers run newest first: the environment's descriptors were closed before."""
    program = """
import sys, weakref
from featstore.store.describe import write_cache_meta
from featstore.store.reader import get
from toys import *
store_videos(sys.argv[1], "demo", {"a": toy_features(1)})
class Owner: pass
owner = Owner()
def end():
    store_videos(sys.argv[1], "demo", {"b": toy_features(2)})
    write_cache_meta(sys.argv[1])
weakref.finalize(owner, end)
get(sys.argv[1], "demo", "a")
"""
    done = run_python(program, cache)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"videos": 2' in (cache / "cache_meta.json").read_text()


def test_a_fork_beside_a_transaction_leaves_parent_and_child_able_to_open(cache):
    """Of what fails after a fork nothing is raised: Python prints it."""
    program = """
import os, sys
from pathlib import Path
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.reader import get
from toys import *
cache = sys.argv[1]
held = get(cache, "demo", "a")
txn = WriteTransaction(Path(cache) / "demo")
pid = os.fork()
assert get(cache, "other", "a").shape == get(cache, "demo", "a").shape
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
txn.abort()
store_videos(cache, "demo", {"b": toy_features(2)})
"""
    for name in ("demo", "other"):
        store_videos(cache, name, {"a": A})
    done = run_python(program, cache, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_opens_what_its_parent_keeps_open_anew(cache):
    store_videos(cache, "demo", {"a": A})
    keeper = Keeper(cache / "demo")
    parents = keeper.open()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"own" if keeper.open() is not parents else b"its parent's")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 20) == b"own"
    assert keeper.open() is parents
    os.close(reading)
    os.close(writing)


def test_a_keeper_follows_a_link_to_where_it_points_now(cache, tmp_path):
    for name in ("before", "after"):
        store_videos(cache, name, {name: A})
    link = tmp_path / "link"
    link.symlink_to(cache / "before")
    held, through = open_environment(cache / "before"), Keeper(link)
    assert through.open() is held, "opened under another name"
    link.unlink()
    link.symlink_to(cache / "after")
    assert through.open() is open_environment(cache / "after")


def test_a_reader_leaves_no_file_in_a_folder_that_was_made_again_while_it_opened_it(
    cache, monkeypatch
):
    store_videos(cache, "demo", {"old": A})
    real_open = handles.open_liblmdb

    def removed_meanwhile(name, **options):
        monkeypatch.undo()
        (cache / "demo").rename(cache / "before")
        (cache / "demo").mkdir()  # as an ingest begins
        return real_open(name, **options)

    monkeypatch.setattr(handles, "open_liblmdb", removed_meanwhile)
    with pytest.raises(StoreNotFound):
        FeatureStore(cache)["demo"]
    assert not (cache / "demo" / "data.mdb").exists()
    store_videos(cache, "demo", {"new": A})
    assert list(FeatureStore(cache)["demo"]) == ["new"]
    shutil.rmtree(cache / "before")
