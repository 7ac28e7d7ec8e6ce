"""Four processes ingest a share each, one of them is killed again and again, and all is compared with one ingest.

The killed one dies with all of its processes at a random moment: while it lists, decodes, encodes, commits, seals,
copies or adds its shard to the list. The same command follows at once. At the end each record must be that of one
ingest, bit for bit but when it was made, in the shards read as one and in the environment they are merged into; the
failures must be the same, and no share may have left anything unsealed. Exits with 1 on anything else.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import psutil
from drills.shared import processes
from drills.shared.clips import make_clips
from drills.shared.figures import report

from featstore.encoders.toy import ToyEncoder
from featstore.pipeline.cluster.shard import Share, ingest_share
from featstore.pipeline.ingest import ingest
from featstore.pipeline.options import IngestOptions
from featstore.records.record import parse
from featstore.sampling import Sampling
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.reader import FeatureStore
from featstore.store.rows import video_key

DATASET = "demo"
SHARES = 4
SHARD_BYTES = 14_000  # of three videos, so that a share is sealed more than once
OPTIONS = IngestOptions(workers=1, min_free=0, lock_wait=60.0)
LONGEST = 120.0


def one_share(place: Path, number: int) -> None:
    """Ingest a share, as `featstore ingest --shard` does."""
    ingest_share(
        place / "clips",
        place / "cache",
        DATASET,
        Share(number, SHARES),
        shard_dir=place / "scratch",
        shard_bytes=SHARD_BYTES,
        encoder=ToyEncoder(),
        sampling=Sampling(4),
        options=OPTIONS,
    )


def whole(place: Path) -> None:
    """Ingest all in one process."""
    encoder, sampling = ToyEncoder(), Sampling(4)
    ingest(
        place / "clips",
        place / "single",
        DATASET,
        encoder=encoder,
        sampling=sampling,
        options=OPTIONS,
    )


def killed_share(place: Path, kills: int, seed: int) -> tuple[int, list[str]]:
    """Run share 0, kill it `kills` times, and let it end; return how often it was at work then, and what went wrong."""
    rng, at_work, usual = random.Random(seed), 0, 3.0
    for _ in range(kills):
        pid = processes.start(place / "log-0", one_share, place, 0)
        code = processes.wait_exit(pid, rng.uniform(0.0, usual))
        if code is not None:
            if code:
                return at_work, [(place / "log-0").read_text()]
            continue
        at_work += 1
        processes.kill([*map(psutil.Process, [pid]), *processes.children_of(pid)])
        processes.wait_exit(pid, LONGEST)
    code = processes.wait_exit(processes.start(place / "log-0", one_share, place, 0), LONGEST)
    return at_work, [] if code == 0 else [(place / "log-0").read_text() or "share 0 hung"]


def records_of(cache: Path) -> dict[str, tuple[Any, ...]]:
    """Return what is stored of each video, without when and from which path it was made, and of each failure."""
    demo, found = FeatureStore(cache)[DATASET], {}
    for video in demo:
        key = video_key(demo.feature_set.spec.digest, video)
        record = parse(memoryview(demo.snapshot().read("records", key) or b""))
        header = replace(record.header, created=0.0, video_path="")
        found[video] = repr(header), bytes(record.scales).hex(), bytes(record.payload).hex()
    for row in demo.failures():
        found[row.video_id] = (row.reason,)
    return found


def judge(place: Path) -> list[str]:
    """Return what differs from the ingest in one process, and what is left behind."""
    merge_dataset(place / "cache", place / "merged", DATASET, failures=True, min_free=0)
    wanted, problems = records_of(place / "single"), []
    for name in ("cache", "merged"):
        found = records_of(place / name)
        problems += [
            f"{name}: {video} is not what one ingest stores"
            for video in sorted(wanted.keys() | found.keys())
            if found.get(video) != wanted.get(video)
        ]
        problems += check_dataset(place / name, DATASET).problems
    left = [str(path.relative_to(place)) for path in place.glob("scratch/.shards*/**/*")]
    return problems + [f"{path} is left" for path in left]


@click.command()
@click.option("--kills", default=20, show_default=True, help="Of share 0.")
@click.option("--videos", default=40, show_default=True, help="Clips, beside two broken ones.")
@click.option("--seed", default=1, show_default=True, help="Of the moments.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; a temporary one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(kills: int, videos: int, seed: int, folder: Path | None, as_json: bool) -> None:
    """Ingest in shares, kill, compare; print how often the share that was killed was at work."""
    place = Path(tempfile.mkdtemp(prefix="shards-drill-", dir=folder))
    begun = time.monotonic()
    try:
        make_clips(place / "clips", videos)
        pids = {
            number: processes.start(place / f"log-{number}", one_share, place, number)
            for number in range(1, SHARES)
        }
        at_work, problems = killed_share(place, kills, seed)
        for number, pid in pids.items():
            if processes.wait_exit(pid, LONGEST) != 0:
                problems.append((place / f"log-{number}").read_text() or f"share {number} hung")
        code = processes.wait_exit(processes.start(place / "log", whole, place), LONGEST)
        problems += [] if code == 0 else [(place / "log").read_text()]
        problems += problems or processes.ask(judge, place)
        report(
            place,
            ("shares", "videos", "kills", "of them at work", "shards"),
            [(SHARES, videos, kills, at_work, len([*place.glob("cache/demo/shards/*.idx")]))],
            facts={"seed": seed, "seconds": round(time.monotonic() - begun, 1)},
            problems=problems,
            as_json=as_json,
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
