"""Child processes: how they are started, spoken to, and share memory.

Started as programs of their own rather than by multiprocessing, so that `featstore.ingest` works in any script or
notebook without a guard around its main part, and nothing is ever pickled: messages are msgpack, frames and features
lie in anonymous shared memory that is gone with the last process that holds it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any

import msgpack

from featstore.errors import FeatstoreError
from featstore.system import libc
from featstore.system.forks import tell_of_forks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_MESSAGE_BYTES = 256 << 20  # a token scale of some million tokens fits


@dataclass(frozen=True)
class Slots:
    """Anonymous shared memory cut into equal slots."""

    fd: int
    count: int
    slot_bytes: int
    memory: memoryview

    @classmethod
    def create(cls, count: int, slot_bytes: int) -> Slots:
        """Reserve the memory; pages are taken when first written."""
        slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("featstore")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, count * slot_bytes)
        return cls.attach(fd, count, slot_bytes)

    @classmethod
    def attach(cls, fd: int, count: int, slot_bytes: int) -> Slots:
        """Map memory that another process created."""
        return cls(fd, count, slot_bytes, memoryview(mmap.mmap(fd, count * slot_bytes)))

    def slot(self, index: int) -> memoryview:
        """Return the memory of one slot."""
        return self.memory[index * self.slot_bytes : (index + 1) * self.slot_bytes]

    def describe(self) -> dict[str, int]:
        """Return what `attach` needs in a process that has the descriptor."""
        return {"fd": self.fd, "count": self.count, "slot_bytes": self.slot_bytes}

    def close(self) -> None:
        """Let go of the descriptor; memory goes with its last view."""
        os.close(self.fd)


@contextlib.contextmanager
def enough_descriptors() -> Iterator[None]:
    """Raise FeatstoreError, which says what to do, where the process may open no more files."""
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.EMFILE:
            raise
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise FeatstoreError(
            f"this process has as many files open as it may, {most}; let it have more with ulimit -n, or let go of some"
        ) from exc


class Child:
    """A running program `python -m <module>` with a pipe to it and shared memory."""

    def __init__(
        self, module: str, slots: Slots, log: IO[bytes], first: dict[str, Any], **more: Slots
    ) -> None:
        """Start it and send the first message; `log` takes what it prints.

        more: further memory, which the child finds described in the first message under these names.
        """
        here, there = Pipe()
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        try:
            self.process = _start(
                [sys.executable, "-m", module, str(there.fileno()), str(os.getpid())],
                pass_fds=(there.fileno(), slots.fd, *(other.fd for other in more.values())),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
                start_new_session=True,  # a terminal's Ctrl-C is for the parent to act on
            )
        finally:
            there.close()
        self.connection = here
        tell_of_forks(self)
        memory = {name: part.describe() for name, part in more.items()}
        self.send({**first, **memory, "memory": slots.describe()})

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; a child that is gone shows itself when it is listened to."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self.connection, message)

    def receive(self) -> dict[str, Any]:
        """Return the next message, waiting for it; EOFError if the child is gone."""
        try:
            return receive(self.connection)
        except ConnectionResetError as exc:
            raise EOFError from exc

    def kill(self) -> None:
        """End it at once, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def after_fork(self) -> None:
        """Let go of the pipe in a forked child: the program is the parent's to speak to, to end and to wait for."""
        self.connection.close()
        self.process.returncode = 0  # as Popen has it of one that ended: no signal is sent

    def describe_end(self, log: IO[bytes]) -> str:
        """Return how the child ended and the last line it printed."""
        code = self.process.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}{': ' + lines[-1] if lines else ''}"


def _start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program from a thread that ends with this process.

    A child that is to die with its parent is killed when the *thread* that started it ends: one that serves a single
    request would take the decoder with it.
    """

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, **options)

    if threading.current_thread() is threading.main_thread():
        return start()
    started: Future[subprocess.Popen[bytes]] = Future()
    _starter().put((started, start))
    return started.result()


@functools.cache
def _starter() -> SimpleQueue[Any]:
    """Return the queue of a thread that starts programs for as long as this process lives."""
    queue: SimpleQueue[Any] = SimpleQueue()

    def serve() -> None:
        while True:
            _answer(*queue.get())

    threading.Thread(target=serve, name="children-starter", daemon=True).start()
    return queue


# A forked process has the queue and not the thread.
os.register_at_fork(after_in_child=_starter.cache_clear)


def _answer(
    started: Future[subprocess.Popen[bytes]], start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    try:
        started.set_result(start())
    except BaseException as exc:
        started.set_exception(exc)


def send(connection: Connection, message: dict[str, Any]) -> None:
    """Send one message."""
    connection.send_bytes(msgpack.packb(message, unicode_errors="surrogatepass"))


def receive(connection: Connection) -> dict[str, Any]:
    """Return the next message; EOFError if the other side is gone."""
    data = connection.recv_bytes(MAX_MESSAGE_BYTES)
    message: dict[str, Any] = msgpack.unpackb(data, unicode_errors="surrogatepass")
    return message


def join_parent(*, die_with_parent: bool) -> tuple[Connection, dict[str, Any], Slots]:
    """Return the pipe to the parent, its first message and the shared memory; called first in a child.

    Interrupts are left to the parent. die_with_parent: be killed when the parent dies, where the system can do that.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    fd, parent = map(int, sys.argv[1:3])
    if die_with_parent and sys.platform == "linux":
        libc.die_with_parent()
        if os.getppid() != parent:  # it died before we asked
            raise SystemExit(1)
    connection = Connection(fd)
    first = receive(connection)
    return connection, first, Slots.attach(**first.pop("memory"))
