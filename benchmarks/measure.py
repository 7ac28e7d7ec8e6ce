"""What the benchmarks share: summaries of timings, the page cache, the machine, tables and plots.

A benchmark times what it likes, in seconds; here the seconds become count, median, p90, p99 and max, and the results
three files of one name: a text for people, a JSON for programs, a PNG where matplotlib is there.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import mmap
import os
import platform
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(ROOT))  # this checkout's featstore, whatever is installed

_OURS, _THEIRS = "#c1440e", "#7d8ca3"


# --- timings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What is reported of a series of timings, in seconds."""

    count: int
    median: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Summary:
        """Return the summary of one or more timings."""
        median, p90, p99, largest = np.percentile(seconds, (50, 90, 99, 100)).tolist()
        return cls(len(seconds), median, p90, p99, largest)

    def to_dict(self) -> dict[str, float]:
        """Return plain values; the names carry the unit."""
        return {name if name == "count" else f"{name}_s": x for name, x in asdict(self).items()}


@dataclass
class Timings:
    """Timings of one thing, and the bytes that came from the disk meanwhile."""

    seconds: list[float]
    disk_bytes: int = 0

    def time(self, call: Callable[[], object]) -> None:
        """Time one call; freeing what it returns is not counted."""
        before = bytes_from_disk()
        begun = time.perf_counter()
        result = call()
        self.seconds.append(time.perf_counter() - begun)
        self.disk_bytes += bytes_from_disk() - before
        del result

    def __iadd__(self, other: Timings) -> Timings:
        """Take in the timings of another pass."""
        self.seconds += other.seconds
        self.disk_bytes += other.disk_bytes
        return self


def spare_the_living() -> None:
    """Collect garbage, and leave what is alive out of later collections: with torch loaded one takes 0.2 s."""
    gc.collect()
    gc.freeze()


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect garbage now and not again inside the block, as timeit does."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# --- the page cache ------------------------------------------------------------------------------------------------


def bytes_from_disk() -> int:
    """Return what this process has made the disk deliver so far, read-ahead included; 0 where Linux does not tell."""
    try:
        with open("/proc/self/io", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))
    except OSError:
        return 0


def settle(folder: Path) -> None:
    """Bring all files of `folder` to the disk: dirty pages cannot be evicted."""
    for path in _files(folder):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def evict(folder: Path) -> None:
    """Ask the page cache to drop the files of `folder`; it keeps pages that are dirty or mapped by a process."""
    if not hasattr(os, "posix_fadvise"):
        return
    gc.collect()  # maps that wait in garbage
    for path in _files(folder):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_share(folder: Path) -> float:
    """Return the share of the pages of `folder`'s files that lie in the page cache, as mincore tells."""
    resident = total = 0
    for path in _files(folder):
        size = path.stat().st_size
        if size == 0:
            continue
        with open(path, "rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as pages:
            state = np.empty(
                -(-size // mmap.PAGESIZE), np.uint8
            )  # one a page, lowest bit: resident
            view = np.frombuffer(pages, np.uint8)
            start, out = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(state.ctypes.data)
            if ctypes.CDLL(None, use_errno=True).mincore(start, ctypes.c_size_t(size), out):
                raise OSError(ctypes.get_errno(), "mincore failed", str(path))
            del view  # or the map could not be closed
        resident += int((state & 1).sum())
        total += len(state)
    return resident / total if total else 0.0


def stored_bytes(folder: Path) -> int:
    """Return what the files of `folder` take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# --- the machine ---------------------------------------------------------------------------------------------------


def machine(packages: Iterable[str], place: Path) -> dict[str, Any]:
    """Return what a reader needs to judge the figures: machine, disk under `place`, versions, commit, date, load."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "commit": commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "disk": _disk(place),
        "system": platform.platform(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: version for name in packages if (version := _version(name))},
    }


def describe(facts: dict[str, Any]) -> str:
    """Return `machine`'s answer as lines for people."""
    versions = [f"Python {facts['python']}", *(f"{n} {v}" for n, v in facts["packages"].items())]
    return "\n".join(
        [
            f"{facts['date']}, commit {facts['commit']}, load {facts['load_at_start']} at the start",
            f"{facts['cpu']}, {facts['cores']} cores, {facts['ram_gib']} GiB; {facts['disk']}; {facts['system']}",
            ", ".join(versions),
        ]
    )


def commit() -> str:
    """Return the commit that is measured, and whether it was changed since."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", "featstore", "benchmarks/*.py")
    return f"{head} with changes" if changed else head or "unknown"


def installed(module: str) -> bool:
    """Return whether `module` can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    if package == "featstore":  # not the installed one's: see ROOT
        return str(importlib.import_module(package).__version__)
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""


def _cpu() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _disk(place: Path) -> str:
    place = place.resolve()
    best = ("/", "unknown disk", "unknown file system")
    with suppress(OSError), open("/proc/mounts", encoding="utf-8") as file:
        for device, mount, kind in (line.split()[:3] for line in file):
            if place.is_relative_to(mount) and len(mount) >= len(best[0]):
                best = (mount, device, kind)
    number = place.stat().st_dev
    queue = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/read_ahead_kb"
    with suppress(OSError):
        return f"{best[2]} on {best[1]}, read-ahead {Path(queue).read_text().strip()} KiB"
    return f"{best[2]} on {best[1]}"


# --- tables, files, plots ------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return lines with the first column to the left and the others to the right."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def show_time(seconds: float) -> str:
    """Return three digits and a unit: `0.53 ms` reads as `530 us`."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1 or unit == "us":
            return f"{_digits(seconds * factor)} {unit}"
    raise AssertionError


def show_bytes(count: float) -> str:
    """Return three digits and a unit."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= factor:
            return f"{_digits(count / factor)} {unit}"
    return f"{count:.0f} B"


def show_ratio(ratio: float) -> str:
    """Return `1.00x`, `12.3x`, `140x`."""
    return f"{_digits(ratio)}x"


def _digits(number: float) -> str:
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"


def write_results(out: Path, name: str, text: str, data: dict[str, Any]) -> None:
    """Write `name`.txt and `name`.json into the folder `out`, which is made where it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.txt").write_text(text, encoding="utf-8")
    plain = json.dumps(data, indent=1, ensure_ascii=False)
    (out / f"{name}.json").write_text(plain + "\n", encoding="utf-8")


def plot_bars(path: Path, panels: dict[str, dict[str, float]], *, ours: str, unit: str) -> str:
    """Draw one panel of bars on a log scale for each title, and return a sentence on what became of it.

    panels: title -> label -> value in `unit`. Labels that begin with `ours` are set off.
    """
    if not installed("matplotlib"):
        return "no plot: matplotlib is not installed (pip install matplotlib)"
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = 2 if len(panels) > 1 else 1
    lines = -(-len(panels) // columns)
    height = 1.2 + 0.28 * max(map(len, panels.values()))
    figure, axes = plt.subplots(
        lines, columns, figsize=(7 * columns, height * lines), squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, values) in zip(axes.flat, panels.items(), strict=False):
        ordered = dict(sorted(values.items(), key=lambda item: item[1], reverse=True))
        colors = [_OURS if label.startswith(ours) else _THEIRS for label in ordered]
        bars = axis.barh(list(ordered), list(ordered.values()), color=colors)
        axis.bar_label(bars, labels=[_digits(v) for v in ordered.values()], padding=3, fontsize=8)
        axis.set_xscale("log")
        axis.margins(x=0.15)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(unit, fontsize=9)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return f"plot: {path.name}"


def plot_lines(
    path: Path, panels: dict[str, dict[str, list[tuple[float, float]]]], *, ours: str, x: str
) -> str:
    """Draw one panel of lines on log scales for each title, and return a sentence on what became of it.

    panels: title -> label -> points. x: what lies to the right. Labels that begin with `ours` are set off.
    """
    if not installed("matplotlib"):
        return "no plot: matplotlib is not installed (pip install matplotlib)"
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = -(-len(panels) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(12, 3.6 * lines), squeeze=False)
    for axis, (title, values) in zip(axes.flat, panels.items(), strict=False):
        for label, points in values.items():
            mine = label.startswith(ours)
            style = {"color": _OURS, "linewidth": 2.5} if mine else {"linewidth": 1.2}
            axis.plot(*zip(*points, strict=True), marker="o", label=label, **style)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(x, fontsize=9)
        axis.legend(fontsize=8)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return f"plot: {path.name}"
