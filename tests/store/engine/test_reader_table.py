"""lock.mdb and data.mdb deleted or replaced while processes have them open: refused or followed, never misread."""

import contextlib
import fcntl
import random
import shutil
import subprocess
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from toys import expected, put_video, run_python, start_python, store_videos, toy_features, toy_spec

from featstore.errors import StoreError, StoreLocked
from featstore.store.engine import environment as environment_module
from featstore.store.engine import handles, transaction
from featstore.store.engine.reader_table import is_being_written
from featstore.store.maintenance.check import check_dataset
from featstore.store.paths import WRITE_LOCK_FILE, identify
from featstore.store.reader import FeatureStore, get
from featstore.store.writer import FeatureWriter

SPEC = toy_spec()
A, B = toy_features(0), toy_features(1)
REPLACE_ALL = """
import sys
from featstore.store.engine import transaction
from toys import *
transaction.OTHERS_WAIT = 0.0
for seed in range(10, 15):
    store_videos(sys.argv[1], "demo", {name: toy_features(seed) for name in "abcdef"})
"""


def is_of(features, x) -> bool:
    return np.array_equal(features.data, expected(x))


def delete(lock: Path) -> None:
    lock.unlink()


def replace(lock: Path) -> None:
    """As a restored backup does."""
    shutil.copy2(lock, lock.with_name("restored"))
    lock.with_name("restored").rename(lock)


def write_elsewhere(cache: Path, program: str = REPLACE_ALL) -> subprocess.CompletedProcess[str]:
    return run_python(program, cache)


@pytest.fixture(params=[delete, replace])
def lose_lock_file(request, cache):
    """Delete or replace lock.mdb, as no program of ours does."""

    def lose() -> None:
        request.param(cache / "demo" / "lock.mdb")

    return lose


@pytest.mark.slow
def test_views_stay_good_when_the_lock_file_goes_and_writers_wait_for_them(cache, lose_lock_file):
    """The writer's reader table does not name the reader: its pages would be written over."""
    store_videos(cache, "demo", {name: A for name in "abc"})
    store = FeatureStore(cache)
    features = store["demo"]["a"]
    lose_lock_file()
    done = write_elsewhere(cache)
    assert is_of(features, A)
    assert "was deleted or replaced while it was in use" in done.stderr
    assert is_of(store["demo"]["b"], A), "a look-up opens the new one"
    del features
    done = write_elsewhere(cache)
    assert done.returncode == 0, done.stderr
    assert is_of(store["demo"]["b"], toy_features(14))


def test_a_writer_is_not_in_its_own_way_when_the_lock_file_goes(cache, lose_lock_file):
    writer, idle = FeatureWriter(cache, "demo", min_free=0), FeatureStore(cache)["demo"]
    writer.add_set(SPEC, origin="toy")
    for video in "abc":
        put_video(writer, SPEC, video, A)
        writer.commit()
        lose_lock_file()
    assert sorted(idle) == ["a", "b", "c"]


def test_a_process_that_holds_views_refuses_to_write_over_them_when_the_lock_file_goes(
    cache, lose_lock_file, monkeypatch
):
    monkeypatch.setattr(transaction, "OTHERS_WAIT", 0.0)
    store_videos(cache, "demo", {"a": A})
    features = get(cache, "demo", "a")
    lose_lock_file()
    with pytest.raises(StoreLocked, match="let go of their features, or end them"):
        store_videos(cache, "demo", {"a": B})
    assert is_of(features, A)
    del features
    store_videos(cache, "demo", {"a": B})
    assert is_of(get(cache, "demo", "a"), B)


@pytest.mark.slow
def test_no_acknowledged_commit_is_lost_when_both_locks_go_while_a_writer_is_at_work(
    cache, lose_lock_file
):
    """Two writers that hold two mutexes would both go on from the same commit."""
    store_videos(cache, "demo", {"a": A})
    writer = FeatureWriter(cache, "demo", min_free=0)
    put_video(writer, SPEC, "mine", A)
    lose_lock_file()
    (cache / "demo" / "write.lock").unlink()
    done = write_elsewhere(cache)
    assert "StoreLocked" in done.stderr
    writer.commit()
    put_video(writer, SPEC, "mine too", A)
    writer.commit()
    done = write_elsewhere(cache)
    assert done.returncode == 0, done.stderr
    assert sorted(FeatureStore(cache)["demo"]) == sorted(["a", "mine", "mine too", *"bcdef"])


@pytest.mark.slow
def test_who_opened_the_new_lock_file_sees_the_commit_of_who_had_the_old_one(cache, lose_lock_file):
    store_videos(cache, "demo", {"a": A})
    writer = FeatureWriter(cache, "demo", min_free=0)
    put_video(writer, SPEC, "mine", A)
    lose_lock_file()
    reader = start_python(
        """
import sys, featstore
store = featstore.open(sys.argv[1])
print(sorted(store["demo"]), flush=True)
input()
print(sorted(store["demo"]), flush=True)
""",
        cache,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stdout.readline() == "['a']\n"
    writer.commit()
    out, _ = reader.communicate("\n")
    assert (reader.returncode, out) == (0, "['a', 'mine']\n")


@pytest.mark.slow
def test_a_forked_child_that_holds_the_parents_views_keeps_writers_away(cache):
    store_videos(cache, "demo", {name: A for name in "abc"})
    program = f"""
import os, sys, featstore
from toys import *
features = featstore.get(sys.argv[1], "demo", "a")
ready, tell = os.pipe()
if os.fork() == 0:
    os.read(ready, 1)
    os._exit(0 if np.array_equal(features.data, expected(toy_features(0))) else 1)
os.unlink(sys.argv[1] + "/demo/lock.mdb")
done = run_python({REPLACE_ALL!r}, sys.argv[1])
os.write(tell, b"x")
assert os.wait()[1] == 0
print(done.stderr)
"""
    done = run_python(program, cache)
    assert done.returncode == 0, done.stderr
    assert "StoreLocked" in done.stdout


READ = """
import random, sys, time, featstore
from toys import *
store, held, end = featstore.open(sys.argv[1]), [], time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    data = store["demo"][random.choice("abc")].data
    held.append((data, data.copy()))
    assert all(np.array_equal(data, copy) for data, copy in held), "other bytes"
    del held[: random.randrange(4)]
"""
WRITE = """
import sys, time, featstore
from toys import *
made, end = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    try:
        store_videos(sys.argv[1], "demo", {name: toy_features(made) for name in (*"abc", f"{sys.argv[3]}{made}")})
    except featstore.errors.StoreLocked:
        continue
    made += 1
print(made)
"""


@pytest.mark.race
def test_readers_and_writers_stay_right_while_lock_files_are_deleted_all_the_time(cache):
    store_videos(cache, "demo", {name: A for name in "abc"})
    seconds, seed = 6, random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    readers = [start_python(READ, cache, seconds) for _ in range(3)]
    writers = [start_python(WRITE, cache, seconds, name) for name in "xy"]
    while any(process.poll() is None for process in (*readers, *writers)):
        for name in ("lock.mdb", "write.lock"):
            with contextlib.suppress(FileNotFoundError):
                if chance.random() < 0.1:
                    (cache / "demo" / name).unlink()
        time.sleep(chance.random() * 0.2)  # the drill's own pace
    for reader in readers:
        reader.communicate()
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    there = set(FeatureStore(cache)["demo"])
    for writer, name in zip(writers, "xy", strict=True):
        made = int(writer.communicate()[0])
        assert writer.returncode == 0
        assert {f"{name}{i}" for i in range(made)} <= there


@pytest.fixture(params=[3, 4, 5, 6, 11], ids=lambda commits: f"{commits} commits")
def other_file(request, tmp_path) -> Path:
    """A good file of the same dataset, of fewer, as many and more commits than the first, which has four."""
    for i in range(request.param - 3):  # one makes the file, one the set
        store_videos(tmp_path / "other", "demo", {"new": toy_features(20 + i)})
    store_videos(tmp_path / "other", "demo", {"new": B})
    return tmp_path / "other" / "demo" / "data.mdb"


@pytest.mark.slow
def test_a_data_file_replaced_by_renaming_is_followed_while_readers_live(cache, other_file):
    """The lock file goes on naming the old file's last commit for as long as anyone has it open."""
    store_videos(cache, "demo", {"old": A, "older": A})
    store = FeatureStore(cache)
    features = store["demo"]["old"]
    other_file.rename(cache / "demo" / "data.mdb")
    done = run_python(
        "import featstore, sys; print(featstore.get(sys.argv[1], 'demo', 'new').data.sum())", cache
    )
    assert done.stdout == f"{expected(B).sum()}\n", done.stderr
    assert list(store["demo"]) == ["new"]
    assert is_of(store["demo"]["new"], B)
    assert check_dataset(cache, "demo").problems == []
    done = write_elsewhere(cache)
    assert done.returncode == 0, done.stderr
    store_videos(cache, "demo", {"a": A})
    assert is_of(store["demo"]["a"], A)
    assert is_of(store["demo"]["b"], toy_features(14))
    assert is_of(features, A)


def test_a_commit_into_a_data_file_that_was_replaced_is_not_acknowledged(cache, other_file):
    store_videos(cache, "demo", {"old": A, "older": A})
    writer = FeatureWriter(cache, "demo", min_free=0)
    put_video(writer, SPEC, "mine", A)
    other_file.rename(cache / "demo" / "data.mdb")
    assert list(FeatureStore(cache)["demo"]) == ["new"]
    with pytest.raises(StoreError, match="was removed or replaced while it was written"):
        writer.commit()
    assert list(FeatureStore(cache)["demo"]) == ["new"]
    writer.add_set(SPEC, origin="toy")
    put_video(writer, SPEC, "mine", A)
    writer.commit()
    assert sorted(FeatureStore(cache)["demo"]) == ["mine", "new"]


def test_an_environment_is_opened_again_by_another_thread_while_it_ends(cache, monkeypatch):
    """weakref says that it is gone before its lock file is closed, which liblmdb takes only once."""
    store_videos(cache, "demo", {"a": A})
    real = handles.open_liblmdb

    def open_once(name, **options):
        assert identify(cache / "demo" / "lock.mdb") not in handles._handles
        return real(name, **options)

    monkeypatch.setattr(handles, "open_liblmdb", open_once)
    environment = environment_module.open_environment(cache / "demo")
    found: list[object] = []

    def look() -> None:
        try:
            found.append(is_of(get(cache, "demo", "a"), A))
        except BaseException as exc:
            found.append(exc)

    def look_in_a_thread(gone: object) -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    watch = weakref.ref(environment, look_in_a_thread)
    del environment
    assert watch() is None
    assert found == [True]


OWN_PROCESS = """
import gc, os, shutil, sys, threading
import featstore
from featstore.store.engine import handles
from featstore.store.engine.settings import KEPT_ENVIRONMENTS
from toys import *
cache, names = sys.argv[1], sys.argv[2:]
A, B, SPEC = toy_features(0), toy_features(1), toy_spec()

def is_of(features, x):
    return np.array_equal(features.data, expected(x))

def is_stored(name):
    return is_of(featstore.get(cache, name, "a"), A)
"""


def run_alone(program: str, *arguments: object, timeout: float = 60) -> None:
    """Run what counts the environments that are open, or needs all that a process can open, without other tests'."""
    done = run_python(OWN_PROCESS + program, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stderr


@pytest.mark.race
def test_threads_that_open_and_let_go_of_one_dataset_are_not_in_each_others_way(cache):
    store_videos(cache, "demo", {"a": A})
    program = """
right = []
def look():
    for _ in range(1500):
        assert is_of(featstore.open(cache)["demo"]["a"], A)
    right.append(True)

threads = [threading.Thread(target=look) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert right == [True] * 4
gc.collect()
assert len(handles._handles) == 0
"""
    run_alone(program, cache)


@pytest.fixture
def many(cache) -> list[str]:
    names = [f"set{i}" for i in range(40)]
    for name in names:
        store_videos(cache, name, {"a": A})
    return names


@pytest.mark.slow
def test_a_process_reads_all_datasets_of_a_store_within_a_number_of_maps_and_descriptors(
    cache, many
):
    program = """
before = len(os.listdir("/proc/self/fd"))
assert all(is_stored(name) for name in names)
store = featstore.open(cache)
assert all(len(list(dataset)) == 1 for dataset in store.values())
assert len(store.specs) == len(names)
assert len(handles._handles) == KEPT_ENVIRONMENTS
assert len(os.listdir("/proc/self/fd")) - before <= 5 * KEPT_ENVIRONMENTS
"""
    run_alone(program, cache, *many)


@pytest.mark.slow
def test_a_process_reads_a_thousand_datasets(cache, tmp_path):
    store_videos(cache, "demo", {"a": A})
    program = """
copies = [f"{cache}/../copy{i}" for i in range(1000)]
for copy in copies:
    shutil.copytree(cache, copy)
    assert is_of(featstore.get(copy, "demo", "a"), A)
assert len(handles._handles) == KEPT_ENVIRONMENTS
assert all(is_of(featstore.get(copy, "demo", "a"), A) for copy in copies)
"""
    run_alone(program, cache, timeout=300)


@pytest.mark.slow
def test_views_keep_their_datasets_open_beyond_those_used_last(cache, many):
    program = """
held = {name: featstore.get(cache, name, "a") for name in names[:8]}
assert all(is_stored(name) for name in names[8:])
assert len(handles._handles) == KEPT_ENVIRONMENTS + len(held)
for name in held:
    store_videos(cache, name, {"a": B})
assert all(is_of(features, A) for features in held.values())
"""
    run_alone(program, cache, *many)


FILL = """
held = []
try:
    for name in names:
        held.append(featstore.get(cache, name, "a"))
except featstore.errors.StoreError as exc:
    assert "let go of features of other datasets" in str(exc), exc
assert KEPT_ENVIRONMENTS < len(held) < len(names)
"""


@pytest.mark.slow
def test_more_datasets_than_fit_into_the_address_space_say_so(cache, many):
    run_alone(FILL + "del held[:]\nassert all(is_stored(name) for name in names)", cache, *many)


@pytest.mark.slow
def test_datasets_that_nothing_uses_make_room_for_one_that_is_opened(cache, many):
    program = (
        "held.pop()\nassert all(is_stored(name) for name in names)"  # it is still kept for later
    )
    run_alone(FILL + program, cache, *many)


@pytest.mark.slow
def test_datasets_in_garbage_make_room_for_one_that_is_opened(cache, many):
    """An error that was caught often is in a cycle with what it was about."""
    program = """
gc.disable()
cycle = [held.pop()]
cycle.append(cycle)
del cycle
assert all(is_stored(name) for name in names)
"""
    run_alone(FILL + program, cache, *many)


@pytest.mark.slow
def test_datasets_that_nothing_uses_make_room_for_one_that_is_made(cache, many):
    program = """
held.pop()
store_videos(cache, "new", {"a": A})
assert is_stored("new")
"""
    run_alone(FILL + program, cache, *many)


LIMIT = """
import resource
assert all(is_stored(name) for name in names[:4])
"""


@pytest.mark.slow
def test_datasets_that_nothing_uses_make_room_for_the_map_of_a_file(cache, many):
    """liblmdb's own, of 4 TiB, finds room; the one that is read from, of 64 GiB, does not."""
    program = """
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = pages * os.sysconf("SC_PAGE_SIZE") + (4 << 40) + (32 << 30)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
assert is_stored(names[4])
"""
    run_alone(LIMIT + program, cache, *many)


@pytest.mark.slow
@pytest.mark.parametrize("free", range(5))
def test_datasets_that_nothing_uses_make_room_among_the_open_files(cache, many, free):
    program = """
most = max(map(int, os.listdir("/proc/self/fd"))) + int(names.pop())
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
assert is_stored(names[4])
"""
    run_alone(LIMIT + program, cache, *many, free)


def test_a_file_is_being_written_if_somebody_holds_its_lock_or_it_cannot_be_asked(tmp_path):
    assert not is_being_written(tmp_path)
    lock = tmp_path / WRITE_LOCK_FILE
    lock.touch()
    assert not is_being_written(tmp_path)
    with lock.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert is_being_written(tmp_path)
    assert not is_being_written(tmp_path)
    with lock.open("rb") as held:
        assert not is_being_written(tmp_path)
        fcntl.flock(held, fcntl.LOCK_SH)
        assert not is_being_written(tmp_path)
    lock.unlink()
    lock.symlink_to(tmp_path)  # no lock of ours: whatever it is, nothing is certain
    assert is_being_written(tmp_path)
