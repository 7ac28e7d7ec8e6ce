"""Probes that may end their process: forked children work through them, and who dies is replaced."""

from __future__ import annotations

import faulthandler
import mmap
import os
import resource
import signal
import struct
import sys
import traceback
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

UNSEEN = 255
_NEXT = struct.Struct("q")


class Death(NamedTuple):
    """A probe that ended its process."""

    index: int
    signal: int

    @property
    def hung(self) -> bool:
        """Return whether it took too long."""
        return self.signal == signal.SIGALRM


class ForkedProbes:
    """Runs `probe(worker, index)`, which returns a small number, for each index below `count`.

    A probe that takes more than `timeout` seconds is ended by SIGALRM, wherever it hangs. `seen` holds the numbers,
    255 where a probe ended its process; `deaths` tells of those.
    """

    def __init__(
        self,
        count: int,
        probe: Callable[[int, int], int],
        *,
        workers: int,
        timeout: float = 10.0,
        until: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare; until: asked before each probe, ends the run early."""
        self.seen = mmap.mmap(-1, max(1, count))  # shared with the children
        self.seen[:] = bytes([UNSEEN]) * len(self.seen)
        self.deaths: list[Death] = []
        self._at = mmap.mmap(-1, _NEXT.size * workers)
        self._count, self._probe, self._workers = count, probe, workers
        self._timeout, self._until = timeout, until

    def run(self) -> None:
        """Run all probes; returns when all are seen or dead."""
        children = {self._start(worker, worker): worker for worker in range(self._workers)}
        while children:
            pid, status = os.wait()
            worker = children.pop(pid, None)
            if worker is None:
                continue
            if not os.WIFSIGNALED(status):
                if os.WEXITSTATUS(status):
                    raise RuntimeError(f"a probing process ended with {os.WEXITSTATUS(status)}")
                continue
            (index,) = _NEXT.unpack_from(self._at, worker * _NEXT.size)
            self.deaths.append(Death(index, os.WTERMSIG(status)))
            children[self._start(worker, index + self._workers)] = worker

    def _start(self, worker: int, first: int) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            self._work(worker, first)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _work(self, worker: int, first: int) -> None:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for index in range(first, self._count, self._workers):
            if self._until():
                break
            _NEXT.pack_into(self._at, worker * _NEXT.size, index)
            signal.setitimer(signal.ITIMER_REAL, self._timeout)
            self.seen[index] = self._probe(worker, index)
        signal.setitimer(signal.ITIMER_REAL, 0)
