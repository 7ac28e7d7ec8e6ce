"""How much memory there is: the machine's, or what the process's container may use of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that this process may use: the machine's, or the smallest limit of its control groups."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                limits += _limits(root / "sys/fs/cgroup", group, "memory.max")  # version 2
            elif "memory" in controllers.split(","):
                limits += _limits(root / "sys/fs/cgroup/memory", group, "memory.limit_in_bytes")
    return min(limits)


def _limits(root: Path, group: str, name: str) -> list[int]:
    """Return the limits of `group` and of those that it is in; a container may see the outermost only."""
    found = []
    inside = PurePosixPath(group.lstrip("/"))
    for folder in (inside, *inside.parents):
        with suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int((root / folder / name).read_text()))
    return found
