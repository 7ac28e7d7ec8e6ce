"""Memory and descriptors of processes over the course of some work: samples, whether they are flat, and a plot."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MIB = 1 << 20


@dataclass(eq=False)
class Series:
    """Samples of one process, or of all of one kind: work done, memory of its own in bytes, open descriptors.

    Memory of its own is what is resident and not mapped from a file: the page cache shows in no figure of it.
    """

    name: str
    done: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def take(self, done: int, processes: Sequence[psutil.Process]) -> None:
        """Sample the living ones of `processes`, summed; nothing where there is none."""
        memory = descriptors = 0
        for process in processes:
            try:
                found = process.memory_info()
                descriptors += process.num_fds()
                memory += found.rss - found.shared
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                return
        if memory:
            self.done.append(done)
            self.memory.append(memory)
            self.descriptors.append(descriptors)

    def growth(self) -> tuple[int, int, int, int]:
        """Return the median memory early and late in the work, and the descriptors likewise; zeros of too few samples.

        The first fifth of the work is left out: there caches are filled and modules loaded. Of the samples that remain
        the first and the last quarter are compared.
        """
        kept = [i for i, done in enumerate(self.done) if done >= max(self.done) / 5]
        quarter = len(kept) // 4
        if not quarter:
            return 0, 0, 0, 0
        early, late = kept[:quarter], kept[-quarter:]
        return (
            round(median(self.memory[i] for i in early)),
            round(median(self.memory[i] for i in late)),
            round(median(self.descriptors[i] for i in early)),
            round(median(self.descriptors[i] for i in late)),
        )


def plot(path: Path, panels: dict[str, list[Series]], units: dict[str, str]) -> str:
    """Draw memory and descriptors of each panel's series over the work done; return what became of it."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no plot: matplotlib is not installed (pip install matplotlib)"
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(panels), figsize=(9, 5), squeeze=False, sharex="col")
    for column, (title, many) in enumerate(panels.items()):
        above, below = axes[0][column], axes[1][column]
        for series in many:
            above.plot(series.done, [m / MIB for m in series.memory], label=series.name, lw=1)
            below.plot(series.done, series.descriptors, label=series.name, lw=1)
        above.set_title(title, fontsize=10)
        above.set_ylabel("MiB of its own", fontsize=8)
        below.set_ylabel("open descriptors", fontsize=8)
        below.set_xlabel(units[title], fontsize=8)
        for axis in (above, below):
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
            axis.tick_params(labelsize=7)
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return f"plot: {path}"
