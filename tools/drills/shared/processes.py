"""Processes that may be killed: work in a forked child, its children, and answers from one that may die."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRITER = "featstore.pipeline.write.writer_process"
DECODER = "featstore.decoding.worker"


class ChildDied(RuntimeError):
    """A child ended without an answer."""


def python_path(*folders: Path) -> str:
    """Return the PYTHONPATH of a program that sees `folders`, and what this one was told to see."""
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH")]))


def start(log: Path, call: Callable[..., None], *args: Any) -> int:
    """Run `call` in a forked child in a session of its own, and return its id; what it prints goes to `log`.

    featstore is loaded already, so that a kill costs no start of an interpreter. An exception ends the child with 1.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        call(*args)
        code = 0
    except BaseException:
        log.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def ask(call: Callable[..., Any], *args: Any) -> Any:
    """Return what `call` returns, as JSON has it, in a fresh forked child; ChildDied where it raises, or is killed."""
    return begin(call, *args).answer()


def begin(call: Callable[..., Any], *args: Any) -> Asked:
    """Have a fresh forked child call `call`, and do not wait for it."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        _answer(call, args, write)
    os.close(write)
    return Asked(pid, read)


@dataclass
class Asked:
    """A forked child that owes an answer."""

    pid: int
    pipe: int

    def answer(self, timeout: float | None = None) -> Any:
        """Return what its call returned, as `ask` does; one that takes longer than `timeout` seconds is killed."""
        with open(self.pipe, "rb", buffering=0) as pipe, select.epoll() as ready:
            ready.register(pipe, select.EPOLLIN)
            deadline = None if timeout is None else time.monotonic() + timeout
            said = b""
            while ready.poll(deadline and max(0.0, deadline - time.monotonic())):
                more = pipe.read(1 << 20)
                if not more:
                    break
                said += more
            else:
                os.kill(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code < 0:
            raise ChildDied(f"killed by {signal.Signals(-code).name}")
        if code:
            raise ChildDied(said.decode(errors="replace"))
        return json.loads(said)


def _answer(call: Callable[..., Any], args: tuple[Any, ...], write: int) -> None:
    code = 1
    try:
        try:
            said = json.dumps(call(*args)).encode()
            code = 0
        except BaseException:
            said = traceback.format_exc().encode()
        with open(write, "wb") as pipe:
            pipe.write(said)
    finally:
        os._exit(code)


def children_of(pid: int, module: str = "") -> list[psutil.Process]:
    """Return the living descendants of `pid`, those that run `module` where it is named."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if not module or module in process.cmdline():
                    found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    """Kill all of them at one moment, as near as that can be: stopped first, so that none sees another go."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def wait_gone(processes: list[psutil.Process], timeout: float) -> bool:
    """Return whether all of them end within `timeout` seconds."""
    _, alive = psutil.wait_procs(processes, timeout)
    return not alive


def wait_exit(pid: int, timeout: float) -> int | None:
    """Return the exit code of the child `pid`, or None where it still runs after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def sigkill(pid: int) -> int | None:
    """Kill the child `pid` and return its exit code; one that had ended before has its own."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return wait_exit(pid, 60)


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)
