"""How do look-ups, opening, listing and memory grow with the number of records?

Small records (16 tokens of 8 values), so that only their number counts, beside a table of SQLite and a safetensors file
a video:

    python benchmarks/bench_scale.py --sizes 1000,100000,1000000

A million records take some minutes and 9 GB of a real disk. Each reader is a process of its own; all lies in the page
cache as far as memory goes.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from measure import (
    RESULTS,
    Summary,
    describe,
    machine,
    plot_lines,
    show_bytes,
    show_time,
    stored_bytes,
    table,
    write_results,
)
from probe_scale import DATASET, SHAPE, scale_spec, video_id, video_path
from safetensors.numpy import save_file

from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.records.record import pack_record
from featstore.records.storage import Storage
from featstore.store.writer import FeatureWriter

PACKAGES = ("featstore", "lmdb", "msgpack", "numpy", "xxhash", "safetensors")
ROOM = 64 << 10
COMMIT_BYTES = 64 << 20
MAX_FILES = 10_000


def draw() -> tuple[np.ndarray, np.ndarray]:
    """Return the values and the scale that all records have; the ids alone differ."""
    rng = np.random.default_rng(0)
    values = rng.integers(-127, 128, SHAPE, np.int8)
    return values, rng.uniform(0.01, 0.1, (1, SHAPE[1])).astype(np.float32)


def write_featstore(folder: Path, count: int) -> None:
    values, scale = draw()
    spec, storage = scale_spec(), Storage("int8", "channel")
    frames = spec.sampling.nframe
    header = Header(
        video_id="",
        video_path="",
        dataset=DATASET,
        spec=spec.digest,
        nframe=frames,
        frame_indices=np.arange(frames, dtype="<u4").tobytes(),
        total_frames=frames,
        fps=1.0,
        decoder="decord",
        doubt="",
        shape=SHAPE,
        layout=spec.encoder.geometry.layout(frames),
        dtype="fp32",
        storage=storage,
        source=SourceFingerprint(1 << 20, 1_700_000_000_000_000_000, "0" * 32),
        error=QuantError(1.0, 0.0, 0.0, 0.0, 0.0),
        created=1_700_000_000.0,
    )
    buffer = memoryview(bytearray(ROOM) + values.tobytes())
    payload = slice(ROOM, len(buffer))
    with FeatureWriter(folder, DATASET, min_free=1 << 30, commit_bytes=COMMIT_BYTES) as writer:
        writer.add_set(spec, storage, origin="random")
        for number in range(count):
            name = video_id(number)
            named = dataclasses.replace(header, video_id=name, video_path=video_path(name))
            writer.put(*pack_record(named, scale.tobytes(), buffer, payload))
            if writer.due:
                writer.commit()


def write_sqlite(folder: Path, count: int) -> None:
    values, scale = draw()
    with sqlite3.connect(folder / "features.db") as base:
        base.execute(
            "CREATE TABLE features (id TEXT PRIMARY KEY, tokens INT, dim INT, data BLOB, scale BLOB) WITHOUT ROWID"
        )
        rows = ((video_id(i), *SHAPE, values.tobytes(), scale.tobytes()) for i in range(count))
        base.executemany("INSERT INTO features VALUES (?, ?, ?, ?, ?)", rows)


def write_files(folder: Path, count: int) -> None:
    values, scale = draw()
    for number in range(count):
        data = {"data": values, "scale": scale}
        save_file(data, folder / f"{video_id(number)}.safetensors")


WRITERS = {
    "featstore": write_featstore,
    "sqlite": write_sqlite,
    "safetensors, a file a video": write_files,
}


def measure_kind(kind: str, count: int, picks: int, workdir: Path) -> dict[str, Any]:
    """Write `count` records, read them in another process, and return what was found."""
    with tempfile.TemporaryDirectory(prefix="bench_scale-", dir=workdir) as folder:
        begun = time.perf_counter()
        WRITERS[kind](Path(folder), count)
        writing = time.perf_counter() - begun
        probe = Path(__file__).with_name("probe_scale.py")
        words = [sys.executable, probe, kind, folder, str(count), str(picks)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise click.ClickException(f"reading {count} records of {kind} failed:\n{done.stderr}")
        found = json.loads(done.stdout)
        return {
            "kind": kind,
            "count": count,
            "write_s": writing,
            "disk_bytes": stored_bytes(Path(folder)),
            "open": Summary.of(found["open_s"]).to_dict(),
            "first": Summary.of(found["first_s"]).to_dict(),
            "again": Summary.of(found["again_s"]).to_dict(),
            **{
                name: found[name]
                for name in ("listing_s", "skip_s", "stats_s", "open_bytes", "all_bytes")
            },
        }


NOTES = """\
How to read it
- open: to a reader that can be asked, imports not counted; the median of some. first: a look-up of a record the process
  has not read before, which featstore verifies by its checksum; again: the same once more. Both in random order.
- listing: all rows of the catalog, one after the other, with what a row says; files: the names of the folder alone.
- skip: which of all these videos, listed again, are stored: what an ingest that is started again does first. Of
  featstore also a stat of each file, none of which exists here; of the others a set of the names.
- stats: such a stat of each file, nothing else.
- memory: what the process took of its own, without what is shared with the page cache; after opening, and after all.
- Small records take whole pages in featstore: see docs/format.md. A file a video is measured up to {files:,} videos.
"""


def render(data: dict[str, Any]) -> str:
    """Return the whole result as text."""
    head = (
        "records",
        "",
        "open",
        "first",
        "p99",
        "again",
        "p99",
        "listing",
        "rows/s",
        "skip",
        "stats",
        "memory",
        "disk",
        "written/s",
    )
    rows = [
        (
            f"{row['count']:,}",
            row["kind"],
            show_time(row["open"]["median_s"]),
            show_time(row["first"]["median_s"]),
            show_time(row["first"]["p99_s"]),
            show_time(row["again"]["median_s"]),
            show_time(row["again"]["p99_s"]),
            show_time(row["listing_s"]),
            f"{row['count'] / row['listing_s']:,.0f}",
            show_time(row["skip_s"]),
            show_time(row["stats_s"]),
            f"{show_bytes(max(0, row['open_bytes']))} / {show_bytes(max(0, row['all_bytes']))}",
            show_bytes(row["disk_bytes"]),
            f"{row['count'] / row['write_s']:,.0f}",
        )
        for row in data["rows"]
    ]
    ours = [row for row in data["rows"] if row["kind"] == "featstore"]
    growth = " -> ".join(f"{row['count']:,}: {show_time(row['again']['median_s'])}" for row in ours)
    return (
        "\n\n".join(
            [
                "bench_scale: what grows with the number of records?",
                describe(data["machine"]),
                table(head, rows),
                f"featstore, a look-up again: {growth}",
                NOTES.format(files=MAX_FILES).strip(),
            ]
        )
        + "\n"
    )


def plot(path: Path, data: dict[str, Any]) -> str:
    """Draw what grows; return what became of it."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for title, value in (
        ("look-up, first: median, us", lambda row: row["first"]["median_s"] * 1e6),
        ("look-up, again: median, us", lambda row: row["again"]["median_s"] * 1e6),
        ("open: median, us", lambda row: row["open"]["median_s"] * 1e6),
        ("listing, us a row", lambda row: row["listing_s"] / row["count"] * 1e6),
        ("skip, us a video", lambda row: row["skip_s"] / row["count"] * 1e6),
    ):
        lines = panels.setdefault(title, {})
        for row in data["rows"]:
            lines.setdefault(row["kind"], []).append((row["count"], value(row)))
    return plot_lines(path, panels, ours="featstore", x="records")


@click.command()
@click.option("--sizes", default="1000,10000,100000", show_default=True, help="Numbers of records.")
@click.option("--picks", default=2000, show_default=True, help="Look-ups of a reader.")
@click.option(
    "--workdir",
    default=tempfile.gettempdir(),
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where records are written, on a real disk; all is removed at the end.",
)
@click.option(
    "--out", default=RESULTS, type=click.Path(path_type=Path), help="Folder of the results."
)
def main(sizes: str, picks: int, workdir: Path, out: Path) -> None:
    """Measure, print a table, and write it to files."""
    facts = machine(PACKAGES, workdir)
    rows = []
    for count in map(int, sizes.split(",")):
        for kind in WRITERS:
            if kind.startswith("safetensors") and count > MAX_FILES:
                continue
            click.echo(f"{count:,} records: {kind}", err=True)
            rows.append(measure_kind(kind, count, picks, workdir))
    data = {
        "benchmark": "scale",
        "machine": facts,
        "settings": {"sizes": sizes, "picks": picks, "shape": SHAPE},
        "rows": rows,
    }
    text = render(data)
    write_results(out, "bench_scale", text, data)
    click.echo(text, nl=False)
    click.echo(plot(out / "bench_scale.png", data), err=True)


if __name__ == "__main__":
    main()
