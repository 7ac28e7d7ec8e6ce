"""How fast does `featstore merge` join sealed shards, against a plain copy of their files with the same syncs?

    python benchmarks/bench_merge.py

It takes some minutes and four times the bytes of the shards. The page cache is asked to drop them before each pass; the
copy and the merge take turns, so that a ratio compares neighbours in time.

copy:     each file read and written in pieces, synced whenever as many bytes are written as the merge commits at once.
one sync: the same, synced once at the end.
merge:    shards to one environment: each record's checksum verified, committed and synced with its row.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import click
from bench_union import write_shards
from large_records import Records, write_store
from measure import (
    RESULTS,
    describe,
    evict,
    machine,
    resident_share,
    settle,
    show_bytes,
    show_ratio,
    table,
    write_results,
)

from featstore.defaults import COMMIT_BYTES
from featstore.store.maintenance.merge import merge_dataset

PACKAGES = ("featstore", "lmdb", "msgpack", "numpy", "xxhash")
DATASET = "bench"
PIECE_BYTES = 8 << 20


def copy(source: Path, target: Path, sync_bytes: int) -> None:
    """Copy the shards' files, synced whenever `sync_bytes` were written."""
    target.mkdir()
    piece = memoryview(bytearray(PIECE_BYTES))
    for path in sorted((source / DATASET / "shards").glob("*.mdb")):
        with (
            open(path, "rb", buffering=0) as file,
            open(target / path.name, "wb", buffering=0) as out,
        ):
            written = 0
            while count := file.readinto(piece):
                out.write(piece[:count])
                written += count
                if written >= sync_bytes:
                    os.fdatasync(out.fileno())
                    written = 0
            os.fdatasync(out.fileno())


def merge(source: Path, target: Path) -> None:
    done = merge_dataset(source, target, DATASET, min_free=1 << 30)
    assert done.stored == done.total


@click.command()
@click.option("--shards", default=8, show_default=True)
@click.option("--videos", default=16, show_default=True, help="Of a shard.")
@click.option("--frames", default=128, show_default=True, help="Of a video; 66 MB at 128.")
@click.option("--passes", default=3, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; a temporary one.")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), show_default=True)
def main(
    shards: int, videos: int, frames: int, passes: int, folder: Path | None, out: Path
) -> None:
    """Measure, print and write the table."""
    with tempfile.TemporaryDirectory(prefix="bench-merge-", dir=folder) as name:
        place = Path(name)
        source, target = place / "shards", place / "target"
        write_store(place / "one", DATASET, Records(shards * videos, frames), "raw")
        write_shards(place / "one", source, shards, DATASET)
        shutil.rmtree(place / "one")
        size = sum(path.stat().st_size for path in source.rglob("*.mdb"))
        ways = {
            "copy": lambda: copy(source, target, COMMIT_BYTES),
            "one sync": lambda: copy(source, target, size),
            "merge": lambda: merge(source, target),
        }
        about, took, warm = machine(PACKAGES, place), {way: [] for way in ways}, 0.0
        for _ in range(passes):
            for way, run in ways.items():
                settle(source)
                evict(source)
                warm = max(warm, resident_share(source))
                begun = time.perf_counter()
                run()
                took[way].append(time.perf_counter() - begun)
                print(f"{way}: {size / took[way][-1] / 1e6:.0f} MB/s", flush=True)
                shutil.rmtree(target)
    ratios = {way: [c / s for c, s in zip(took["copy"], took[way], strict=True)] for way in ways}
    rows = [
        [
            way,
            f"{size / statistics.median(took[way]) / 1e6:.0f} MB/s",
            show_ratio(statistics.median(ratios[way])),
            " ".join(map(show_ratio, ratios[way])),
        ]
        for way in ways
    ]
    head = ("", "median", "of the copy", "pass by pass")
    text = (
        f"{table(head, rows)}\n\n{shards} shards of {show_bytes(size / shards)}, {passes} passes, {warm:.0%} of them "
        f"in the page cache before a pass at most\n{describe(about)}\n"
    )
    write_results(out, "bench_merge", text, {"machine": about, "bytes": size, "seconds": took})
    print(text)


if __name__ == "__main__":
    main()
