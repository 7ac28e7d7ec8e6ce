"""Ingest hostile videos beside good ones, and see that nothing hangs, dies, floods or changes the good ones' features.

    python tools/drill.py hostile --mutants 300 --seed 1

Prints what came of them. Exit code 1 where a promise was broken.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from make_hostile_videos import make_mutants, make_traps
from make_sample_clips import make_sample_clips

import featstore
from featstore.store.maintenance.check import check_dataset

if TYPE_CHECKING:
    from collections.abc import Iterable

NFRAME = 16
SOME_FAILED = 3  # the exit code of an ingest with videos that failed
GOOD = "good/"
# What a reason may not hold: it is for people.
RAW = re.compile(r"Check failed|\.cc:|\.h:\d|Traceback|0x[0-9a-f]{4}|terminate called|Errno")
# Beside the decoder's own memory: the frames it shares, and the program's files.
SHARED_BYTES = 256 << 20
_POLL_SECONDS = 0.05


@dataclass
class Drill:
    """What was found."""

    broken: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


class MemoryWatch:
    """The most that any decode process below this one had resident while the watch was on."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            for place in Path("/proc").glob("[0-9]*"):
                self.most = max(self.most, _peak(place))


def _peak(process: Path) -> int:
    """Return the peak of a decode process's resident memory, 0 for any other process."""
    try:
        if b"featstore.decoding.worker" not in (process / "cmdline").read_bytes():
            return 0
        found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def ingest(manifest: Path, cache: Path, options: Iterable[str], deadline: float) -> dict[str, Any]:
    """Return the summary of an ingest in a process of its own; an empty one where it hung or died."""
    words = ["ingest", "--manifest", manifest, "--dataset", "drill", "--cache-dir", cache]
    words += ["--encoder", "toy", "--nframe", NFRAME, "--json", *options]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "featstore", *map(str, words)],
            cwd=Path(__file__).resolve().parents[3],
            capture_output=True,
            text=True,
            timeout=deadline,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode not in (0, SOME_FAILED):
        click.echo(done.stderr, err=True)
        return {}
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def write_manifest(path: Path, videos: dict[str, Path]) -> Path:
    """Write the videos, by id, to a JSONL file and return its path."""
    lines = (json.dumps({"video_id": name, "path": str(file)}) for name, file in videos.items())
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def run(
    folder: Path, mutants: int, seed: int, memory: int, timeout: float, *, large: bool
) -> Drill:
    """Make the files in `folder`, ingest them, and return what was found."""
    drill = Drill()
    good = {GOOD + path.stem: path for path in make_sample_clips(folder / "good")}
    bad = make_traps(folder / "traps", large=large) + make_mutants(
        folder / "mutants", mutants, seed
    )
    videos = {f"{path.parent.name}/{path.name}": path for path in bad}
    names = list(good)
    mixed = dict(good)
    for number, (name, path) in enumerate(videos.items()):  # a good one comes again and again
        mixed[name] = path
        if number % 25 == 0:
            copy = f"{GOOD}{number}"
            mixed[copy] = good[names[number % len(names)]]
    options = ["--decode-timeout", str(timeout), "--decode-memory", str(memory)]
    alone = ingest(write_manifest(folder / "good.jsonl", good), folder / "alone", options, 600)
    begun = time.monotonic()
    deadline = 120 + len(mixed) * timeout / 2
    with MemoryWatch() as watch:
        manifest = write_manifest(folder / "mixed.jsonl", mixed)
        summary = ingest(manifest, folder / "mixed", options, deadline)
    if not alone or not summary:
        drill.broken.append("the ingest hung, or died")
        return drill
    _judge(drill, folder, mixed, good, summary)
    if watch.most > memory + SHARED_BYTES:
        drill.broken.append(f"a decoder had {watch.most >> 20} MiB resident")
    drill.figures |= {
        "hostile": len(videos),
        "good": len(mixed) - len(videos),
        "hostile stored": summary["stored"] - (len(mixed) - len(videos)),
        "failed": len(summary["failed"]),
        "most resident MiB": watch.most >> 20,
        "seconds": round(time.monotonic() - begun),
        "read by": summary["decoders"],
        "reasons": _reasons(summary),
    }
    return drill


def _judge(
    drill: Drill,
    folder: Path,
    mixed: dict[str, Path],
    good: dict[str, Path],
    summary: dict[str, Any],
) -> None:
    failed = {failure["video_id"]: failure["reason"] for failure in summary["failed"]}
    lost = len(mixed) - summary["stored"] - len(failed)
    if lost:
        drill.broken.append(f"{lost} videos were neither stored nor failed")
    drill.broken += [
        f"{name} failed: {why}" for name, why in failed.items() if name.startswith(GOOD)
    ]
    drill.broken += [
        f"{name} has no plain reason: {why}" for name, why in failed.items() if RAW.search(why)
    ]
    alone, store = (
        featstore.open(folder / "alone")["drill"],
        featstore.open(folder / "mixed")["drill"],
    )
    by_path = {path: name for name, path in good.items()}
    for name, path in mixed.items():
        if name.startswith(GOOD) and name not in failed:
            one, other = store[name], alone[by_path[path]]
            if not all(map(np.array_equal, (one.data, *one.scales), (other.data, *other.scales))):
                drill.broken.append(f"{name} has other features than alone")
    drill.broken += check_dataset(folder / "mixed", "drill").problems


def _reasons(summary: dict[str, Any]) -> dict[str, int]:
    """Return how often each reason was given, without the paths and numbers in it."""
    texts = (re.sub(r"^\S+?/[^ ]*?(:| (?=[a-z]))", "", f["reason"]) for f in summary["failed"])
    return dict(Counter(re.sub(r"\d+", "N", text).strip() for text in texts).most_common())


@click.command()
@click.option("--mutants", type=click.IntRange(0), default=300, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--memory-mib", type=click.IntRange(256), default=1_024, show_default=True)
@click.option("--timeout", type=float, default=20.0, show_default=True, help="Seconds a video.")
def main(mutants: int, seed: int, memory_mib: int, timeout: float) -> None:
    """Run the drill in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        drill = run(Path(folder), mutants, seed, memory_mib << 20, timeout, large=True)
    click.echo(json.dumps(drill.figures, indent=1))
    for sentence in drill.broken:
        click.echo(f"BROKEN: {sentence}")
    sys.exit(1 if drill.broken else 0)


if __name__ == "__main__":
    main()
