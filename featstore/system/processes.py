"""Worker processes: how they are started, exchange messages, and share memory.

They are programs of their own, not started by multiprocessing, so that `featstore.ingest` works in any script or
notebook without a guard around its main part, and nothing is ever pickled: messages are dataclasses sent as msgpack,
frames and features are in anonymous shared memory that is gone with the last process that maps it.
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
from typing import IO, TYPE_CHECKING, Any, ClassVar, TypeVar

import msgpack

from featstore.errors import FeatstoreError, retold
from featstore.fields import build, to_plain
from featstore.system import libc
from featstore.system.filesystems import format_bytes
from featstore.system.forks import no_fork, tell_of_forks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MAX_MESSAGE_BYTES = 256 << 20  # a token scale of some million tokens fits

_PR_SET_PDEATHSIG = 1

Message = TypeVar("Message")


@dataclass(frozen=True)
class Slots:
    """Anonymous shared memory cut into equal slots; sent in a message, it is mapped by the process that gets it."""

    fd: int
    count: int
    slot_bytes: int
    memory: ClassVar[
        memoryview
    ]  # of each instance, of all slots; not a field, so that it is not sent

    @classmethod
    def create(cls, count: int, slot_bytes: int) -> Slots:
        """Reserve the memory; pages are taken when first written. Raises FeatstoreError if a limit forbids so much."""
        slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("featstore")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        try:
            os.ftruncate(fd, count * slot_bytes)
        except OSError as exc:
            os.close(fd)
            if exc.errno != errno.EFBIG:
                raise
            limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
            raise FeatstoreError(
                f"{format_bytes(count * slot_bytes)} of memory are needed that processes share, which counts as a "
                f"file, and this process may make none above {format_bytes(limit)}; allow more with ulimit -f unlimited"
            ) from exc
        return cls(fd, count, slot_bytes)

    def __post_init__(self) -> None:
        """Map the memory."""
        memory = memoryview(mmap.mmap(self.fd, self.count * self.slot_bytes))
        object.__setattr__(self, "memory", memory)

    def slot(self, index: int) -> memoryview:
        """Return the memory of one slot."""
        return self.memory[index * self.slot_bytes : (index + 1) * self.slot_bytes]

    def close(self) -> None:
        """Close the descriptor; the memory is released with its last view."""
        os.close(self.fd)


@dataclass(frozen=True)
class ErrorMessage:
    """What ended a child process: the name of one of featstore's errors, and what it says."""

    kind: str
    text: str

    @classmethod
    def of(cls, exc: FeatstoreError) -> ErrorMessage:
        """Return the message that reports `exc`."""
        return cls(type(exc).__name__, str(exc))

    def exception(self, prefix: str = "") -> FeatstoreError:
        """Return the error again, its text after `prefix`."""
        return retold(self.kind, prefix + self.text)


@contextlib.contextmanager
def enough_descriptors() -> Iterator[None]:
    """Raise FeatstoreError, which says what to do, if the process may open no more files."""
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.EMFILE:
            raise
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise FeatstoreError(
            f"this process has as many files open as it may, {most}; allow more with ulimit -n, or close some"
        ) from exc


class WorkerProcess:
    """A running program `python -m <module>` with a pipe to it and shared memory."""

    def __init__(self, module: str, setup: object, slots: Iterable[Slots], log: IO[bytes]) -> None:
        """Start it.

        Args:
            module: the program; it calls `join_parent` first.
            setup: its first message.
            slots: shared memory that `setup` names.
            log: takes what it prints.
        """
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        # A copy of this process would keep both pipes open: the program's, whose end would not be heard, and the one
        # on which Popen waits for its start.
        with no_fork():
            self.connection, there = Pipe()
            try:
                self.process = _start(
                    [sys.executable, "-m", module, str(there.fileno()), str(os.getpid())],
                    pass_fds=(there.fileno(), *(memory.fd for memory in slots)),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
                    start_new_session=True,  # a terminal's Ctrl-C is for the parent to act on
                )
            finally:
                there.close()
            tell_of_forks(self)
        self.send(setup)

    def send(self, message: object) -> None:
        """Send a message, unless the program has ended: `receive` will tell."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self.connection, message)

    def receive(self, *kinds: type) -> Any:
        """Return the next message, of one of `kinds`, waiting for it; EOFError if the program has ended."""
        try:
            return receive(self.connection, *kinds)
        except ConnectionResetError as exc:
            raise EOFError from exc

    def kill(self) -> None:
        """End it at once, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def after_fork(self) -> None:
        """Close the pipe in a forked child: only the parent talks to the program, ends it and waits for it."""
        self.connection.close()
        self.process.returncode = 0  # as of a Popen that has ended: no signal is sent

    def describe_end(self, log: IO[bytes]) -> str:
        """Return how the program ended and the last line it printed."""
        code = self.process.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}{': ' + lines[-1] if lines else ''}"


def _start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program from a thread that lives as long as this process.

    A child that is to die with its parent is killed when the *thread* that started it ends: a thread that serves a
    single request would take the decoder with it.
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

    threading.Thread(target=serve, name="process-starter", daemon=True).start()
    return queue


# A forked process has the queue, but not the thread.
os.register_at_fork(after_in_child=_starter.cache_clear)


def _answer(
    started: Future[subprocess.Popen[bytes]], start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    try:
        started.set_result(start())
    except BaseException as exc:
        started.set_exception(exc)


def pack_message(message: object) -> bytes:
    """Return the bytes of a message, a dataclass of plain values: its name and its fields."""
    plain = [type(message).__name__, to_plain(message)]
    packed: bytes = msgpack.packb(plain, unicode_errors="surrogatepass")
    return packed


def unpack_message(data: bytes, *kinds: type) -> Any:
    """Return the message that `pack_message` packed; ValueError if it is not of one of `kinds`."""
    name, plain = msgpack.unpackb(data, unicode_errors="surrogatepass")
    for kind in kinds:
        if kind.__name__ == name:
            return build(kind, plain)
    raise ValueError(f"a message {name!r:.80} came; expected {[kind.__name__ for kind in kinds]}")


def send(connection: Connection, message: object) -> None:
    """Send one message."""
    connection.send_bytes(pack_message(message))


def receive(connection: Connection, *kinds: type) -> Any:
    """Return the next message, of one of `kinds`, waiting for it.

    Args:
        connection: the pipe.
        kinds: the classes of messages that may come.

    Raises:
        EOFError: if the other side is gone.
        ValueError: if the message is of another kind.
    """
    return unpack_message(connection.recv_bytes(MAX_MESSAGE_BYTES), *kinds)


def join_parent(setup: type[Message], *, die_with_parent: bool) -> tuple[Connection, Message]:
    """Return the pipe to the parent and its first message; a child process calls this first.

    Interrupts are left to the parent.

    Args:
        setup: the class of the first message.
        die_with_parent: be killed when the parent dies, if the system can do that.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    fd, parent = map(int, sys.argv[1:3])
    if die_with_parent and sys.platform == "linux":
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before prctl
            raise SystemExit(1)
    connection = Connection(fd)
    first: Message = receive(connection, setup)
    return connection, first
