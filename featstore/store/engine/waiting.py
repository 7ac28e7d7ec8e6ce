"""Waiting for a lock: not for ever and not in silence, for its holder may be stopped, or not a program of ours."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.errors import StoreLocked, plain_line
from featstore.system.logs import tell

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_NOTE_BYTES = 4096  # in a lock file, of who holds it
_PROC = Path("/proc")
# As in `1: FLOCK  ADVISORY  WRITE 4242 08:01:131 0 EOF`; one that waits has an arrow before its kind.
_LOCKED = re.compile(r"\d+: FLOCK +\S+ +\S+ +(\d+) (\S+) .*")


def _log(sentence: str) -> None:
    tell(__name__, plain_line(sentence))


_report: Callable[[str], None] = _log


def report_waiting(sentence: str) -> None:
    """Say what is waited for: as a warning of the logger, or as `report_waiting_to` has it."""
    _report(sentence)


def report_waiting_to(report: Callable[[str], None]) -> None:
    """Have `report` called with what is waited for, in a process whose log nobody reads."""
    global _report
    _report = report


class Patience:
    """How long a lock is waited for, from now on: its holder is named on the way, and at the end."""

    def __init__(self, doing: str, limit: float, say_after: float) -> None:
        """Take what the holder is doing, and the seconds until StoreLocked and until it is said."""
        self._doing = doing
        self._limit = limit
        self._say_after = say_after
        self._started = time.monotonic()

    def wait(self, fd: int, path: Path) -> None:
        """Sleep for a moment; raise StoreLocked if `path`, open as `fd`, was waited for long enough."""
        waited = time.monotonic() - self._started
        if waited >= self._limit:
            raise StoreLocked(
                f"{_holder(fd)} is {self._doing} {path.parent}, and still was after {waited:.0f} s; wait for it to "
                "end, or stop it"
            )
        if waited >= self._say_after:
            self._say_after = self._limit
            report_waiting(f"waiting for {_holder(fd)}, {self._doing} {path.parent}")
        # A fiftieth of what was waited: costs little and adds little, however long it takes.
        time.sleep(min(max(waited / 50, 0.001), 0.02))


def _holder(fd: int) -> str:
    pid = _find_holder(fd)
    try:
        note = json.loads(os.pread(fd, MAX_NOTE_BYTES, 0))
        by, host, since = note["pid"], note["host"], note["since"]
    except (ValueError, KeyError, TypeError, RecursionError):
        by = None
    if pid is not None:
        return _describe_process(pid, f"since {since}" if pid == by else "")
    if by is not None:
        return f"process {by} (on {host}, since {since})"
    return "a process that cannot be seen from here"


def _find_holder(fd: int) -> int | None:
    """Return the process that holds the flock on the open file; None if it is not visible from here.

    The kernel says, for a note in the file would name its writer, which may have ended long ago.
    """
    found = os.fstat(fd)
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = (_PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    held = [_LOCKED.fullmatch(line) for line in lines]
    return next((int(line[1]) for line in held if line and line[2] == name), None)


def _describe_process(pid: int, more: str) -> str:
    """Return the words for a process: its number, its name, how to wake it if it is stopped, and `more`."""
    try:
        status = (_PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:  # another user's, if the system hides those
        status = ""
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    stopped = f"stopped: kill -CONT {pid} wakes it" if facts.get("State", "")[:1] == "T" else ""
    words = ", ".join(filter(None, (facts.get("Name"), stopped, more)))
    return f"process {pid} ({words})" if words else f"process {pid}"
