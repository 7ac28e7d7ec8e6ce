import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from disks import remount, small_disk
from toys import (
    expected,
    put_video,
    run_python,
    start_python,
    store_videos,
    toy_features,
    toy_spec,
)

from featstore.errors import StoreError, StoreLocked, StoreNotFound
from featstore.store.engine import transaction
from featstore.store.engine.locks import ingest_lock
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.remove import remove_dataset, remove_set, remove_videos
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.maintenance.seal import seal_dataset, unseal_dataset
from featstore.store.paths import SEAL_FILE, is_sealed
from featstore.store.reader import FeatureStore, get
from featstore.store.writer import FeatureWriter

pytestmark = pytest.mark.slow

SPEC = toy_spec()
A, B = toy_features(1), toy_features(2)
NOBODY = 65534


@pytest.fixture
def sealed(cache):
    store_videos(cache, "demo", {"a": A, "b": B})
    seal_dataset(cache, "demo")
    return cache


@pytest.mark.parametrize(
    "write",
    [
        lambda cache: FeatureWriter(cache, "demo"),
        lambda cache: store_videos(cache, "demo", {"c": A}),
        lambda cache: remove_videos(cache, "demo", ["a"]),
        lambda cache: remove_set(cache, "demo", SPEC),
        lambda cache: compact_dataset(cache, "demo"),
        lambda cache: repair_dataset(cache, "demo"),
    ],
)
def test_a_sealed_dataset_is_not_written_to(sealed, write):
    before = (sealed / "demo" / "data.mdb").read_bytes()
    with pytest.raises(
        StoreError, match=r"is sealed: .* featstore seal --undo --cache-dir .* --dataset demo"
    ):
        write(sealed)
    assert (sealed / "demo" / "data.mdb").read_bytes() == before


def test_a_sealed_dataset_is_read_checked_and_merged_from(sealed, tmp_path):
    assert np.array_equal(get(sealed, "demo", "a").data, expected(A))
    assert check_dataset(sealed, "demo").problems == []
    assert merge_dataset(sealed, tmp_path / "other", "demo", min_free=0).stored == 2


def test_a_writer_that_was_open_is_refused_once_it_is_sealed(cache):
    writer = FeatureWriter(cache, "demo", min_free=0)
    writer.add_set(SPEC, origin="toy")
    seal_dataset(cache, "demo")
    with pytest.raises(StoreError, match="is sealed"):
        put_video(writer, SPEC, "a", A)


def test_a_commit_under_way_is_waited_for(cache):
    writer = FeatureWriter(cache, "demo", min_free=0)
    writer.add_set(SPEC, origin="toy")
    put_video(writer, SPEC, "a", A)
    other = threading.Thread(target=seal_dataset, args=(cache, "demo"))
    other.start()
    other.join(0.2)
    assert not is_sealed(cache / "demo")
    writer.commit()
    other.join(30)
    assert is_sealed(cache / "demo")
    assert "a" in FeatureStore(cache)["demo"]


def test_sealing_is_refused_while_an_ingest_is_at_work_and_where_there_is_nothing(cache):
    store_videos(cache, "demo", {"a": A})
    for act in (seal_dataset, unseal_dataset):
        with ingest_lock(cache / "demo"), pytest.raises(StoreLocked):
            act(cache, "demo")
        with pytest.raises(StoreNotFound):
            act(cache, "other")
    assert not is_sealed(cache / "demo")


def test_a_seal_is_a_file_as_any_under_the_umask(cache):
    store_videos(cache, "demo", {"a": A})
    before = os.umask(0)
    try:
        seal_dataset(cache, "demo")
    finally:
        os.umask(before)
    assert stat.S_IMODE((cache / "demo" / SEAL_FILE).stat().st_mode) == 0o666


def test_a_seal_is_lifted_though_the_lock_file_is_gone(sealed):
    (sealed / "demo" / "lock.mdb").unlink(missing_ok=True)
    unseal_dataset(sealed, "demo")
    store_videos(sealed, "demo", {"new": A})


def test_sealing_twice_and_lifting_no_seal_do_nothing(sealed):
    seal_dataset(sealed, "demo")
    unseal_dataset(sealed, "demo")
    inode = (sealed / "demo" / "data.mdb").stat().st_ino
    unseal_dataset(sealed, "demo")
    assert (sealed / "demo" / "data.mdb").stat().st_ino == inode
    store_videos(sealed, "demo", {"c": A})


READER = """
import sys, featstore
from toys import *
dataset = featstore.open(sys.argv[1], verify="never")["demo"]
snapshot = dataset.snapshot()
features = dataset["a"]
print("open", flush=True)
sys.stdin.readline()
assert np.array_equal(features.data, expected(toy_features(1)))
assert len(list(snapshot.rows("catalog"))) == 2
assert len(dataset) == 102
assert np.array_equal(dataset["a"].data, expected(toy_features(2)))
"""


def test_a_reader_without_locks_is_safe_from_what_is_written_once_the_seal_is_lifted(sealed):
    """Written in place, its pages would be used again under its eyes."""
    with start_python(READER, sealed) as reader:
        assert reader.stdout.readline() == "open\n"
        unseal_dataset(sealed, "demo")
        assert not (sealed / "demo" / SEAL_FILE).exists()
        store_videos(sealed, "demo", {str(i): B for i in range(100)})
        remove_videos(sealed, "demo", ["a", "b"])
        store_videos(sealed, "demo", {"a": B, "b": A})
        reader.communicate("go\n", timeout=60)
        assert reader.returncode == 0


def test_the_same_process_goes_on_when_the_seal_is_lifted(cache):
    store_videos(cache, "demo", {"a": A})
    store = FeatureStore(cache)
    opened_before = store["demo"]["a"]
    seal_dataset(cache, "demo")
    assert store["demo"]["a"].shape == (16, 8)
    unseal_dataset(cache, "demo")
    store_videos(cache, "demo", {"a": B})
    assert np.array_equal(store["demo"]["a"].data, expected(B))
    assert np.array_equal(opened_before.data, expected(A))


def test_a_seal_that_cannot_be_lifted_stays(sealed):
    (sealed / "demo" / "mine").mkdir()
    with pytest.raises(StoreError, match="not featstore's"):
        unseal_dataset(sealed, "demo")
    assert is_sealed(sealed / "demo")
    assert get(sealed, "demo", "a").shape == (16, 8)


def test_a_sealed_dataset_can_be_removed_whole(sealed):
    remove_dataset(sealed, "demo")
    assert list(sealed.iterdir()) == []


def as_nobody(action: str, *arguments: object) -> CompletedProcess[str]:
    """Run an action as a user who owns nothing, once all is imported that this user may perhaps not read."""
    program = f"""
import os, sys, featstore
from toys import *
from featstore.errors import *
from featstore.store.maintenance.seal import *
from featstore.store.maintenance.compact import *
from featstore.store.maintenance.remove import *
[getattr(featstore, name) for name in featstore.__all__]
x = toy_features(1)
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
{action}
"""
    return run_python(program, *arguments)


@pytest.fixture
def shared():
    """A cache that others may read, made by root, where no folder above is private."""
    if os.geteuid() != 0:
        pytest.skip("to become another user takes root")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        cache = Path(folder, "cache")
        store_videos(cache, "demo", {"a": A})
        yield cache


GET = "import featstore, sys; print(featstore.get(sys.argv[1], 'demo', 'a').shape)"


def test_a_user_who_may_not_write_reads_a_sealed_dataset_and_is_told_so_of_others(shared):
    refused = as_nobody(GET, shared)
    assert refused.returncode == 1
    assert "ask its owner to seal it: featstore seal" in refused.stderr
    seal_dataset(shared, "demo")
    done = as_nobody(GET, shared)
    assert (done.returncode, done.stdout) == (0, "(16, 8)\n"), done.stderr


def test_a_folder_that_may_not_be_entered_is_said_so(shared):
    (shared / "demo").chmod(0o700)
    for act in ("featstore.get(sys.argv[1], 'demo', 'a')", "remove_dataset(sys.argv[1], 'demo')"):
        done = as_nobody(f"try:\n    {act}\nexcept StoreError as exc:\n    print(exc)", shared)
        assert "Permission denied" in done.stdout, done.stderr


def test_a_folder_that_may_not_be_entered_hides_none_beside_it(shared):
    seal_dataset(shared, "demo")
    store_videos(shared, "private", {"a": A})
    (shared / "private").chmod(0o700)
    names = "featstore.open(sys.argv[1])"
    done = as_nobody(
        f"print(list({names}), 'demo' in {names}, 'private' in {names})\n{GET}", shared
    )
    assert (done.returncode, done.stdout) == (0, "['demo'] True False\n(16, 8)\n"), done.stderr
    refused = as_nobody("featstore.open(sys.argv[1])['private']", shared)
    assert "private cannot be looked into: Permission denied" in refused.stderr
    shared.chmod(0o744)
    refused = as_nobody(f"print(list({names}))", shared)
    assert "cache cannot be looked into" in refused.stderr


def test_a_user_who_may_not_write_can_change_nothing(shared):
    before = (shared / "demo" / "data.mdb").read_bytes()
    for act in (
        "store_videos(sys.argv[1], 'demo', {'b': x})",
        "seal_dataset(sys.argv[1], 'demo')",
        "compact_dataset(sys.argv[1], 'demo')",
        "remove_dataset(sys.argv[1], 'demo')",
    ):
        done = as_nobody(f"try:\n    {act}\nexcept StoreError as exc:\n    print(exc)", shared)
        assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr
    assert (shared / "demo" / "data.mdb").read_bytes() == before


def test_a_sealed_dataset_is_read_from_a_read_only_disk_without_its_lock_file(tmp_path):
    with small_disk(tmp_path, "ext4") as disk:
        program = """
import sys
from toys import *
from featstore.store.maintenance.seal import *
store_videos(sys.argv[1], "demo", {"a": toy_features(1)})
seal_dataset(sys.argv[1], "demo")
"""
        assert run_python(program, disk).returncode == 0
        (disk / "demo" / "lock.mdb").unlink()
        remount(disk, writable=False)
        assert run_python(GET, disk).stdout == "(16, 8)\n"
        with pytest.raises(StoreError, match="Read-only file system"):
            unseal_dataset(disk, "demo")


def test_a_copy_of_a_sealed_dataset_is_sealed(sealed, tmp_path):
    shutil.copytree(sealed, tmp_path / "copy")
    with pytest.raises(StoreError, match="is sealed"):
        store_videos(tmp_path / "copy", "demo", {"c": A})
    unseal_dataset(tmp_path / "copy", "demo")
    store_videos(tmp_path / "copy", "demo", {"c": A})


def test_a_file_with_another_name_is_not_sealed_until_it_has_its_own(cache, tmp_path):
    """Who writes through the other name sees no seal."""
    store_videos(cache, "demo", {"a": A})
    snap = tmp_path / "snap"
    shutil.copytree(cache, snap, copy_function=os.link)
    with pytest.raises(StoreError, match=r"1 other name \(hard links.*featstore compact"):
        seal_dataset(snap, "demo")
    assert not is_sealed(snap / "demo")
    compact_dataset(snap, "demo")
    seal_dataset(snap, "demo")
    held = get(snap, "demo", "a")
    for seed in range(4):
        store_videos(cache, "demo", {"a": toy_features(seed)})
    assert np.array_equal(held.data, expected(A))
    assert np.array_equal(get(snap, "demo", "a").data, expected(A))


def test_who_reads_sealed_is_seen_by_writers_when_the_seal_is_removed_by_hand(sealed, monkeypatch):
    monkeypatch.setattr(transaction, "OTHERS_WAIT", 0.0)
    held = get(sealed, "demo", "a")
    (sealed / "demo" / SEAL_FILE).unlink()
    with pytest.raises(StoreLocked, match=r"sealed was deleted .* featstore seal --undo only"):
        store_videos(sealed, "demo", {"a": B})
    assert np.array_equal(held.data, expected(A))
    del held
    assert np.array_equal(get(sealed, "demo", "a").data, expected(A)), "opens it as it is now"
    store_videos(sealed, "demo", {"a": B})
    assert np.array_equal(get(sealed, "demo", "a").data, expected(B))
