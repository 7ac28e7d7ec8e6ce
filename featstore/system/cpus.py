"""How many cores there are to decode on: those of the machine, of the process's affinity, of its container."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def default_workers(cgroups: Path = _CGROUPS) -> int:
    """Return the cores this process may use: a container's share of the time counts as so many, rounded up."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = _quota(cgroups)
    return min(cores, math.ceil(quota)) if quota else cores


def _quota(cgroups: Path) -> float:
    """Return the cores' worth of time that a control group allows, 0 if it sets no limit."""
    with suppress(OSError, ValueError):  # version 2: "400000 100000", or "max 100000"
        allowed, period = (cgroups / "cpu.max").read_text().split()
        return 0.0 if allowed == "max" else int(allowed) / int(period)
    with suppress(OSError, ValueError):  # version 1: -1 if there is no limit
        allowed, period = (
            (cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
        )
        return max(0.0, int(allowed) / int(period))
    return 0.0
