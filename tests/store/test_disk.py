"""Full, read-only and vanished disks: a clear error, what was committed readable, and on it goes once there is room."""

import contextlib
import shutil

import lmdb
import numpy as np
import pytest
from disks import KINDS, fill, free, read_only_view, remount, small_disk
from toys import expected, put_video, run_python, store_videos, toy_features, toy_spec

from featstore.errors import StoreError, StoreFull, StoreNotFound
from featstore.store.engine import handles
from featstore.store.engine.environment import open_environment
from featstore.store.engine.lmdb_errors import store_error, translated
from featstore.store.maintenance import compact
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.remove import remove_videos
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.maintenance.seal import seal_dataset
from featstore.store.reader import FeatureStore, get
from featstore.store.writer import FeatureWriter

pytestmark = pytest.mark.slow

SPEC = toy_spec(4000)
X = toy_features(0, 4000)  # 128 KB stored
UNCHECKED = -(
    1 << 50
)  # bytes to leave free: what another program takes between check and commit cannot be checked


@pytest.fixture(params=KINDS)
def disk(tmp_path, request):
    with small_disk(tmp_path, request.param) as place:
        yield place


def write_until_full(cache, first: int = 0) -> int:
    """Store one video a commit until it is refused; return how many were committed."""
    count = first
    with FeatureWriter(cache, "demo", min_free=UNCHECKED) as writer:
        writer.add_set(SPEC, origin="toy")
        while True:
            put_video(writer, SPEC, str(count), X)
            writer.commit()
            count += 1


def all_right(cache, count: int) -> bool:
    dataset = FeatureStore(cache)["demo"]
    assert set(dataset) == {str(i) for i in range(count)}
    assert check_dataset(cache, "demo").problems == []
    return all(np.array_equal(dataset[video].data, expected(X)) for video in dataset)


def test_a_disk_that_another_program_fills_keeps_what_was_committed(disk):
    store_videos(disk, "demo", {str(i): X for i in range(10)}, spec=SPEC)
    fill(disk)
    for _ in range(3):  # LMDB's file stays good, and so does the writer
        with pytest.raises(StoreFull, match="free some space and run the command again"):
            write_until_full(disk, 10)
        assert all_right(disk, 10)
    free(disk)
    store_videos(disk, "demo", {str(i): X for i in range(10, 20)}, spec=SPEC)
    assert all_right(disk, 20)


def test_a_disk_that_the_store_fills_keeps_what_was_committed(disk):
    (disk / "spare").write_bytes(bytes(400_000))
    with pytest.raises(StoreFull) as caught:
        write_until_full(disk)
    stored = len(FeatureStore(disk)["demo"])
    assert stored > 50
    assert all_right(disk, stored)
    assert isinstance(caught.value, OSError)
    gone = [str(i) for i in range(stored - 5, stored)]
    with contextlib.suppress(StoreFull):  # to remove takes a few pages; ext4 may have them left
        remove_videos(disk, "demo", gone)
    (disk / "spare").unlink()
    remove_videos(disk, "demo", gone)
    assert all_right(disk, stored - 5)
    with FeatureWriter(disk, "demo", min_free=UNCHECKED) as writer:
        put_video(writer, SPEC, gone[0], X)
    assert all_right(disk, stored - 4)


def test_the_check_before_a_put_says_how_much_is_missing(disk):
    store_videos(disk, "demo", {"0": X}, spec=SPEC)
    fill(disk)
    with pytest.raises(
        StoreFull,
        match=r"[\d.]+ (K|M|)i?B are free, the next record of .* needs up to 1\.\d MiB.* make room",
    ):
        store_videos(disk, "demo", {"1": X}, spec=SPEC)
    assert all_right(disk, 1)


def test_on_a_full_disk_a_dataset_is_read_but_none_made(disk):
    store_videos(disk, "demo", {"0": X}, spec=SPEC)
    fill(disk)
    program = """
import sys
from toys import *
from featstore.store.engine.environment import *
store_videos_refused = False
environment = open_environment(Path(sys.argv[1]) / "demo")
snapshots = [environment._begin() for _ in range(500)]
import featstore
assert featstore.get(sys.argv[1], "demo", "0").shape == (16000, 8)
try:
    store_videos(sys.argv[1], "other", {})
except featstore.StoreFull as exc:
    print(exc)
"""
    done = run_python(program, disk)
    assert done.returncode == 0, "a bus error, where the reader table has holes"
    assert done.stdout, "refused"
    assert list(FeatureStore(disk)) == ["demo"]


def test_a_store_that_came_without_its_lock_file_says_what_it_needs(disk):
    """To make lock.mdb on a full disk ended the process with a bus error."""
    store_videos(disk, "demo", {"0": X}, spec=SPEC)
    (disk / "demo" / "lock.mdb").unlink()
    fill(disk)
    program = "import featstore, sys; print(featstore.get(sys.argv[1], 'demo', '0').shape)"
    done = run_python(program, disk)
    assert done.returncode in (0, 1), "ended by a signal"
    assert done.returncode == 0 or "no room for the 64 KiB of lock.mdb" in done.stderr
    free(disk)
    assert all_right(disk, 1)


def test_a_compaction_without_room_leaves_the_dataset_as_it_is(disk, monkeypatch):
    store_videos(disk, "demo", {str(i): X for i in range(12)}, spec=SPEC)
    fill(disk)
    with pytest.raises(StoreFull, match="make room"):
        compact_dataset(disk, "demo")
    monkeypatch.setattr(compact, "free_bytes", lambda path: 1 << 40)
    with pytest.raises(StoreFull):
        compact_dataset(disk, "demo")
    assert not [path for path in disk.iterdir() if path.name.startswith(".")]
    free(disk)
    assert all_right(disk, 12)


def test_a_merge_into_a_full_disk_goes_on_once_there_is_room(disk, tmp_path):
    store_videos(tmp_path / "source", "demo", {str(i): X for i in range(12)}, spec=SPEC)
    store_videos(disk, "demo", {"0": X}, spec=SPEC)
    fill(disk)
    assert "is full" in merge_dataset(tmp_path / "source", disk, "demo", min_free=UNCHECKED).full
    assert all_right(disk, 1)
    free(disk)
    assert merge_dataset(tmp_path / "source", disk, "demo", min_free=0).stored == 11
    assert all_right(disk, 12)


def test_a_read_only_disk_is_read_and_refuses_to_be_written(tmp_path):
    with small_disk(tmp_path, "ext4") as disk:
        program = """
import sys
from toys import *
store_videos(sys.argv[1], "demo", {"0": toy_features(0, 4000)}, spec=toy_spec(4000))
"""
        assert run_python(program, disk).returncode == 0
        remount(disk, writable=False)
        assert all_right(disk, 1)
        for write in (
            lambda: store_videos(disk, "demo", {"1": X}, spec=SPEC),
            lambda: store_videos(disk, "other", {}),
            lambda: remove_videos(disk, "demo", ["0"]),
            lambda: repair_dataset(disk, "demo"),
            lambda: compact_dataset(disk, "demo"),
        ):
            with pytest.raises(StoreError, match="Read-only file system"):
                write()


def test_a_mount_that_alone_is_read_only_is_read_where_the_dataset_is_sealed(cache, tmp_path):
    """A reader without a slot: the writer beside it would use the pages it is looking at."""
    store_videos(cache, "demo", {"0": X}, spec=SPEC)
    with read_only_view(cache, tmp_path / "view") as view:
        with pytest.raises(StoreError, match=r"mounted read-only here: .* or seal it on a machine"):
            get(view, "demo", "0", spec=SPEC)
        seal_dataset(cache, "demo")
        assert np.array_equal(get(view, "demo", "0", spec=SPEC).data, get(cache, "demo", "0").data)


def test_a_dataset_taken_away_while_it_is_written_is_said_so(cache):
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(SPEC, origin="toy")
        put_video(writer, SPEC, "0", X)
        writer.commit()
        shutil.rmtree(cache / "demo")
        with pytest.raises(StoreError, match=r"there is no dataset in .*/cache/demo"):
            put_video(writer, SPEC, "1", X)


def test_a_dataset_taken_away_while_it_is_read_stays_good_for_whoever_holds_it(cache):
    store_videos(cache, "demo", {"0": X}, spec=SPEC)
    dataset = FeatureStore(cache)["demo"]
    held = dataset["0"]
    shutil.rmtree(cache)
    assert np.array_equal(held.data, expected(X))
    for look in (
        lambda: dataset["0"],
        lambda: get(cache, "demo", "0"),
        lambda: check_dataset(cache, "demo"),
    ):
        with pytest.raises(StoreNotFound):
            look()


def test_a_limit_on_the_size_of_files_is_a_full_store(cache):
    store_videos(cache, "demo", {"0": X}, spec=SPEC)
    program = """
import resource, sys, featstore
from toys import *
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    store_videos(sys.argv[1], "demo", {str(i): toy_features(0, 4000) for i in range(20)}, spec=toy_spec(4000))
except featstore.StoreFull as exc:
    print("full", len(featstore.open(sys.argv[1])["demo"]))
"""
    done = run_python(program, cache)
    assert (done.returncode, done.stdout[:4]) == (0, "full"), done.stderr
    assert all_right(cache, int(done.stdout.split()[1]))


@pytest.mark.parametrize(
    "words", ["Disk quota exceeded", "File too large", "No space left on device"]
)
def test_every_way_of_having_no_room_is_a_full_store(cache, words):
    assert type(store_error(lmdb.Error(f"mdb_txn_commit: {words}"), cache.parent)) is StoreFull


def test_a_full_map_is_a_full_store_and_a_larger_map_goes_on(cache):
    program = """
import sys, featstore
from featstore.store.engine import handles
handles.MAP_BYTES = 1 << 20
from toys import *
try:
    store_videos(sys.argv[1], "demo", {str(i): toy_features(0, 4000) for i in range(20)}, spec=toy_spec(4000))
except featstore.StoreFull as exc:
    assert "is full; ingest into another dataset" in str(exc), exc
    print("full", len(featstore.open(sys.argv[1])["demo"]))
"""
    done = run_python(program, cache)
    assert (done.returncode, done.stdout[:4]) == (0, "full"), done.stderr
    stored = int(done.stdout.split()[1])
    assert 0 < stored < 8
    store_videos(cache, "demo", {str(stored): X}, spec=SPEC)
    assert all_right(cache, stored + 1)


def test_a_full_reader_table_says_so_and_readers_that_were_killed_leave_it(cache, monkeypatch):
    monkeypatch.setattr(handles, "MAX_READERS", 6)
    store_videos(cache, "demo", {"0": X}, spec=SPEC)
    (cache / "demo" / "lock.mdb").unlink()
    monkeypatch.setattr(
        handles, "allocate_table", lambda folder: None
    )  # its size would say how many fit
    environment = open_environment(cache / "demo")
    held = [environment._begin() for _ in range(5)]
    for _ in range(3):
        run_python(
            "import featstore, os, sys; f = featstore.get(sys.argv[1], 'demo', '0'); os.kill(os.getpid(), 9)",
            cache,
        )
    held.append(environment._begin())
    no_more = pytest.raises(StoreError, match="no more fit; end some of them")
    with no_more, translated(cache):
        environment._begin()
    del held[0]
    assert environment._begin().count("catalog") == 1
