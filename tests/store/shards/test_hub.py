"""Datasets pulled from a server that answers as the Hugging Face Hub does, and from odd ones; the Hub is not asked."""

import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from toys import expected, store_videos, toy_features

import featstore
from featstore.errors import StoreError, StoreNotFound
from featstore.store.maintenance import push_pull

VIDEOS = {f"v{number}": toy_features(number) for number in range(3)}


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A folder of shards, as it was uploaded."""
    store_videos(tmp_path / "made", "demo", VIDEOS)
    push_pull.push(tmp_path / "made", str(tmp_path / "share"))
    return tmp_path / "share"


class HubServer(BaseHTTPRequestHandler):
    """As much of the Hub as a pull asks for: the tree of a repository, whose files are in `root`, and their bytes."""

    root: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        tree, resolve = "/api/datasets/me/videos/tree/main", "/datasets/me/videos/resolve/main/"
        if path.startswith(tree):
            folder = self.root / path.removeprefix(tree).strip("/")
            if folder.is_dir():
                rows = [
                    {
                        "type": "directory" if each.is_dir() else "file",
                        "oid": "0",
                        "size": each.stat().st_size,
                        "path": str(each.relative_to(self.root)),
                    }
                    for each in sorted(folder.iterdir())
                ]
                return self.answer(200, json.dumps(rows).encode())
        file = self.root / path.removeprefix(resolve)
        if path.startswith(resolve) and file.is_file():
            data, asked = file.read_bytes(), self.headers.get("Range")
            if asked is None:
                return self.answer(200, data)
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            return self.answer(206, data[first : last + 1], f"bytes {first}-{last}/{len(data)}")
        return self.answer(404, b"", error="EntryNotFound")

    def answer(self, status, data, content_range="", error=""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 00:00:00 GMT")
        if content_range:
            self.send_header("Content-Range", content_range)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def test_a_dataset_is_pulled_from_the_hub(share, tmp_path, monkeypatch):
    pytest.importorskip("obstore")
    handler = type("Handler", (HubServer,), {"root": share})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = functools.partial(
            huggingface_hub.HfApi, endpoint=f"http://127.0.0.1:{server.server_port}"
        )
        monkeypatch.setattr(huggingface_hub, "HfApi", api)
        push_pull.pull("hf://datasets/me/videos", tmp_path / "back")
        store = featstore.open("hf://datasets/me/videos", local=tmp_path / "local")
        for video, x in VIDEOS.items():
            assert (store["demo"][video].data == expected(x)).all()
        with pytest.raises(StoreNotFound, match="no dataset 'other'"):
            push_pull.pull("hf://datasets/me/videos", tmp_path / "back", ["other"])
        with pytest.raises(StoreError, match="hf upload"):
            push_pull.push(tmp_path / "made", "hf://datasets/me/videos")
        server.shutdown()
    assert len(featstore.open(tmp_path / "back")["demo"]) == len(VIDEOS)
    with pytest.raises(StoreError, match="does not answer"):  # the server is gone
        push_pull.pull("hf://datasets/me/videos", tmp_path / "back")
    with pytest.raises(StoreError, match="names no dataset repository"):
        push_pull.pull("hf://me/videos", tmp_path / "back")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("HEAD", "answers to every name"),
        ("GET", "without ranges of bytes"),
        ("403", "without ranges of bytes"),
    ],
)
def test_a_web_server_that_is_no_place_of_datasets_is_named(share, tmp_path, name, said):
    """One that answers to every name; and Python's own, which knows no ranges, also if it refuses as S3 does."""
    pytest.importorskip("obstore")

    class Handler(SimpleHTTPRequestHandler):
        def do_HEAD(self):
            if name == "GET" or (name == "403" and "manifest-1." in self.path):
                return super().do_HEAD()
            self.send_response(403 if name == "403" else 200)
            self.send_header("Content-Length", "5")
            return self.end_headers()

        def log_message(self, *words):
            pass

    handler = functools.partial(Handler, directory=share)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StoreError, match=said):
            push_pull.pull(f"http://127.0.0.1:{server.server_port}", tmp_path / "back", ["demo"])
        server.shutdown()


@pytest.mark.parametrize("url", ["", "s3://", "gs:///x"])
def test_what_names_no_place_is_refused(url, tmp_path):
    with pytest.raises(StoreError, match="names no place"):
        push_pull.pull(url, tmp_path / "back")
