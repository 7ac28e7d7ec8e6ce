"""Datasets in a real S3 server, while connections break, processes are killed and the server goes."""

import http.server
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash
from click.testing import CliRunner
from object_store import object_server, point_at, proxy, s3  # noqa: F401 (fixtures)
from shard_contract import ShardContract
from toys import REPOSITORY, expected, run_python, start_python, store_videos, toy_features

import featstore
from featstore.cli import main
from featstore.errors import DatasetNotFound, StoreDamaged, StoreError, StoreNotFound
from featstore.store.maintenance import push_pull
from featstore.store.shards.manifest_list import read_list
from featstore.store.shards.remote import bucket
from featstore.store.shards.remote.bucket import BucketPlace
from featstore.store.shards.remote.connection import place_of

pytestmark = pytest.mark.slow
VIDEOS = {f"v{number}": toy_features(number) for number in range(4)}


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A prefix of the bucket of its own."""
    return f"s3://feat/{xxhash.xxh3_64_hexdigest(bytes(tmp_path))}"


@pytest.fixture
def pushed(s3, url, tmp_path) -> str:  # noqa: F811
    store_videos(tmp_path / "made", "demo", VIDEOS)
    push_pull.push(tmp_path / "made", url)
    return url


@pytest.fixture(autouse=True)
def connect_anew():
    """A test's environment says which server is meant."""
    from featstore.store.shards.remote import connection

    connection._place.cache_clear()
    yield
    connection._place.cache_clear()


class TestRemote(ShardContract):
    @pytest.fixture(autouse=True)
    def _server(self, s3, url):  # noqa: F811
        self.url = url

    def serve(self, parts, folder):
        for part in parts:
            push_pull.push(part, self.url)
        featstore.open(self.url, local=folder / "local", max_size="1MB")
        return folder / "local"


def check_all(store) -> None:
    for video, x in VIDEOS.items():
        assert (store["demo"][video].data == expected(x)).all()


def test_what_is_pushed_comes_back_bit_by_bit(pushed, tmp_path):
    push_pull.pull(pushed, tmp_path / "back")
    assert [row.copied for row in push_pull.pull(pushed, tmp_path / "back")] == [0]
    assert [row.copied for row in push_pull.push(tmp_path / "back", pushed)] == [0]
    made, back = featstore.open(tmp_path / "made"), featstore.open(tmp_path / "back")
    assert {entry.video_id: entry for entry in made["demo"].entries()} == {
        entry.video_id: entry for entry in back["demo"].entries()
    }
    for video in VIDEOS:
        assert made["demo"][video].header == back["demo"][video].header
        assert bytes(made["demo"][video].data) == bytes(back["demo"][video].data)


def test_a_web_server_is_enough_to_read(pushed, object_server, tmp_path):  # noqa: F811
    web = pushed.replace("s3://feat", object_server.web_url)
    check_all(featstore.open(web, local=tmp_path / "local"))
    push_pull.pull(web, tmp_path / "back", ["demo"])
    check_all(featstore.open(tmp_path / "back"))
    with pytest.raises(DatasetNotFound, match="absent"):
        featstore.open(web, local=tmp_path / "local")["absent"]
    with pytest.raises(StoreError, match="lists no folders; name the dataset"):
        push_pull.pull(web, tmp_path / "back")
    with pytest.raises(StoreError, match="nothing is written"):
        push_pull.push(tmp_path / "made", web)


def test_a_cut_connection_is_taken_up_where_it_ended(pushed, proxy, tmp_path):  # noqa: F811
    data = np.random.default_rng(0).bytes(3_000_000)
    BucketPlace(pushed).put("large", data)
    proxy.cut_after = 700_000
    found = bytearray(len(data))
    BucketPlace(pushed).read_into("large", 0, memoryview(found))
    assert bytes(found) == data
    assert proxy.connections >= 5
    proxy.cut_after = 4_000
    check_all(featstore.open(pushed, local=tmp_path / "local"))


def test_a_stalled_connection_is_given_up_and_taken_up(pushed, proxy, monkeypatch):  # noqa: F811
    data = np.random.default_rng(0).bytes(3_000_000)
    monkeypatch.setattr(bucket, "REMOTE_TIMEOUT", 0.5)
    BucketPlace(pushed).put("large", data)
    proxy.stall_after, proxy.breaks = 1_000_000, 2
    found = bytearray(len(data))
    BucketPlace(pushed).read_into("large", 0, memoryview(found))
    assert bytes(found) == data
    assert proxy.breaks == 0


def test_a_server_that_went_away_is_named_and_local_records_are_served(pushed, proxy, tmp_path):  # noqa: F811
    store = featstore.open(pushed, local=tmp_path / "local")
    held = store["demo"]["v1"].data
    proxy.close()
    assert (store["demo"]["v1"].data == expected(VIDEOS["v1"])).all()
    with pytest.raises(StoreError, match=f"{pushed} does not answer"):
        store["demo"]["v2"]
    with pytest.warns(RuntimeWarning, match="does not answer"):
        again = featstore.open(pushed, local=tmp_path / "local")
    assert list(again["demo"]) == list(store["demo"])
    assert (again["demo"]["v1"].data == held).all()
    with pytest.raises(StoreError, match="does not answer"):
        featstore.open(pushed, local=tmp_path / "other")


@pytest.mark.usefixtures("s3")
def test_a_server_that_is_killed_and_started_again_serves_on(pushed, object_server, tmp_path):  # noqa: F811
    store = featstore.open(pushed, local=tmp_path / "local")
    store["demo"]["v1"]
    object_server.kill()
    try:
        with pytest.raises(StoreError, match="does not answer"):
            store["demo"]["v2"]
        assert (store["demo"]["v1"].data == expected(VIDEOS["v1"])).all()
    finally:
        object_server.start()
    check_all(store)


@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_said_at_once(pushed, proxy, monkeypatch, tmp_path, wrong):  # noqa: F811
    monkeypatch.setenv(wrong, "wrong")
    for attempt in (
        lambda: featstore.open(pushed, local=tmp_path / "local"),
        lambda: push_pull.push(tmp_path / "made", pushed),
        lambda: push_pull.pull(pushed, tmp_path / "back"),
        lambda: BucketPlace(pushed).put("x", b""),
        lambda: BucketPlace(pushed).read_into("x", 0, memoryview(bytearray(1))),
    ):
        with pytest.raises(StoreError, match=r"refuses these credentials .* set AWS_ACCESS_KEY_ID"):
            attempt()
    assert proxy.connections <= 10  # none is tried again


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreNotFound, match="no bucket s3://absent"):
        featstore.open("s3://absent/prefix", local=tmp_path / "local")


@pytest.mark.usefixtures("s3")
def test_racing_pushes_lose_nothing(url, tmp_path):
    caches = [tmp_path / f"part{number}" for number in range(4)]
    for number, cache in enumerate(caches):
        store_videos(cache, "demo", {f"v{number}": VIDEOS[f"v{number}"]})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda cache: push_pull.push(cache, url), caches))
    assert len(read_list(place_of(url), "demo").shards) == 4
    check_all(featstore.open(url, local=tmp_path / "local"))


KILLED_PUSH = """
import os, signal, sys
from featstore.store.maintenance import push_pull
from featstore.store.shards.remote import bucket

def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "upload":
    def half(path, name):
        yield b"some of it"
        die()
    bucket.verified_pieces = half
else:
    setattr(bucket.BucketPlace, sys.argv[3], die)
push_pull.push(sys.argv[1], sys.argv[2])
"""


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("step", ["upload", "create"])
def test_a_killed_push_leaves_only_what_no_list_names(url, tmp_path, step):
    store_videos(tmp_path / "made", "demo", VIDEOS)
    with start_python(KILLED_PUSH, tmp_path / "made", url, step) as killed:
        assert killed.wait(60) == -signal.SIGKILL
    place = place_of(url)
    assert read_list(place, "demo").number == 0
    left = [name.rpartition(".")[2] for name in place.names("demo/shards")]
    assert sorted(left) == ([] if step == "upload" else ["idx", "mdb"])
    push_pull.push(tmp_path / "made", url)
    check_all(featstore.open(url, local=tmp_path / "local"))


KILLED_FETCH = """
import os, signal, sys
import featstore
from featstore.store.shards.remote import tier

def die(fd, piece, at, path):
    os.pwrite(fd, piece[: len(piece) // 2], at)
    os.kill(os.getpid(), signal.SIGKILL)

tier._write = die
featstore.open(sys.argv[1])["demo"]["v1"]
"""


def test_a_killed_fetch_is_done_again_by_the_next(pushed, tmp_path):
    featstore.open(pushed, local=tmp_path / "local", max_size=12_000)
    with start_python(KILLED_FETCH, tmp_path / "local") as killed:
        assert killed.wait(60) == -signal.SIGKILL
    assert len(list((tmp_path / "local" / ".fetching").iterdir())) == 1
    check_all(featstore.open(tmp_path / "local"))
    assert not any((tmp_path / "local" / ".fetching").iterdir())


def test_views_outlive_the_removal_of_their_records(pushed, tmp_path):
    store = featstore.open(pushed, local=tmp_path / "local", max_size=12_000)
    held = {video: store["demo"][video] for video in VIDEOS}
    kept = list((tmp_path / "local").rglob("*.rec"))
    assert sum(path.stat().st_size for path in kept) <= 12_000
    assert len(kept) < len(VIDEOS)
    for video, x in VIDEOS.items():
        assert (held[video].data == expected(x)).all()


def test_reading_ahead_fetches_without_waiting(pushed, tmp_path):
    demo = featstore.open(pushed, local=tmp_path / "local")["demo"]
    demo.read_ahead("v2")
    until = time.monotonic() + 20
    while not list((tmp_path / "local").rglob("*.rec")):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert (demo["v2"].data == expected(VIDEOS["v2"])).all()


FORKED = """
import os, signal, sys
import featstore

demo = featstore.open(sys.argv[1], local=sys.argv[2])["demo"]
demo["v1"]
child = os.fork()
if not child:
    signal.alarm(30)  # obstore would wait for ever
    try:
        demo["v1"], demo["v2"]
    except featstore.StoreError as exc:
        os._exit(7 if "spawn" in str(exc) else 1)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_is_told_to_be_spawned_and_does_not_hang(pushed, tmp_path):
    done = run_python(FORKED, pushed, tmp_path / "local")
    assert done.stdout == "7\n", done.stderr


def test_a_damaged_object_is_refused(pushed, tmp_path):
    (name,) = (name for name in place_of(pushed).names("demo/shards") if name.endswith(".mdb"))
    place_of(pushed).put(f"demo/shards/{name}", bytes(60_000))
    with pytest.raises(StoreDamaged, match="what came is not kept"):
        featstore.open(pushed, local=tmp_path / "local")["demo"]["v1"]
    with pytest.raises(StoreDamaged, match="not what its name says"):
        push_pull.pull(pushed, tmp_path / "back")
    assert not list((tmp_path / "back").rglob("*.mdb"))
    place_of(pushed).put(f"demo/shards/{name}", b"short")
    with pytest.raises(StoreDamaged, match="cut short"):
        featstore.open(pushed, local=tmp_path / "local")["demo"]["v1"]


@pytest.mark.usefixtures("s3")
def test_a_file_that_is_not_what_its_name_says_is_not_uploaded(url, tmp_path):
    (tmp_path / "file").write_bytes(b"changed meanwhile")
    with pytest.raises(StoreDamaged, match="not what its name"):
        BucketPlace(url).upload(f"demo/shards/{'0' * 32}.mdb", tmp_path / "file")
    assert BucketPlace(url).names("demo/shards") == {}


def test_without_obstore_the_command_to_install_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(featstore.MissingExtra, match=r"pip install featstore\[remote\]"):
        featstore.open("s3://feat/x", local=tmp_path / "local")


def test_a_web_server_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9 does not answer"):
        featstore.open("http://127.0.0.1:9", local=tmp_path / "local")["demo"]


@pytest.mark.parametrize(
    ("code", "headers", "body", "kind", "said"),
    [
        (200, {}, b"<html>log in</html>", StoreError, "without ranges of bytes"),
        (400, {}, b"<?xml?><Code>AuthorizationHeaderMalformed</Code>", StoreError, "AWS_REGION"),
        (405, {}, b"", StoreError, r"as such a store does .*, and AWS_ENDPOINT_URL, http://127"),
        (
            503,
            {},
            b"busy",
            StoreError,
            "answers with 503 .*; it is overloaded or broken: try again",
        ),
        (206, {"Content-Range": "bytes 0-2/3"}, b"abc", StoreDamaged, "it was cut short; put a"),
    ],
)
def test_a_server_that_answers_wrongly_is_said_to(monkeypatch, code, headers, body, kind, said):
    """All of it was `does not answer; see whether its server is up`."""

    class Wrong(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            self.end_headers()
            self.wfile.write(body)

    with http.server.HTTPServer(("127.0.0.1", 0), Wrong) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        with pytest.raises(kind, match=rf"s3://feat/x\b.*{said}"):
            BucketPlace("s3://feat/x").read_into("demo/shards/a", 4, memoryview(bytearray(9)))
        server.shutdown()


@pytest.mark.usefixtures("s3")
def test_the_benchmark_runs(url, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import bench_remote

    (tmp_path / "work").mkdir()
    words = ["--videos", 1, "--frames", 1, "--rounds", 1, "--workdir", tmp_path / "work"]
    words = [*map(str, [*words, "--url", url, "--out", tmp_path / "out"])]
    done = CliRunner().invoke(bench_remote.main, words, catch_exceptions=False)
    assert done.exit_code == 0
    data = json.loads((tmp_path / "out" / "bench_remote.json").read_text())
    assert set(data["timings"]) == {"GET", "fetch", "again", "hit"}


@pytest.mark.usefixtures("s3")
def test_the_command_line_pushes_and_pulls(url, tmp_path):
    store_videos(tmp_path / "made", "demo", VIDEOS)
    for words, said in (
        (["push", tmp_path / "made", url], "demo: 1 shard pushed, "),
        (["push", tmp_path / "made", url], "demo: 0 shards pushed, 0 B; 1 shard in all"),
        (["pull", url, "--cache-dir", tmp_path / "back"], "demo: 1 shard pulled, "),
    ):
        done = CliRunner().invoke(main, [*map(str, words)])
        assert done.exit_code == 0, done.stderr
        assert said in done.output
    check_all(featstore.open(tmp_path / "back"))
    done = CliRunner().invoke(main, ["pull", url, "--cache-dir", str(tmp_path / "back"), "--json"])
    assert json.loads(done.output)[0]["copied"] == 0
