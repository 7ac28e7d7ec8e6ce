"""What does a lookup take in a dataset of 1, 100 or 1,000 sealed shards, against one environment?

    python benchmarks/bench_union.py

It takes a minute or two. The same records lie in one environment and, divided, in shards; passes over the same random
videos take turns, so that a ratio compares neighbours in time.

open:    to the first answer of a new reader: the list and all indices are read.
first:   lookups in shards that are not mapped yet, payloads not verified.
lookup:  lookups of videos that were read before.
held:    descriptors that the reader keeps open, beside those of one environment.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import click
import xxhash
from bench_scale import DATASET, video_id, write_featstore
from measure import RESULTS, describe, machine, show_ratio, show_time, table, write_results

from featstore.records.record import parse
from featstore.store import open_snapshot
from featstore.store.maintenance.seal_shard import content_digest
from featstore.store.manifest import MANIFEST_KEY
from featstore.store.reader import FeatureStore
from featstore.store.shards.index import IndexedRecord, RecordPlace, pack_index
from featstore.store.shards.manifest_list import ShardRow, add_shards
from featstore.store.shards.places import LocalPlace, shard_file

PACKAGES = ("featstore", "lmdb", "msgpack", "numpy", "xxhash")
PAGE = 4096
PASSES = 5


def write_shards(single: Path, cache: Path, count: int, dataset: str = DATASET) -> None:
    """Divide the records of `single` among `count` files with their indices; nobody reads other pages of a shard."""
    snapshot, place = open_snapshot(single / dataset), LocalPlace(cache)
    keys = [*snapshot.keys("catalog")]
    random.Random(0).shuffle(keys)
    sets, manifest = dict(snapshot.rows("specs")), snapshot.read("manifest", MANIFEST_KEY) or b""
    rows = []
    for number in range(count):
        data, records = bytearray(), []
        for key in keys[number::count]:
            record = snapshot.get("records", key) or b""
            at = RecordPlace(len(data) + 16, len(record), xxhash.xxh3_128_digest(record))
            content = content_digest(parse(memoryview(record)))
            row = snapshot.read("catalog", key) or b""
            records.append(IndexedRecord(key, at, content, row))
            data += bytes(16) + record
            data += bytes(-len(data) % PAGE)
        shard = xxhash.xxh3_128_hexdigest(data)
        index = pack_index(shard, len(data), manifest, sets, {}, records)
        row = ShardRow(shard, len(data), xxhash.xxh3_128_hexdigest(index), len(index), len(records))
        folder = cache / shard_file(dataset)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / row.data_name).write_bytes(data)
        (folder / row.index_name).write_bytes(index)
        rows.append(row)
    add_shards(place, dataset, rows)


def measure(cache: Path, videos: list[str]) -> dict[str, float]:
    """Return seconds to open, for a first lookup and for a later one, and descriptors held."""
    before, begun = len(os.listdir("/proc/self/fd")), time.perf_counter()
    demo = FeatureStore(cache, verify="never")[DATASET]
    len(demo)
    found = {"open": time.perf_counter() - begun}
    for name in ("first", "lookup"):
        took = []
        for video in videos:
            begun = time.perf_counter()
            demo[video]
            took.append(time.perf_counter() - begun)
        found[name] = statistics.median(took)
    found["held"] = len(os.listdir("/proc/self/fd")) - before
    return found


@click.command()
@click.option("--videos", default=5_000, show_default=True)
@click.option("--picks", default=1_000, show_default=True, help="Lookups of a pass.")
@click.option("--shards", default="1,100,1000", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; a temporary one.")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), show_default=True)
def main(videos: int, picks: int, shards: str, folder: Path | None, out: Path) -> None:
    """Measure, print and write the table."""
    counts = [int(count) for count in shards.split(",")]
    with tempfile.TemporaryDirectory(prefix="bench-union-", dir=folder) as name:
        place = Path(name)
        (place / "0").mkdir()
        write_featstore(place / "0", videos)
        for count in counts:
            write_shards(place / "0", place / str(count), count)
        rng = random.Random(1)
        picked = [video_id(rng.randrange(videos)) for _ in range(picks)]
        passes = [{n: measure(place / str(n), picked) for n in [0, *counts]} for _ in range(PASSES)]
        about = machine(PACKAGES, place)
    names = ("open", "first", "lookup", "held")
    data = {
        n: {name: statistics.median(found[n][name] for found in passes) for name in names}
        for n in passes[0]
    }
    rows = []
    for n, found in data.items():
        ratio = statistics.median(p[n]["lookup"] / p[0]["lookup"] for p in passes)
        times = [show_time(found[name]) for name in names[:3]]
        rows.append([str(n or "one file"), *times, show_ratio(ratio), str(int(found["held"]))])
    head = ("shards", "open", "first", "lookup", "lookup, ratio", "held")
    text = f"{table(head, rows)}\n\n{videos} videos, {picks} lookups a pass, medians of {PASSES}\n{describe(about)}\n"
    write_results(out, "bench_union", text, {"machine": about, "shards": data})
    print(text)


if __name__ == "__main__":
    main()
