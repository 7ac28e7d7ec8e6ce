"""How long does a lookup take?

Each way of keeping features is measured beside featstore, a pass of ours before each pass of theirs, so that a ratio
compares neighbours in time. For records of LongVA-7B's size and for many small ones:

    python benchmarks/bench_get.py

It takes some fifteen minutes and 3 GB of a real disk.

open:    to a reader that can be asked, in a process that has imported everything.
lookup:  from a video's id to its arrays, ready to compute with.
read:    from a video's id to all its bytes in a buffer that was there before.
many:    from 64 ids to their finished features, one float32 array.
hot:     all files in the page cache and, but for first lookups, read before through the same reader.
cold:    all files evicted before each call.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import xxhash
from measure import (
    RESULTS,
    Summary,
    Timings,
    describe,
    evict,
    installed,
    machine,
    no_collection,
    plot_bars,
    resident_share,
    settle,
    show_bytes,
    show_ratio,
    show_time,
    spare_the_living,
    stored_bytes,
    table,
    write_results,
)
from peers import (
    OTHERS,
    Featstore,
    FeatstoreFirst,
    FeatstoreNever,
    FeatstoreSingly,
    Peer,
    Videos,
    as_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PACKAGES = (
    "featstore",
    "lmdb",
    "msgpack",
    "numpy",
    "xxhash",
    "torch",
    "safetensors",
    "datasets",
    "h5py",
)
MAX_DISK_BYTES = 6_000_000_000
FILE_BYTES = (
    8 << 10
)  # what a small record takes at most beside its own bytes, as a file or with its header
MAX_RESIDENT_SHARE = 0.01  # above it a file was not evicted
SMALL_PICKS = 2000
BATCH = 64  # videos of a call of `many`

# What ours is compared by: hot, a lookup of a record that this process has proved; cold, the first of a new process.
BASES: dict[str, type[Featstore]] = {"hot": Featstore, "cold": FeatstoreFirst}


@dataclass(frozen=True)
class Kind:
    """One size of records, and how it is measured."""

    name: str
    videos: Videos
    repeats: int
    stages: tuple[tuple[str, str], ...]  # (operation, cache)
    max_picks: int

    @property
    def title(self) -> str:
        tokens, dim = self.videos.shape
        return (
            f"{self.videos.count:,} {self.name} records of {tokens:,} x {dim:,} int8 and a scale a "
            f"{self.videos.granularity}, {show_bytes(self.videos.nbytes())}"
        )

    @property
    def disk_bytes(self) -> int:
        """Return what ours and the largest peer may take together: bf16 twice ours, HF datasets while written too."""
        return 3 * self.videos.count * (self.videos.nbytes() + FILE_BYTES)

    def order(self, seed: int) -> list[str]:
        """Return the ids one pass visits, in random order."""
        picks = np.random.default_rng(seed).permutation(self.videos.count)[: self.max_picks]
        ids = self.videos.ids
        return [ids[i] for i in picks]


@dataclass(frozen=True)
class Row:
    """One line of a table; ratio: median over that of ours in the same passes."""

    kind: str
    operation: str
    cache: str
    peer: str
    summary: Summary
    ratio: float
    disk_bytes: float  # a call

    def to_dict(self) -> dict[str, Any]:
        row = {"records": self.kind, **{k: v for k, v in vars(self).items() if k != "kind"}}
        return row | {"summary": self.summary.to_dict()}


@dataclass
class Report:
    """What was found so far."""

    rows: list[Row] = field(default_factory=list)
    stored: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    digests: dict[str, dict[str, dict[str, str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    left_out: list[str] = field(default_factory=list)
    resident: float = 0.0

    def leave_out(self, sentence: str) -> None:
        if sentence not in self.left_out:
            self.left_out.append(sentence)
            click.echo(sentence, err=True)


class Comparison:
    """All peers on one kind of records, in a folder that holds ours and one other at a time."""

    def __init__(self, kind: Kind, folder: Path, report: Report) -> None:
        self.kind = kind
        self.folder = folder
        self.report = report
        self.out = np.ones(kind.videos.nbytes("bf16") + kind.videos.nbytes(), np.uint8)
        self.ours: dict[tuple[str, str], Timings] = defaultdict(lambda: Timings([]))

    def run(self) -> None:
        """Measure everything."""
        ours = Featstore(self._place("featstore"), self.kind.videos)
        self._prepare(ours)
        for variant in (FeatstoreSingly, FeatstoreFirst, FeatstoreNever):
            self._measure(variant(ours.folder, self.kind.videos), ours.folder)
        for cls in OTHERS:
            missing = [module for module in cls.needs if not installed(module)]
            if missing:
                self.report.leave_out(f"{cls.name} is left out: {missing[0]} is not installed")
                continue
            peer = cls(self._place("peer"), self.kind.videos)
            self._prepare(peer)
            self._measure(peer, ours.folder)
            shutil.rmtree(peer.folder)
        for (operation, cache), timings in self.ours.items():
            names = {"open": "featstore", "many": "featstore, get_many"}
            name = names.get(operation, BASES[cache].name)
            self._add(operation, cache, name, timings, 1.0)
        if ("read", "hot") in self.kind.stages:
            self._measure_memory()
        shutil.rmtree(self.folder)

    def _place(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir(parents=True)
        return place

    def _prepare(self, peer: Peer) -> None:
        click.echo(f"{self.kind.name} records: {peer.name}", err=True)
        peer.write()
        if any(cache == "cold" for _, cache in self.kind.stages):
            settle(peer.folder)  # 20,000 files take minutes
        name = "featstore" if isinstance(peer, Featstore) else peer.name
        digest = self._prove(peer)
        self.report.digests[self.kind.name][peer.dtype][name] = digest
        self.report.stored[self.kind.name][name] = (
            stored_bytes(peer.folder) / self.kind.videos.count
        )

    def _prove(self, peer: Peer) -> str:
        """Return the digest of what `peer` gives; end the run where that is not what was written."""
        digest = xxhash.xxh3_128()
        reader = peer.open()
        size = self.kind.videos.nbytes(peer.dtype)
        for video in sorted(self.kind.order(seed=0)):
            parts = [as_bytes(part) for part in self.kind.videos.parts(video, peer.dtype).values()]
            wanted = np.concatenate(parts)
            got = np.concatenate([as_bytes(part) for part in peer.get(reader, video)])
            self.out[:] = 1
            peer.read(reader, video, self.out[:size])
            if not (np.array_equal(got, wanted) and np.array_equal(self.out[:size], wanted)):
                raise click.ClickException(
                    f"{peer.name} returned other values of {video} than it was given"
                )
            digest.update(got.data)
        return digest.hexdigest()

    def _prove_many(self, *peers: Peer) -> None:
        """End the run where two give other features of many videos; bf16 ones are rounded."""
        ids = self.kind.order(seed=0)[:BATCH]
        one, other = (peer.many(peer.open(), ids) for peer in peers)
        if not np.allclose(one, other, rtol=2**-8 if peers[1].dtype == "bf16" else 0, atol=0):
            raise click.ClickException(f"{peers[1].name} returned other features than featstore")

    def _measure(self, peer: Peer, ours: Path) -> None:
        spare_the_living()
        for operation, cache in self.kind.stages:
            base = BASES[cache](ours, self.kind.videos)
            if type(base) is type(peer) or (operation == "open" and not self._opens(peer)):
                continue
            if isinstance(peer, FeatstoreSingly) and operation != "many":
                continue
            if operation == "many":
                self._prove_many(base, peer)
            if cache == "cold" and not (self._evictable(base) and self._evictable(peer)):
                continue
            mine, theirs = Timings([]), Timings([])
            for repeat in range(self.kind.repeats):
                ids = self.kind.order(seed=repeat)
                mine += self._pass(base, operation, cache, ids)
                theirs += self._pass(peer, operation, cache, ids)
            self.ours[operation, cache] += mine
            ratio = Summary.of(theirs.seconds).median / Summary.of(mine.seconds).median
            self._add(operation, cache, peer.name, theirs, ratio)

    @staticmethod
    def _opens(peer: Peer) -> bool:
        return peer.opens and not isinstance(
            peer, Featstore
        )  # ours opens alike whatever it verifies

    def _evictable(self, peer: Peer) -> bool:
        evict(peer.folder)
        left = resident_share(peer.folder)
        if left > MAX_RESIDENT_SHARE:
            self.report.leave_out(
                f"{peer.name} is not measured cold: {left:.0%} of its files stay in the page cache; is the --workdir "
                "in memory?"
            )
        return left <= MAX_RESIDENT_SHARE

    def _pass(self, peer: Peer, operation: str, cache: str, ids: Sequence[str]) -> Timings:
        timings = Timings([])
        if cache == "cold":
            evict(peer.folder)
            self.report.resident = max(self.report.resident, resident_share(peer.folder))
        reader = None if operation == "open" else peer.open()
        asked: Sequence[Any] = ids
        if operation == "many":
            asked = [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)]
        calls = {"lookup": peer.get, "many": peer.many}
        call = calls.get(operation) or partial(peer.read, out=self._buffer(peer))
        if cache == "hot" and peer.warm and operation != "open":
            for what in asked:
                call(reader, what)
        with no_collection():
            for what in asked:
                if cache == "cold":
                    evict(peer.folder)
                timings.time(peer.open if operation == "open" else partial(call, reader, what))
        return timings

    def _buffer(self, peer: Peer) -> NDArray[np.uint8]:
        return self.out[: self.kind.videos.nbytes(peer.dtype)]

    def _measure_memory(self) -> None:
        size = self.kind.videos.nbytes()
        source = np.ones(size, np.uint8)
        timings = Timings([])
        for _ in range(self.kind.repeats * len(self.kind.order(0))):
            timings.time(partial(np.copyto, self.out[:size], source))
        ratio = (
            Summary.of(timings.seconds).median / Summary.of(self.ours["read", "hot"].seconds).median
        )
        self._add("read", "hot", "(memcpy alone)", timings, ratio)

    def _add(self, operation: str, cache: str, name: str, timings: Timings, ratio: float) -> None:
        self.report.rows.append(
            Row(
                self.kind.name,
                operation,
                cache,
                name,
                Summary.of(timings.seconds),
                ratio,
                timings.disk_bytes / len(timings.seconds),
            )
        )


# --- the report ----------------------------------------------------------------------------------------------------

TITLES = {
    ("open", "hot"): "open, hot: to a reader that can be asked",
    ("open", "cold"): "open, cold",
    ("lookup", "hot"): "lookup, hot: from an id to arrays ready to compute with",
    (
        "lookup",
        "cold",
    ): "lookup, cold: see the column disk for who has read by then and who will have to",
    ("read", "hot"): "read, hot: from an id to all bytes in a buffer that was there before",
    ("read", "cold"): "read, cold",
    ("many", "hot"): f"many, hot: from {BATCH} ids to their features, one float32 array",
}

NOTES = """\
How to read it
- Trust ratios, not milliseconds. "vs ours" is a median over that of ours in the passes right before, taken in turn:
  hot, over later lookups; cold, over first lookups. Ours is measured beside each peer, hence its larger count.
- featstore proves a record's checksum at the first lookup in a process ("first lookup"), which reads it all; "later
  lookups" of it do not; "verify=never" never does. Cold, a later lookup of a record that was evicted since costs what
  verify=never costs. No peer proves anything. What is mapped may be read when it is used, not when it is looked up:
  compare cold by "read", or mind the column disk.
- int8 peers end with values and scale, like ours; bf16 ones with finished features in twice the bytes. What it costs to
  dequantize is not the question here. Read buffers are filled by numpy on one thread, where the library has no call
  of its own that fills a buffer (h5py, readinto).
- A file per video has no reader: its lookup opens the file. Imports are not counted.
- Cold: files are synced once, then dropped by posix_fadvise(DONTNEED) before each call; mincore found at most
  {resident:.2%} of their pages resident when a cold pass began, and "disk" is what the kernel counted as read for the
  call (/proc/self/io, read-ahead included). The disk below may have a cache of its own.
- Small records: ours takes whole pages, one for header and scale and those of its payload, so 1 KiB of features takes
  8 KiB beside its catalog row. They are measured hot, {picks:,} of them in random order a pass.
- Every peer returned the bytes that were written, by lookup and by read, before it was timed.
"""


def render(kinds: Sequence[Kind], report: Report, facts: dict[str, Any]) -> str:
    """Return the whole result as text."""
    parts = ["bench_get: how long does a lookup take?", describe(facts)]
    for kind in kinds:
        stored = report.stored[kind.name].items()
        rows = [(name, show_bytes(size)) for name, size in stored]
        parts += [f"== {kind.title} ==", table(("on the disk", "a record"), rows)]
        parts += [
            f"{title}\n{_table([row for row in report.rows if _is(row, kind, *stage)])}"
            for stage, title in TITLES.items()
            if any(_is(row, kind, *stage) for row in report.rows)
        ]
    picks = min(kinds[-1].max_picks, kinds[-1].videos.count)
    parts.append(NOTES.format(resident=report.resident, picks=picks).strip())
    parts += ["\n".join(report.left_out)] if report.left_out else []
    return "\n\n".join(parts) + "\n"


def _is(row: Row, kind: Kind, operation: str, cache: str) -> bool:
    return (row.kind, row.operation, row.cache) == (kind.name, operation, cache)


def _table(rows: list[Row]) -> str:
    head = ("", "count", "median", "p90", "p99", "max", "vs ours", "disk")
    return table(head, [_cells(row) for row in sorted(rows, key=lambda row: row.summary.median)])


def _cells(row: Row) -> list[str]:
    found = row.summary
    times = [show_time(seconds) for seconds in (found.median, found.p90, found.p99, found.max)]
    disk = show_bytes(row.disk_bytes) if row.disk_bytes else "-"
    return [row.peer, f"{found.count}", *times, show_ratio(row.ratio), disk]


def plot(path: Path, kinds: Sequence[Kind], report: Report) -> str:
    """Draw medians; return what became of it."""
    panels = {}
    for kind in kinds:
        for stage in (("lookup", "hot"), ("read", "hot"), ("read", "cold")):
            rows = [row for row in report.rows if _is(row, kind, *stage)]
            title = f"{kind.name} records, {', '.join(stage)}: median, ms"
            if rows:
                panels[title] = {row.peer: row.summary.median * 1e3 for row in rows}
    return plot_bars(path, panels, ours="featstore", unit="ms, log scale")


def plan(videos: int, frames: int, small: int, repeats: int) -> list[Kind]:
    """Return what is to be measured."""
    every = tuple((op, cache) for op in ("open", "lookup", "read") for cache in ("hot", "cold"))
    hot = (("lookup", "hot"), ("read", "hot"), ("many", "hot"))
    kinds = [Kind("large", Videos(videos, frames, 144, 3584, "channel"), repeats, every, videos)]
    if small:
        clips = Videos(max(1, small // 20), 1, 144, 1024, "token")
        kinds.append(Kind("clips'", clips, 1, hot, 4 * BATCH))
        kinds.append(Kind("small", Videos(small, 1, 1, 1024, "token"), 1, hot, SMALL_PICKS))
    return kinds


def check_room(kinds: Sequence[Kind], workdir: Path) -> None:
    """Refuse what would take more disk than there is, or than a benchmark should."""
    need = max(kind.disk_bytes for kind in kinds)
    free = shutil.disk_usage(workdir).free
    if need > min(MAX_DISK_BYTES, free):
        raise click.ClickException(
            f"this needs up to {show_bytes(need)} in {workdir}, where {show_bytes(free)} are free; it may take "
            f"{show_bytes(MAX_DISK_BYTES)} at most: take fewer --videos or --frames, or another --workdir"
        )


@click.command()
@click.option(
    "--videos", default=12, show_default=True, type=click.IntRange(1), help="Large records."
)
@click.option(
    "--frames",
    default=128,
    show_default=True,
    type=click.IntRange(1),
    help="Frames a large record.",
)
@click.option(
    "--small",
    default=20_000,
    show_default=True,
    type=click.IntRange(0),
    help="Small records; 0 for none.",
)
@click.option(
    "--repeats",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Passes over large records.",
)
@click.option(
    "--out", default=RESULTS, type=click.Path(path_type=Path), help="Folder of the results."
)
@click.option(
    "--workdir",
    default=tempfile.gettempdir(),
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where records are written, on a real disk; all is removed at the end.",
)
def main(videos: int, frames: int, small: int, repeats: int, out: Path, workdir: Path) -> None:
    """Measure how long a lookup takes, with featstore and with what one would otherwise use."""
    kinds = plan(videos, frames, small, repeats)
    check_room(kinds, workdir)
    facts = machine(PACKAGES, workdir)
    report = Report()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the folder would stay
    with tempfile.TemporaryDirectory(prefix="bench_get-", dir=workdir) as folder:
        for kind in kinds:
            Comparison(kind, Path(folder) / kind.name, report).run()
    text = render(kinds, report, facts)
    data = {
        "benchmark": "get",
        "machine": facts,
        "settings": {"videos": videos, "frames": frames, "small": small, "repeats": repeats},
        "stored_bytes_a_record": report.stored,
        "digests": report.digests,
        "resident_share_before_cold": report.resident,
        "left_out": report.left_out,
        "rows": [row.to_dict() for row in report.rows],
    }
    write_results(out, "bench_get", text, data)
    click.echo(text, nl=False)
    click.echo(plot(out / "bench_get.png", kinds, report), err=True)


if __name__ == "__main__":
    main()
