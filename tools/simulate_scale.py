"""Compute what an ingest of many videos takes: time, processes, shards, index, and what failures of nodes cost.

Each process encodes on its GPUs, writes one environment at a time and seals it as a shard; the slowest of encoding, its
disk and its link sets its pace. Nodes fail at random, a seed makes the draw again: what was in flight is made again.
Rates are parameters; the defaults were measured on small machines, see docs/scaling.md.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, fields

import click


@dataclass(frozen=True)
class Setting:
    """What is ingested, on what.

    Attributes:
        videos: how many.
        record_mb: megabytes of a record: 66 for 128 frames of LongVA as int8.
        processes: writers, each with a disk of its own.
        gpus: of each process.
        encode_rate: videos a second that a GPU encodes.
        disk_mb: megabytes a second that a process commits.
        link_mb: megabytes a second that a node pushes to shared storage.
        shard_gib: size of a sealed shard.
        index_bytes: of a video in a shard's index, catalog row included.
        table_bytes: of a video in the memory of a reader.
        row_bytes: of a shard in the manifest.
        in_flight: videos that a process loses when it dies.
        mtbf_hours: mean time between failures of one node.
        restart_minutes: until a process that died works again.
        readers: GPUs that read the features.
        read_rate: videos a second that each reads.
        seed: of the failures.
    """

    videos: int = 1_000_000
    record_mb: float = 66.0
    processes: int = 8
    gpus: int = 2
    encode_rate: float = 4.7
    disk_mb: float = 1000.0
    link_mb: float = 1250.0
    shard_gib: float = 64.0
    index_bytes: int = 457
    table_bytes: int = 52
    row_bytes: int = 150
    in_flight: int = 20
    mtbf_hours: float = 1000.0
    restart_minutes: float = 10.0
    readers: int = 8
    read_rate: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what nothing can be computed of."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "seed" and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{field.name} is {value}; it must be above 0")


def simulate(setting: Setting) -> dict[str, float | int | str]:
    """Return the figures of an ingest, by name with the unit in it."""
    bounds = {
        "encode": setting.gpus * setting.encode_rate,
        "disk": setting.disk_mb / setting.record_mb,
        "link": setting.link_mb / setting.record_mb,
    }
    slowest = min(bounds, key=lambda name: bounds[name])
    share, more = divmod(setting.videos, setting.processes)
    rng, failures, again, longest = random.Random(setting.seed), 0, 0, 0.0
    counts = [share + (number < more) for number in range(setting.processes)]
    for videos in counts:
        seconds, failed, redone = _one_process(setting, videos, bounds[slowest], rng)
        failures, again, longest = failures + failed, again + redone, max(longest, seconds)
    total = setting.videos * setting.record_mb * 1e6
    a_shard = setting.shard_gib * 2**30
    shards = sum(math.ceil(videos * setting.record_mb * 1e6 / a_shard) for videos in counts)
    read = setting.readers * setting.read_rate * setting.record_mb
    return {
        "bytes_tb": total / 1e12,
        "hours": longest / 3600,
        "bottleneck": slowest,
        "videos_a_second_a_process": bounds[slowest],
        "shards": shards,
        "objects": 2 * shards + 1,
        "manifest_mb": shards * setting.row_bytes / 1e6,
        "index_gb": setting.videos * setting.index_bytes / 1e9,
        "reader_table_gb": setting.videos * setting.table_bytes / 1e9,
        "node_failures": failures,
        "videos_made_again": again,
        "share_made_again": again / setting.videos,
        "read_gb_a_second": read / 1e3,
        "gpu_seconds_to_encode_a_video": 1 / setting.encode_rate,
        "link_seconds_to_read_a_video": setting.record_mb / setting.link_mb,
    }


def _one_process(
    setting: Setting, videos: int, rate: float, rng: random.Random
) -> tuple[float, int, int]:
    """Return the seconds that a process takes for its videos, how often it failed, and the videos it made again."""
    seconds, failures, again, left = 0.0, 0, 0, float(videos)
    while left > 0:
        until = rng.expovariate(1 / (setting.mtbf_hours * 3600))
        if until >= left / rate:
            return seconds + left / rate, failures, again
        lost = min(setting.in_flight, until * rate)
        left -= until * rate - lost
        seconds += until + setting.restart_minutes * 60
        failures, again = failures + 1, again + math.ceil(lost)
        if failures > 100_000:
            raise ValueError("nodes fail before they finish anything: raise mtbf_hours")
    return seconds, failures, again


def _options(command: click.decorators.FC) -> click.decorators.FC:
    for name, value in reversed(asdict(Setting()).items()):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, type=type(value), default=value, show_default=True)(
            command
        )
    return command


@click.command()
@_options
def main(**given: float) -> None:
    """Print what an ingest of so many videos takes."""
    try:
        found = simulate(Setting(**given))  # type: ignore[arg-type]
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    for name, value in found.items():
        click.echo(f"{name:32} {value:,.4g}" if isinstance(value, float) else f"{name:32} {value}")


if __name__ == "__main__":
    main()
