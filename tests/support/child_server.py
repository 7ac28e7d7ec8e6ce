"""Children of an ingest, forked from a process that has their modules loaded: a fresh interpreter takes a second.

For tests of what an ingest makes; those of how its children start, end and are found start real programs. A child here
differs in its command line, which is the server's, and in its limits, which are those of the session's start.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from toys import python_env

from featstore.system import libc, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = ("featstore.decoding.worker", "featstore.pipeline.write.writer_process")
DECODERS = ("featstore.decoding.av_decoder", "featstore.decoding.exact_decoder", "decord")
MOST_BYTES, MOST_DESCRIPTORS = 1 << 20, 64  # of a request
SUBREAPER = 36  # of prctl


class Child(subprocess.Popen[bytes]):
    """A child of this process that something else started."""

    def __init__(self, command: list[str], pid: int) -> None:
        self.args, self.pid, self.returncode = command, pid, None
        self.stdin = self.stdout = self.stderr = None
        self._waitpid_lock, self._child_created = threading.Lock(), True


class ChildServer:
    """A process that forks; what it forked becomes this process's child."""

    def __init__(self) -> None:
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._turn = threading.Lock()
        with there:
            command = [sys.executable, __file__, str(there.fileno())]
            self._process = subprocess.Popen(
                command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, env=python_env()
            )

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """In place of `processes._start`."""
        module = command[2]
        if module not in MODULES:
            return subprocess.Popen(command, **options)
        log = options["stdout"].fileno()
        passed = options["pass_fds"]
        asked = {"module": module, "argv": command[2:], "env": options["env"], "cwd": os.getcwd()}
        asked |= {"numbers": [1, 2, *passed], "parent": os.getpid()}
        with self._turn:
            libc.prctl(SUBREAPER, 1)
            try:
                message = json.dumps(asked).encode("ascii")
                socket.send_fds(self._socket, [message], [log, log, *passed])
                pid = int(self._socket.recv(64))
                assert self._socket.recv(64) == b"its parent has ended"
            finally:
                libc.prctl(SUBREAPER, 0)
        return Child(command, pid)

    def close(self) -> None:
        """End it; its children go on."""
        self._socket.close()
        self._process.wait()


@pytest.fixture(scope="session")
def child_server() -> Iterator[ChildServer]:
    with contextlib.closing(ChildServer()) as server:
        yield server


@pytest.fixture(scope="module")
def quick_children(child_server: ChildServer) -> Iterator[None]:
    """Decoders and writers that are started in a module's tests are forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_start", child_server.start)
        yield


def serve(control: socket.socket) -> str:
    """Fork for each request, until there are no more; in a child return the module that it is to run."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MOST_BYTES, MOST_DESCRIPTORS)
        if not message:
            os._exit(0)
        between = os.fork()
        if not between:
            if child := os.fork():
                control.send(str(child).encode())
                os._exit(0)
            control.close()
            return become(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(between, 0)
        control.send(b"its parent has ended")


def become(asked: dict[str, Any], descriptors: list[int]) -> str:
    """Be as the program that was asked for; return its module."""
    above = max([*asked["numbers"], *descriptors]) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in descriptors]
    for descriptor, number in zip(moved, asked["numbers"], strict=True):
        os.dup2(descriptor, number)
    for descriptor in {*moved, *descriptors} - {*asked["numbers"]}:
        os.close(descriptor)
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = asked["argv"]
    while os.getppid() != asked["parent"]:
        time.sleep(0.001)
    return str(asked["module"])


if __name__ == "__main__":
    for name in (*MODULES, *DECODERS):
        import_module(name)
    import_module(serve(socket.socket(fileno=int(sys.argv[1])))).main()
