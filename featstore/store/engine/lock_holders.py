"""Who holds a lock: told by the kernel, for a note in the file would name its writer, who may long be gone."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PROC = Path("/proc")
# As in `1: FLOCK  ADVISORY  WRITE 4242 08:01:131 0 EOF`; one that waits has an arrow before its kind.
_LOCK = re.compile(r"\d+: FLOCK +\S+ +\S+ +(\d+) (\S+) .*")


def find_holder(fd: int) -> int | None:
    """Return the process that holds the flock on the open file `fd`; None where it is not visible from here."""
    found = os.fstat(fd)
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = (_PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    held = [_LOCK.fullmatch(line) for line in lines]
    return next((int(line[1]) for line in held if line and line[2] == name), None)


def describe_process(pid: int, more: str = "") -> str:
    """Return the words for a process: its number, its name, how to wake it where it is stopped, and `more`."""
    try:
        status = (_PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:  # another user's, where the system hides those
        status = ""
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    stopped = f"stopped: kill -CONT {pid} wakes it" if facts.get("State", "")[:1] == "T" else ""
    words = ", ".join(filter(None, (facts.get("Name"), stopped, more)))
    return f"process {pid} ({words})" if words else f"process {pid}"
