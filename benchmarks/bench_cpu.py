"""How long does a stored record take to become a bf16 tensor on the CPU, against copying its bytes?

    python benchmarks/bench_cpu.py

It takes some two minutes and 2 GB of disk. Ways take turns, so that a ratio compares neighbours in time; all files lie
in the page cache.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from large_records import Records, write_files, write_store
from measure import (
    RESULTS,
    Summary,
    describe,
    machine,
    plot_bars,
    show_bytes,
    show_ratio,
    show_time,
    spare_the_living,
    table,
    write_results,
)
from safetensors.torch import load_file

import featstore
from featstore.torch import to_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    Way = Callable[[str], Any]

PACKAGES = ("featstore", "torch", "numpy", "lmdb", "lz4", "zstandard", "safetensors")
MEMCPY = "memcpy of the int8 bytes"
CODECS = ("raw", "lz4", "zstd")


def ways(folder: Path, names: list[str]) -> dict[str, Way]:
    """Return name -> a function that gives a video's tensor, or does what it is measured against."""
    store = featstore.open(folder)
    held = {name: np.array(store["raw"][name].data) for name in names}
    room = np.empty_like(held[names[0]])
    out = torch.empty(room.shape, dtype=torch.bfloat16)

    def ours(codec: str, name: str) -> torch.Tensor:
        return to_tensor(store[codec].lookup(name), out=out)

    def one_thread(name: str) -> torch.Tensor:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return ours("raw", name)
        finally:
            torch.set_num_threads(threads)

    def pt(name: str) -> torch.Tensor:
        data = torch.load(folder / "files" / f"{name}.pt", weights_only=True)
        return out.copy_(data["data"].float() * data["scale"])

    def int8(name: str) -> torch.Tensor:
        data = load_file(folder / "files" / f"{name}.int8.safetensors")
        return out.copy_(data["data"].float() * data["scale"])

    def bf16(name: str) -> torch.Tensor:
        return out.copy_(load_file(folder / "files" / f"{name}.bf16.safetensors")["features"])

    return {
        MEMCPY: lambda name: np.copyto(room, held[name]),
        "featstore raw": partial(ours, "raw"),
        "featstore raw, one thread": one_thread,
        "featstore lz4": partial(ours, "lz4"),
        "featstore zstd": partial(ours, "zstd"),
        ".pt": pt,
        "safetensors int8": int8,
        "safetensors bf16, twice the bytes": bf16,
    }


def check(found: dict[str, Way], folder: Path, name: str) -> None:
    """End the run where a way gives other bits than numpy's dequantization."""
    features = featstore.open(folder)["raw"][name]
    expected = torch.from_numpy(features.dequantize()).bfloat16()
    for label, call in found.items():
        if label != MEMCPY and not torch.equal(call(name), expected):
            raise click.ClickException(f"{label} gives other bits than numpy for {name}")


def time_ways(found: dict[str, Way], names: list[str], repeats: int) -> dict[str, list[float]]:
    """Return seconds of each way, `repeats` of each, by turns."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for call in found.values():  # what is proved or compiled once
        for name in names:
            call(name)
    spare_the_living()
    for i in range(repeats):
        for label, call in found.items():
            begun = time.perf_counter()
            call(names[i % len(names)])
            seconds[label].append(time.perf_counter() - begun)
    return seconds


NOTES = """\
How to read it
- "memcpy" is how many times as long as copying the int8 bytes on one thread, in the same turn: the median of these
  ratios. The tensor has twice the bytes of what is copied.
- All fill one bf16 tensor that was there before; the look-up is included, and every way gave numpy's bits.
- featstore uses as many threads as torch would ({threads} here); so do the peers' own operations.
"""


def render(data: dict[str, Any], records: Records) -> str:
    """Return the whole result as text."""
    tokens, dim = records.shape
    rows = [
        (
            label,
            f"{row['count']:.0f}",
            *(show_time(row[f"{name}_s"]) for name in ("median", "p90", "p99", "max")),
            f"{records.nbytes / row['median_s'] / 1e9:.2f}",
            show_ratio(data["ratios"][label]),
        )
        for label, row in data["ways"].items()
    ]
    head = ("", "count", "median", "p90", "p99", "max", "GB/s", "memcpy")
    stored = ", ".join(f"{name} {show_bytes(size)}" for name, size in data["stored_bytes"].items())
    return (
        "\n\n".join(
            [
                "bench_cpu: from a stored record to a bf16 tensor on the CPU",
                describe(data["machine"]),
                f"a record of {tokens:,} x {dim:,} int8, {show_bytes(records.nbytes)}; stored: {stored}",
                table(head, rows),
                NOTES.format(threads=torch.get_num_threads()).strip(),
            ]
        )
        + "\n"
    )


@click.command()
@click.option("--videos", default=3, show_default=True, type=click.IntRange(1), help="Records.")
@click.option("--frames", default=128, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=30, show_default=True, type=click.IntRange(1))
@click.option(
    "--workdir",
    default=tempfile.gettempdir(),
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where records are written; all is removed at the end.",
)
@click.option(
    "--out", default=RESULTS, type=click.Path(path_type=Path), help="Folder of the results."
)
def main(videos: int, frames: int, repeats: int, workdir: Path, out: Path) -> None:
    """Measure, print a table, and write it to files."""
    records = Records(videos, frames)
    facts = machine(PACKAGES, workdir)
    with tempfile.TemporaryDirectory(prefix="bench_cpu-", dir=workdir) as place:
        folder = Path(place)
        stored = {codec: write_store(folder, codec, records, codec) for codec in CODECS}
        (folder / "files").mkdir()
        write_files(folder / "files", records)
        found = ways(folder, records.names)
        check(found, folder, records.names[0])
        seconds = time_ways(found, records.names, repeats)
    ratios = {
        label: statistics.median(a / b for a, b in zip(each, seconds[MEMCPY], strict=True))
        for label, each in seconds.items()
    }
    data = {
        "benchmark": "cpu",
        "machine": facts,
        "settings": {"videos": videos, "frames": frames, "repeats": repeats},
        "stored_bytes": stored,
        "ways": {label: Summary.of(each).to_dict() for label, each in seconds.items()},
        "ratios": ratios,
    }
    text = render(data, records)
    write_results(out, "bench_cpu", text, data)
    click.echo(text, nl=False)
    medians = {label: row["median_s"] * 1e3 for label, row in data["ways"].items()}
    panels = {"to bf16 on the CPU: median, ms": medians}
    click.echo(
        plot_bars(out / "bench_cpu.png", panels, ours="featstore", unit="ms, log scale"), err=True
    )


if __name__ == "__main__":
    main()
