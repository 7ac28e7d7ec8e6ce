"""Records fetched from a folder of shards, as on a network file system, into a bounded folder on a local disk."""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash
from toys import expected, run_python, store_videos, toy_features

import featstore
from featstore.encoders.toy import ToyEncoder
from featstore.errors import StoreDamaged, StoreError, StoreFull, StoreMismatch, StoreNotFound
from featstore.pipeline.cluster.shard import Share, ingest_share
from featstore.records.record import LMDB_VALUE_OFFSET
from featstore.store.maintenance import push_pull
from featstore.store.maintenance.check import check_dataset
from featstore.store.shards.places import LocalPlace
from featstore.store.shards.remote.obstore_words import ask
from featstore.store.shards.remote.tier import LocalTier
from featstore.system.filesystems import parse_bytes

VIDEOS = {f"v{number}": toy_features(number) for number in range(6)}


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A cache directory of sealed shards, as it lies on a network file system."""
    store_videos(tmp_path / "made", "demo", VIDEOS)
    push_pull.push(tmp_path / "made", str(tmp_path / "share"))
    return tmp_path / "share"


def content(number: int, length: int = 1000) -> bytes:
    return bytes([number]) * length


def digest(number: int) -> bytes:
    return xxhash.xxh3_128_digest(content(number))


class Server:
    """Brings records, and counts them."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def get(self, tier: LocalTier, number: int):
        def fetch(take):
            self.fetched.append(number)
            whole = memoryview(content(number))
            take(whole[:300])
            take(whole[300:])

        return tier.get("demo", digest(number), 1000, fetch)


def bytes_at(found) -> bytes:
    view = np.ctypeslib.as_array(
        (np.ctypeslib.ctypes.c_ubyte * found.length).from_address(found.address)
    )
    return view[LMDB_VALUE_OFFSET:].tobytes()


def files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.rec"))


def test_a_share_is_read_through_a_local_folder(share, tmp_path):
    store = featstore.open(share, local=tmp_path / "local", max_size="1MB")
    assert sorted(store["demo"]) == sorted(VIDEOS)
    for video, x in VIDEOS.items():
        assert (store["demo"][video].data == expected(x)).all()


def test_the_local_folder_is_a_cache_directory_like_any_other(share, tmp_path):
    featstore.open(share, local=tmp_path / "local")
    found = featstore.get(tmp_path / "local", "demo", "v1")
    assert (found.data == expected(VIDEOS["v1"])).all()
    assert len(featstore.open(tmp_path / "local")["demo"]) == len(VIDEOS)


def test_an_index_is_brought_once_as_it_was_verified(share, tmp_path, monkeypatch):
    brought, read = [], LocalPlace.read

    def count(place, name, most):
        brought.extend([name] if name.endswith(".idx") and place.root == share else [])
        return read(place, name, most)

    monkeypatch.setattr(LocalPlace, "read", count)
    featstore.open(share, local=tmp_path / "local")
    assert len(brought) == 1
    push_pull.pull(str(share), tmp_path / "back")
    assert len(brought) == 2


def test_what_is_pulled_needs_room_before_it_is_brought(share, tmp_path, monkeypatch):
    monkeypatch.setattr(push_pull, "free_bytes", lambda path: 100)
    with pytest.raises(StoreFull, match=r"no room for a shard of [0-9.]+ KiB; free some"):
        push_pull.pull(str(share), tmp_path / "back")
    assert not list((tmp_path / "back").rglob("*.mdb"))


def test_a_file_that_is_made_by_another_stays_and_no_draft_is_left(tmp_path):
    place = LocalPlace(tmp_path)
    assert place.create("demo/shards/manifest-1.json", b"one")
    assert not place.create("demo/shards/manifest-1.json", b"two")
    assert place.names("demo/shards") == {"manifest-1.json": 3}
    assert place.read("demo/shards/manifest-1.json", 10) == b"one"


def test_a_payload_lies_on_a_page_and_is_not_copied(share, tmp_path):
    features = featstore.open(share, local=tmp_path / "local")["demo"]["v1"]
    assert features.data.__array_interface__["data"][0] % 4096 == 0
    assert not features.data.flags.owndata
    assert not features.data.flags.writeable


def test_what_was_fetched_is_served_when_the_share_is_gone(share, tmp_path):
    store = featstore.open(share, local=tmp_path / "local")
    store["demo"]["v1"]
    share.rename(tmp_path / "away")
    again = featstore.open(tmp_path / "local")
    assert (again["demo"]["v1"].data == expected(VIDEOS["v1"])).all()
    with pytest.raises(StoreError, match="share"):
        again["demo"]["v2"]


def test_a_shard_that_was_damaged_is_refused_and_not_kept(share, tmp_path):
    shard = next((share / "demo" / "shards").glob("*.mdb"))
    shard.write_bytes(bytes(len(shard.read_bytes())))
    store = featstore.open(share, local=tmp_path / "local")
    with pytest.raises(StoreDamaged, match="what came is not kept"):
        store["demo"]["v1"]
    assert files(tmp_path / "local") == 0
    assert not any((tmp_path / "local" / ".fetching").iterdir())


def test_a_damaged_file_of_the_folder_is_fetched_again(share, tmp_path):
    featstore.open(share, local=tmp_path / "local")["demo"]["v1"]
    (kept,) = (tmp_path / "local").rglob("*.rec")
    kept.write_bytes(bytes(kept.stat().st_size))
    server, tier = Server(), LocalTier(tmp_path / "tier", 10_000)
    server.get(tier, 1)
    tier.path("demo", digest(1)).write_bytes(bytes(1016))
    assert bytes_at(server.get(LocalTier(tmp_path / "tier", 10_000), 1)) == content(1)
    assert server.fetched == [1, 1]


@pytest.mark.parametrize("name", ["manifest-1.json", "*.idx"])
@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_a_list_or_an_index_of_the_folder_that_was_damaged_is_fetched_again(
    share, tmp_path, name, damage
):
    featstore.open(share, local=tmp_path / "local")
    [path] = (tmp_path / "local" / "demo" / "shards").glob(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data) if damage == "flip" else path.unlink()
    demo = featstore.open(share, local=tmp_path / "local")["demo"]
    np.testing.assert_array_equal(demo["v1"].data, expected(VIDEOS["v1"]))


def test_a_folder_of_which_the_first_opening_was_killed_is_opened_again(
    share, tmp_path, monkeypatch
):
    def die(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalPlace, "put", die)
        with pytest.raises(KeyboardInterrupt):
            featstore.open(share, local=tmp_path / "local")
    assert len(featstore.open(share, local=tmp_path / "local")["demo"]) == len(VIDEOS)


def test_a_place_without_a_store_leaves_the_folder_free_for_another(share, tmp_path):
    with pytest.raises(StoreNotFound):
        featstore.open(tmp_path / "nothing", local=tmp_path / "local")
    assert "demo" in featstore.open(share, local=tmp_path / "local")


def test_no_shards_are_put_beside_one_file_or_into_a_local_folder(share, tmp_path):
    made, local = tmp_path / "made", tmp_path / "local"
    featstore.open(share, local=local)
    for target in (made, local):
        for copy in (push_pull.push, push_pull.pull):
            source = made if copy is push_pull.push else share
            with pytest.raises(StoreMismatch, match="take another cache directory"):
                copy(str(source), str(target))
    assert len(featstore.open(made)["demo"]) == len(VIDEOS)


@pytest.mark.parametrize("name", ["*.mdb", "*.idx"])
def test_a_file_that_was_removed_is_copied_again(share, tmp_path, name):
    other = tmp_path / "other"
    push_pull.push(share, str(other))
    for copy in (push_pull.push, push_pull.pull):
        [path] = (other / "demo" / "shards").glob(name)
        path.unlink()
        [done] = copy(str(share), str(other))
        assert done.copied == (name == "*.mdb")
        assert check_dataset(other, "demo").problems == []


def test_a_folder_has_records_of_one_place(share, tmp_path):
    featstore.open(share, local=tmp_path / "local")
    with pytest.raises(StoreMismatch, match="another local="):
        featstore.open("s3://elsewhere/demo", local=tmp_path / "local")
    with pytest.raises(StoreMismatch, match="of its own"):
        featstore.open(share, local=tmp_path / "made")


def test_a_url_needs_a_local_folder():
    with pytest.raises(StoreError, match="local=FOLDER"):
        featstore.open("s3://bucket/prefix")
    with pytest.raises(StoreError, match="local=FOLDER"):
        featstore.get("s3://bucket/prefix", "demo", "v1")


def test_a_network_file_system_is_read_through_a_local_folder_only(share, tmp_path, monkeypatch):
    monkeypatch.setattr("featstore.store.shards.union.unreliable_kind", lambda path: "nfs4")
    with pytest.raises(StoreError, match=r"nfs4.*local=FOLDER"):
        featstore.open(share)["demo"]["v1"]
    found = featstore.open(share, local=tmp_path / "local")["demo"]["v1"]
    assert (found.data == expected(VIDEOS["v1"])).all()


def test_a_dataset_pushed_later_is_found(share, tmp_path):
    store = featstore.open(share, local=tmp_path / "local")
    store_videos(tmp_path / "made", "later", {"w": toy_features(9)})
    push_pull.push(tmp_path / "made", str(share), ["later"])
    assert (store["later"]["w"].data == expected(toy_features(9))).all()


def test_a_newer_list_is_read_when_it_is_time(share, tmp_path, monkeypatch):
    from featstore.store.shards.remote import reading

    store = featstore.open(share, local=tmp_path / "local")
    assert "new" not in store["demo"]
    for number in range(2):
        more = tmp_path / f"more{number}"
        store_videos(more, "demo", {f"new{number}": toy_features(20 + number)})
        push_pull.push(more, str(share))
    assert "new1" not in store["demo"]
    monkeypatch.setattr(reading, "REMOTE_REFRESH", 0)
    deadline = time.monotonic() + 60
    while "new0" not in store["demo"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "new1" in store["demo"]


@pytest.mark.parametrize("lists", [1, 2])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_dataset_that_was_made_anew_there_is_read_anew(
    share, tmp_path, monkeypatch, lists, is_open
):
    """Its lists have numbers that the folder has already."""
    from featstore.store.shards.remote import reading

    if lists == 2:
        store_videos(tmp_path / "more", "demo", {"more": toy_features(20)})
        push_pull.push(tmp_path / "more", str(share))
    store = featstore.open(share, local=tmp_path / "local")
    np.testing.assert_array_equal(store["demo"]["v1"].data, expected(VIDEOS["v1"]))
    shutil.rmtree(share / "demo")
    store_videos(tmp_path / "anew", "demo", {"v1": toy_features(40)})
    push_pull.push(tmp_path / "anew", str(share))
    if is_open:
        monkeypatch.setattr(reading, "REMOTE_REFRESH", 0)
        deadline = time.monotonic() + 60
        while len(store["demo"]) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
    else:
        store = featstore.open(share, local=tmp_path / "local")
    np.testing.assert_array_equal(store["demo"]["v1"].data, expected(toy_features(40)))
    assert len(store["demo"]) == 1


def test_no_share_is_ingested_into_a_local_folder(share, tmp_path):
    featstore.open(share, local=tmp_path / "local")
    with pytest.raises(StoreError, match="has single records of"):
        ingest_share([], tmp_path / "local", "demo", Share(0, 1), encoder=ToyEncoder())


def test_a_server_that_does_not_answer_holds_up_no_lookup_of_what_is_there(
    share, tmp_path, monkeypatch
):
    from featstore.store.shards.remote import reading

    demo = featstore.open(share, local=tmp_path / "local")["demo"]
    demo["v1"]
    silent = threading.Event()
    monkeypatch.setattr(reading, "REMOTE_REFRESH", 0)
    monkeypatch.setattr(reading, "copy_list", lambda *given: silent.wait(60) and None)
    demo["v1"]
    silent.set()


def test_a_signal_interrupts_who_waits_for_a_store():
    answered = threading.Event()

    def answer():
        os.kill(os.getpid(), signal.SIGINT)
        answered.wait(60)

    with pytest.raises(KeyboardInterrupt):
        ask(answer)
    answered.set()
    assert [ask(len, "ab"), ask(next, iter(()), None)] == [2, None]
    with pytest.raises(ZeroDivisionError):
        ask(divmod, 1, 0)


def test_a_dataset_that_is_one_file_is_not_called_missing(share, tmp_path):
    store_videos(tmp_path / "share", "file", VIDEOS)
    with pytest.raises(StoreMismatch, match="is one file"):
        featstore.open(share, local=tmp_path / "local")["file"]
    with pytest.raises(StoreMismatch, match="has single records of"):
        featstore.open(tmp_path / "local", local=tmp_path / "other")


def test_a_lock_goes_with_its_fetch_also_if_a_child_was_forked_meanwhile(tmp_path):
    tier = LocalTier(tmp_path, 1 << 20)
    children = []

    def fetch(take):
        children.append(os.fork())
        if not children[0]:
            time.sleep(60)
            os._exit(0)
        take(memoryview(content(1)))

    tier.get("demo", digest(1), 1000, fetch)
    try:
        for path in (tmp_path / ".locks").iterdir():
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


def test_no_more_bytes_are_kept_than_allowed_and_the_oldest_go(tmp_path):
    tier, server = LocalTier(tmp_path, 3 * 1016 + 10), Server()
    for number in (1, 2, 3):
        server.get(tier, number)
        os.utime(tier.path("demo", digest(number)), (number, number))
    os.utime(tier.path("demo", digest(1)), (9, 9))  # it was used again
    server.get(tier, 4)
    assert files(tmp_path) == tier.used_bytes() <= 3 * 1016 + 10
    assert [n for n in (1, 2, 3, 4) if tier.path("demo", digest(n)).exists()] == [1, 4]


def test_a_held_view_outlives_the_removal_of_its_file(tmp_path):
    tier, server = LocalTier(tmp_path, 1016), Server()
    held = server.get(tier, 1)
    server.get(tier, 2)
    assert not tier.path("demo", digest(1)).exists()
    assert bytes_at(held) == content(1)
    assert bytes_at(server.get(tier, 1)) == content(1)
    assert server.fetched == [1, 2]


def test_a_record_larger_than_all_room_is_refused(tmp_path):
    with pytest.raises(StoreFull, match="max_size"):
        Server().get(LocalTier(tmp_path, 1015), 1)


def test_of_many_that_want_a_record_one_fetches_it(tmp_path):
    server = Server()
    with ThreadPoolExecutor(8) as pool:
        tiers = [LocalTier(tmp_path, 1 << 20) for _ in range(8)]  # as of so many processes
        found = list(pool.map(lambda tier: bytes_at(server.get(tier, 1)), tiers))
    assert server.fetched == [1]
    assert set(found) == {content(1)}


def test_what_a_killed_fetch_left_takes_no_room(tmp_path):
    tier, server = LocalTier(tmp_path, 2 * 1016), Server()
    left = tmp_path / ".fetching" / "dead"
    left.write_bytes(bytes(1016))
    server.get(tier, 1)
    server.get(tier, 2)
    assert not left.exists()
    assert files(tmp_path) == 2 * 1016


def test_what_is_being_fetched_keeps_its_room(tmp_path):
    tier = LocalTier(tmp_path, 2 * 1016)
    with open(tmp_path / ".fetching" / "busy", "wb") as busy:
        busy.write(bytes(1200))
        busy.flush()
        fcntl.flock(busy, fcntl.LOCK_EX)
        with pytest.raises(StoreFull, match="being fetched"):
            Server().get(tier, 1)
    Server().get(tier, 1)


def test_folders_that_were_removed_are_made_again(tmp_path):
    tier, server = LocalTier(tmp_path, 1 << 20), Server()
    server.get(tier, 1)
    for name in (".fetching", ".locks"):
        shutil.rmtree(tmp_path / name)
    assert bytes_at(server.get(tier, 2)) == content(2)


def test_what_the_system_refuses_is_an_error_of_ours(tmp_path, monkeypatch):
    tier = LocalTier(tmp_path, 1500)

    def refuse(*given):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreError, match="cannot be looked into: Too many open files"):
        Server().get(tier, 1)


def test_a_fetch_that_fails_gives_its_room_back(tmp_path):
    tier = LocalTier(tmp_path, 1016)

    def broken(take):
        take(memoryview(bytes(500)))
        raise StoreError("gone")

    for _ in range(3):
        with pytest.raises(StoreError, match="gone"):
            tier.get("demo", digest(1), 1000, broken)
    assert tier.used_bytes() == 0
    Server().get(tier, 1)


def test_more_bytes_than_the_index_says_are_refused(tmp_path):
    with pytest.raises(StoreDamaged, match="more than"):
        LocalTier(tmp_path, 10_000).get(
            "demo", digest(1), 1000, lambda take: take(memoryview(bytes(1001)))
        )


@pytest.mark.race
def test_threads_that_read_more_than_fits_keep_to_the_bound(tmp_path):
    most, stop, seen = 5 * 1016, threading.Event(), []

    def watch():
        tier = LocalTier(tmp_path, most)
        while not stop.is_set():
            sizes = {}  # by inode: a file that gets its name while all are looked at is one
            with tier._room.locked("room"):
                for path in [*(tmp_path / ".fetching").iterdir(), *tmp_path.glob("*/records/*/*")]:
                    with contextlib.suppress(FileNotFoundError):
                        found = path.stat()
                        sizes[found.st_ino] = found.st_size
            seen.append(sum(sizes.values()))
            time.sleep(0.001)

    def read(seed):
        tier, server = LocalTier(tmp_path, most), Server()
        for number in np.random.default_rng(seed).integers(1, 12, 60):
            assert bytes_at(server.get(tier, int(number))) == content(int(number))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(read, range(3)))
    stop.set()
    watcher.join()
    assert 0 < max(seen) <= most


@pytest.mark.parametrize(
    ("text", "size"), [("200GB", 200 * 10**9), ("1.5 GiB", 3 << 29), ("7", 7), (9, 9), ("2k", 2000)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "1XB", "5iB", "1e9", True, "nan", None])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"size|bytes"):
        parse_bytes(text)


FORKED = """
import os, signal, sys, threading
from pathlib import Path
import featstore
from featstore.store.shards import union

demo = featstore.open(sys.argv[1], local=sys.argv[2])["demo"]
demo["v1"]
os.utime(next(Path(sys.argv[2]).glob("demo/shards/manifest-*.json")))  # to be read again
read_list, inside, done = union.read_list, threading.Event(), threading.Event()

def wait(*args):
    inside.set()
    done.wait()
    return read_list(*args)

union.read_list = wait
reading = threading.Thread(target=demo.snapshot)
reading.start()
inside.wait()
child = os.fork()
if not child:
    signal.alarm(20)  # a lock that the thread held is never released here
    union.read_list = read_list
    demo["v1"], demo["v2"]
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
done.set()
reading.join()
"""


def test_a_child_that_is_forked_while_a_thread_reads_the_list_reads_on(share, tmp_path):
    done = run_python(FORKED, share, tmp_path / "local")
    assert done.stdout == "0\n", done.stderr
