"""What a process tree takes while it works, sampled by a thread: memory, and the GPU's time.

Memory is PSS: pages that several processes share count once in all. The GPU's share is nvidia-smi's, which says in how
much of each interval a kernel ran.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

INTERVAL_SECONDS = 0.25


@dataclass
class Watch:
    """Samples taken inside its `with` block: (seconds since it began, bytes or share)."""

    memory: list[tuple[float, int]] = field(default_factory=list)
    gpu: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __enter__(self) -> Watch:
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._smi = _start_smi()
        self._threads = [threading.Thread(target=self._watch_memory, daemon=True)]
        if self._smi is not None:
            self._threads.append(threading.Thread(target=self._watch_gpu, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._smi is not None:
            self._smi.kill()
            self._smi.wait()
        for thread in self._threads:
            thread.join()

    @property
    def peak(self) -> int:
        """Return the most bytes that all processes took together."""
        return max((size for _, size in self.memory), default=0)

    def gpu_share(self, begin: float, end: float) -> dict[str, float]:
        """Return by GPU the median share between two moments of `time.monotonic`; of those that worked at all."""
        found = {}
        for name, samples in self.gpu.items():
            inside = [share for at, share in samples if begin <= self._begun + at <= end]
            if inside and max(inside) > 0:
                found[name] = median(inside)
        return found

    def _watch_memory(self) -> None:
        while not self._over.wait(INTERVAL_SECONDS):
            total = sum(map(_pss, process_tree(os.getpid())))
            self.memory.append((round(time.monotonic() - self._begun, 2), total))

    def _watch_gpu(self) -> None:
        assert self._smi is not None
        assert self._smi.stdout is not None
        for line in self._smi.stdout:
            with suppress(ValueError):
                number, share = line.split(",")
                at = round(time.monotonic() - self._begun, 2)
                self.gpu.setdefault(f"GPU {number.strip()}", []).append((at, float(share) / 100))


def process_tree(root: int) -> list[int]:
    """Return the ids of a process and of all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(after_name[1])
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


def _pss(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _start_smi() -> subprocess.Popen[str] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    words = ["--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits"]
    interval = f"--loop-ms={int(INTERVAL_SECONDS * 1e3)}"
    return subprocess.Popen(
        ["nvidia-smi", *words, interval],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
