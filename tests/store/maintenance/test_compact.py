import errno
import os
import shutil
import stat
import threading
from pathlib import Path

import lmdb
import numpy as np
import pytest
from toys import (
    expected,
    put_video,
    run_python,
    start_python,
    store_videos,
    toy_features,
    toy_spec,
)

from featstore.errors import StoreError, StoreFull, StoreLocked, StoreNotFound
from featstore.store.engine import pages
from featstore.store.engine.environment import open_environment
from featstore.store.engine.locks import ingest_lock, single_flight_lock
from featstore.store.engine.pages import find_page_problems
from featstore.store.engine.still_file import StillFile
from featstore.store.maintenance import compact
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.remove import remove_dataset, remove_videos
from featstore.store.reader import FeatureStore, get
from featstore.store.writer import FeatureWriter

pytestmark = pytest.mark.slow

SPEC = toy_spec(200)
VIDEOS = {str(i): toy_features(i, 200) for i in range(20)}


@pytest.fixture
def hollow(cache):
    """A dataset most of whose file is free pages."""
    store_videos(cache, "demo", VIDEOS, spec=SPEC)
    remove_videos(cache, "demo", [str(i) for i in range(15)])
    return cache


def kept(cache) -> bool:
    dataset = FeatureStore(cache)["demo"]
    assert set(dataset) == {str(i) for i in range(15, 20)}
    return all(np.array_equal(dataset[v].data, expected(VIDEOS[v])) for v in dataset)


def names(cache) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_compacting_gives_back_what_was_removed_and_keeps_the_rest(hollow):
    file = hollow / "demo" / "data.mdb"
    before = file.stat().st_blocks * 512
    done = compact_dataset(hollow, "demo")
    assert (done.before, done.after) == (before, file.stat().st_blocks * 512)
    assert done.after < before / 2
    assert kept(hollow)
    assert find_page_problems(hollow / "demo") == []
    assert names(hollow) == ["demo"]


def test_progress_ends_with_all_bytes_and_never_passes_them(hollow, monkeypatch):
    monkeypatch.setattr(compact, "_LOOK_SECONDS", 0)
    copy, looks, looked = StillFile.copy_compacted, [], threading.Event()

    def slow_copy(self, folder):
        copy(self, folder)
        assert looked.wait(60)

    def look(*found):
        looks.append(found)
        looked.set()

    monkeypatch.setattr(StillFile, "copy_compacted", slow_copy)
    compact_dataset(hollow, "demo", on_progress=look)
    [total] = {total for _, total in looks}
    assert len(looks) > 1
    assert all(0 <= done <= total for done, _ in looks)
    assert looks[-1][0] == total
    assert kept(hollow)


def test_the_estimate_is_what_the_compacted_file_takes(hollow):
    environment = open_environment(hollow / "demo")
    estimate = StillFile(environment.lmdb, environment.path).live_bytes
    compact_dataset(hollow, "demo")
    assert estimate - 4096 <= (hollow / "demo" / "data.mdb").stat().st_size <= estimate + 4096


def test_views_and_stores_that_are_open_go_on(hollow):
    store = FeatureStore(hollow)
    old = store["demo"]["17"]
    listing = store["demo"].entries()
    next(listing)
    compact_dataset(hollow, "demo")
    assert len(list(listing)) == 4, "of the snapshot that it began with"
    assert np.array_equal(store["demo"]["17"].data, expected(VIDEOS["17"]))
    store_videos(hollow, "demo", {"new": VIDEOS["0"]}, spec=SPEC)
    assert np.array_equal(old.data, expected(VIDEOS["17"]))
    assert "new" in store["demo"]


READER = """
import sys, featstore
from toys import *
spec = toy_spec(200)
store = featstore.open(sys.argv[1])
features = store["demo"]["17"]
print("open", flush=True)
sys.stdin.readline()
assert np.array_equal(features.data, expected(toy_features(17, 200)))
assert np.array_equal(store["demo"]["18"].data, expected(toy_features(18, 200)))
assert "new" in store["demo"]
"""


def test_another_process_reads_on(hollow):
    with start_python(READER, hollow) as reader:
        assert reader.stdout.readline() == "open\n"
        compact_dataset(hollow, "demo")
        store_videos(hollow, "demo", {"new": VIDEOS["0"]}, spec=SPEC)
        reader.communicate("go\n", timeout=60)
        assert reader.returncode == 0


def test_a_writer_that_is_open_writes_into_the_new_file(hollow):
    writer = FeatureWriter(hollow, "demo", min_free=0)
    writer.add_set(SPEC, origin="toy")
    compact_dataset(hollow, "demo")
    put_video(writer, SPEC, "new", VIDEOS["0"])
    writer.commit()
    assert np.array_equal(get(hollow, "demo", "new").data, expected(VIDEOS["0"]))


def test_a_writer_that_waits_for_the_compaction_writes_into_the_new_file(hollow, monkeypatch):
    """It waited on the old file's lock; what it then wrote there would be lost."""
    real, started = compact.exchange, threading.Event()

    def write() -> None:
        started.set()
        store_videos(hollow, "demo", {"new": VIDEOS["0"]}, spec=SPEC)

    other = threading.Thread(target=write)

    def meanwhile(one, another):
        other.start()
        started.wait()
        real(one, another)

    monkeypatch.setattr(compact, "exchange", meanwhile)
    compact_dataset(hollow, "demo")
    other.join()
    assert "new" in FeatureStore(hollow)["demo"]
    assert check_dataset(hollow, "demo").problems == []


def test_a_commit_under_way_is_waited_for(hollow):
    writer = FeatureWriter(hollow, "demo", min_free=0)
    writer.add_set(SPEC, origin="toy")
    put_video(writer, SPEC, "new", VIDEOS["0"])
    other = threading.Thread(target=compact_dataset, args=(hollow, "demo"))
    other.start()
    other.join(0.3)
    assert other.is_alive()
    writer.commit()
    other.join(30)
    assert "new" in FeatureStore(hollow)["demo"]


def test_locks_that_are_held_stay_held(hollow):
    with single_flight_lock(hollow / "demo", b"key"):
        compact_dataset(hollow, "demo")
        waiting = threading.Thread(
            target=lambda: single_flight_lock(hollow / "demo", b"key").__enter__()
        )
        waiting.daemon = True
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join(30)
    assert not waiting.is_alive()


def test_nothing_is_compacted_while_an_ingest_is_at_work(hollow):
    with ingest_lock(hollow / "demo"), pytest.raises(StoreLocked):
        compact_dataset(hollow, "demo")
    with pytest.raises(StoreNotFound):
        compact_dataset(hollow, "other")
    assert names(hollow) == ["demo"]


def test_a_disk_without_room_is_said_before_anything_is_written(hollow, monkeypatch):
    monkeypatch.setattr(compact, "free_bytes", lambda path: 1000)
    with pytest.raises(StoreFull, match=r"needs \d+ MiB beside it .*, 0 MiB are free; make room"):
        compact_dataset(hollow, "demo")
    assert names(hollow) == ["demo"]
    assert kept(hollow)


def test_where_folders_cannot_be_exchanged_all_is_as_before(hollow, monkeypatch):
    monkeypatch.setattr(compact, "_RENAME_EXCHANGE", 1 << 20)
    before = (hollow / "demo" / "data.mdb").stat()
    with pytest.raises(
        StoreError, match="cannot be exchanged for another folder: Invalid argument"
    ):
        compact_dataset(hollow, "demo")
    assert os.path.samestat((hollow / "demo" / "data.mdb").stat(), before)
    assert names(hollow) == ["demo"]
    assert kept(hollow)


def test_a_copy_that_is_not_whole_is_not_taken(hollow, monkeypatch):
    monkeypatch.setattr(compact, "find_page_problems", lambda folder: ["a page is missing"])
    with pytest.raises(
        StoreError, match=r"is not whole \(a page is missing\), so the dataset was left"
    ):
        compact_dataset(hollow, "demo")
    assert kept(hollow)


def test_permissions_and_files_of_others_stay(hollow, monkeypatch):
    folder = hollow / "demo"
    for name in ("README", "zebra"):  # one before and one after the files that are made anew
        (folder / name).write_text("whose this is")
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(real(path))))
    folder.chmod(0o2775)
    for name in ("data.mdb", "lock.mdb"):
        (folder / name).chmod(0o664)
    compact_dataset(hollow, "demo")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2775
    for name in ("data.mdb", "lock.mdb"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o664
    for name in ("README", "zebra"):
        assert (folder / name).read_text() == "whose this is"


def test_a_folder_that_is_not_ours_is_refused_and_kept(hollow):
    (hollow / "demo" / "mine").mkdir()
    with pytest.raises(StoreError, match="holds a folder 'mine' that is not featstore's"):
        compact_dataset(hollow, "demo")
    assert (hollow / "demo" / "mine").is_dir()
    assert names(hollow) == ["demo"]


def test_a_dataset_behind_a_link_is_compacted_where_it_lies(hollow, tmp_path):
    (hollow / "demo").rename(tmp_path / "elsewhere")
    (hollow / "demo").symlink_to(tmp_path / "elsewhere")
    done = compact_dataset(hollow, "demo")
    assert done.after < done.before
    assert (hollow / "demo").is_symlink()
    assert kept(hollow)


def test_a_file_that_is_a_link_is_refused(hollow, tmp_path):
    (hollow / "demo" / "data.mdb").rename(tmp_path / "data")
    (hollow / "demo" / "data.mdb").symlink_to(tmp_path / "data")
    with pytest.raises(StoreError, match="is a link"):
        compact_dataset(hollow, "demo")
    assert (hollow / "demo" / "data.mdb").is_symlink()


def test_no_file_is_made_through_a_link(hollow, tmp_path):
    (hollow / "demo" / "flight.lock").symlink_to(tmp_path / "made")
    with pytest.raises(StoreError, match=r"flight\.lock cannot be locked"):
        compact_dataset(hollow, "demo")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "moment", ["_copy", "_finish", "exchange", "sync_file", "sync_dir", "_take_along"]
)
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(hollow, moment, after):
    program = f"""
import os, signal, sys
from featstore.store.engine.still_file import StillFile
from featstore.store.engine.pages import find_page_problems
from featstore.store.maintenance import compact
real = compact.{moment}
def killed(*words):
    if {after}:
        real(*words)
    os.kill(os.getpid(), signal.SIGKILL)
compact.{moment} = killed
compact.compact_dataset(sys.argv[1], "demo")
"""
    assert run_python(program, hollow).returncode == -9
    assert list(FeatureStore(hollow)) == ["demo"]
    assert kept(hollow)
    compact_dataset(hollow, "demo")
    assert names(hollow) == ["demo"]
    assert kept(hollow)


def test_the_old_folder_stays_until_the_new_one_is_sure_to(hollow, monkeypatch):
    """A power loss may bring the old folder back under its name: it must not be empty then."""
    real, folder, old = os.fsync, hollow.stat(), (hollow / "demo" / "data.mdb").stat()

    def sync(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), folder):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", sync)
    for fails in (compact_dataset, compact_dataset, remove_dataset):
        with pytest.raises(StoreError, match="demo cannot be synced: Input/output error; mend the"):
            fails(hollow, "demo")
        assert names(hollow) == [".compacting-demo", "demo"]
        assert os.path.samestat((hollow / ".compacting-demo" / "data.mdb").stat(), old)
        assert kept(hollow)
    monkeypatch.setattr(os, "fsync", real)
    compact_dataset(hollow, "demo")
    assert names(hollow) == ["demo"]
    assert kept(hollow)


def test_what_a_kill_left_is_cleared_by_a_removal_as_well(hollow):
    shutil.copytree(hollow / "demo", hollow / ".compacting-demo")
    remove_dataset(hollow, "demo")
    assert names(hollow) == []


def test_a_file_is_trusted_after_its_compaction(hollow, monkeypatch):
    compact_dataset(hollow, "demo")
    monkeypatch.setattr(pages, "find_page_problems", lambda folder: pytest.fail("verified again"))
    store_videos(hollow, "demo", {"new": VIDEOS["0"]}, spec=SPEC)


WRITE = """
import sys, time
from toys import *
end, i = time.monotonic() + SECONDS, 0
while time.monotonic() < end:
    store_videos(sys.argv[1], "demo", {f"{sys.argv[2]}-{i}": toy_features(i % 7)})
    print(f"{sys.argv[2]}-{i}", flush=True)
    i += 1
"""
COMPACT = """
import sys, time
from featstore.store.maintenance.compact import compact_dataset
end, done = time.monotonic() + SECONDS, 0
while time.monotonic() < end:
    compact_dataset(sys.argv[1], "demo")
    done += 1
print(done)
"""
READ = """
import random, sys, time, featstore
from toys import *
end, held, done = time.monotonic() + SECONDS, [], 0
wanted = [expected(toy_features(i)) for i in range(7)]
dataset = featstore.open(sys.argv[1], verify="always")["demo"]
while time.monotonic() < end:
    for video in random.choices(list(dataset), k=10):
        held = [*held[-3:], (dataset[video], int(video.split("-")[1]) % 7)]
        assert all(np.array_equal(features.data, wanted[i]) for features, i in held), video
        done += 1
print(done)
"""


def test_compactions_among_readers_and_writers_lose_nothing_and_show_nothing_wrong(cache):
    store_videos(cache, "demo", {"x-0": toy_features(0)})
    programs = [(WRITE, "a"), (WRITE, "b"), (COMPACT,), (READ,), (READ,)]
    running = [
        start_python(program.replace("SECONDS", "4"), cache, *words) for program, *words in programs
    ]
    told = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    assert all(told), "each did something"
    assert set(FeatureStore(cache)["demo"]) == {"x-0", *told[0], *told[1]}
    assert check_dataset(cache, "demo").problems == []
    assert names(cache) == ["demo"]


def test_a_copy_that_lacks_rows_is_not_taken(hollow, monkeypatch):
    whole = StillFile.copy_compacted

    def lacking(source, aside):
        whole(source, aside)
        with (
            lmdb.open(os.fspath(aside), map_size=1 << 30, lib_version=0) as environment,
            environment.begin(write=True) as txn,
        ):
            txn.delete(next(iter(txn.cursor().iternext(values=False))))

    monkeypatch.setattr(StillFile, "copy_compacted", lacking)
    with pytest.raises(StoreError, match=r"is not whole \(\d+ of \d+ rows\), so the dataset"):
        compact_dataset(hollow, "demo")
    assert kept(hollow)


def test_room_for_the_copy_and_its_tables_is_enough_and_a_byte_less_is_not(hollow, monkeypatch):
    environment = open_environment(hollow / "demo")
    need = StillFile(environment.lmdb, environment.path).live_bytes + (1 << 20)
    monkeypatch.setattr(compact, "free_bytes", lambda path: need - 1)
    with pytest.raises(StoreFull, match="MiB are free; make room"):
        compact_dataset(hollow, "demo")
    monkeypatch.setattr(compact, "free_bytes", lambda path: need)
    compact_dataset(hollow, "demo")


def test_owner_and_times_that_may_not_be_given_are_left_out(hollow, monkeypatch):
    def refuse(*words):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refuse)
    monkeypatch.setattr(shutil, "copystat", refuse)
    compact_dataset(hollow, "demo")
    assert kept(hollow)


def test_what_a_kill_left_and_this_user_may_not_remove_is_another_users(hollow, monkeypatch):
    shutil.copytree(hollow / "demo", hollow / ".compacting-demo")

    def refuse(*words, **options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(
        StoreError, match=r"left by a compaction that was killed, .* another user's"
    ):
        compact_dataset(hollow, "demo")
    monkeypatch.undo()
    assert kept(hollow)


def test_an_error_of_the_stores_own_is_said_as_it_is(hollow, monkeypatch):
    full = StoreFull("no room left; make some")

    def refused(source, aside):
        raise full

    monkeypatch.setattr(StillFile, "copy_compacted", refused)
    with pytest.raises(StoreFull) as raised:
        compact_dataset(hollow, "demo")
    assert raised.value is full


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, StoreError)],
)
def test_what_the_system_refuses_while_copying_leaves_all_as_it_was(
    hollow, monkeypatch, number, kind
):
    def refused(source, aside):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(StillFile, "copy_compacted", refused)
    with pytest.raises(kind, match=f"{os.strerror(number)}; it is as it was") as raised:
        compact_dataset(hollow, "demo")
    assert type(raised.value) is kind
    assert kept(hollow)


@pytest.mark.parametrize(
    ("folder", "file", "wanted"),
    [
        (0o755, 0o644, 0o755),
        (0o755, 0o640, 0o750),
        (0o755, 0o604, 0o705),
        (0o755, 0o600, 0o700),
        (0o2775, 0o660, 0o2770),
        (0o700, 0o644, 0o700),
    ],
)
def test_the_copys_folder_is_closed_to_those_who_may_not_read_the_file(
    tmp_path, folder, file, wanted
):
    (tmp_path / "data.mdb").touch()
    (tmp_path / "data.mdb").chmod(file)
    tmp_path.chmod(folder)
    assert compact._folder_mode(tmp_path) == wanted
