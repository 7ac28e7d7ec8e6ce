"""How long does a stored record take to become a bf16 tensor on the GPU?

Beside featstore's ways stand what one would otherwise use (gpu_peers.py has the fast ones), one file a video, and the
limit: the same bytes from page-locked memory with the same kernel. Needs a CUDA GPU:

    python benchmarks/bench_read_gpu.py

It takes some five minutes and 8 GB of a real disk. Parts can be left out with --parts.

hot:     from a video's id to its tensor; all in the page cache. Ways take turns, so that each sees the same machine.
many:    the same for 12 videos in one call.
kinds:   records with two scales, and lossless ones, by every way; against the limit of their own bytes.
cold:    all records once, in a fresh process, the files evicted before; against reading the same file from end to end.
readers: several processes that read hot records to one GPU at once.
tune:    sizes of the pieces that cross, slots, threads that copy, and pread in place of copying from the map.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import click
import numpy as np
import torch
from gpu_peers import peers_of_bytes, peers_of_safetensors, write_peer_files
from large_records import Records, write_files, write_store
from measure import (
    RESULTS,
    Summary,
    describe,
    evict,
    machine,
    plot_bars,
    resident_share,
    settle,
    show_bytes,
    show_time,
    spare_the_living,
    table,
    write_results,
)
from safetensors.torch import load_file

import featstore
from featstore.torch import explain, prefetch, to_tensor
from featstore.torch.kernels.dequantize import dequantize_into
from featstore.torch.upload import staged

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_peers import Peer

    Way = Callable[[str], torch.Tensor]

PACKAGES = (
    "featstore",
    "torch",
    "triton",
    "numpy",
    "lmdb",
    "lz4",
    "zstandard",
    "safetensors",
    "fastsafetensors",
    "instanttensor",
    "kvikio-cu13",
)
PARTS = ("hot", "many", "kinds", "cold", "readers", "tune")
LIMIT = "limit: page-locked memory, same kernel"
ROUNDS = 4
MANY = 12
KINDS = ("int8/channel_token", "bf16")
WAYS = ("pageable", "staged", "registered")

COLD = """
import sys, time, torch, featstore
from featstore.torch import prefetch, to_tensor
torch.zeros(1, device="cuda")
folder, codec, way, verify = sys.argv[1:5]
store = featstore.open(folder, verify=verify)
# Compiles the kernel and takes page-locked memory, as the first record would.
for _, tensor in prefetch(store["warm-" + codec], ["v0"], device="cuda"):
    to_tensor(store["warm-" + codec]["v0"], device="cuda", way="auto" if way == "prefetch" else way)
names = sys.argv[5:]
dataset = store[codec]
torch.cuda.synchronize(); begun = time.perf_counter()
if way == "prefetch":
    for _ in prefetch(dataset, names, device="cuda"):
        pass
else:
    for name in names:
        to_tensor(dataset[name], device="cuda", way=way)
torch.cuda.synchronize(); print(time.perf_counter() - begun)
"""
READER = """
import sys, time, torch, featstore
from featstore.torch import to_tensor
folder, codec, way, rounds = *sys.argv[1:4], int(sys.argv[4])
dataset = featstore.open(folder)[codec]
names = sys.argv[5:]
for name in names * 2:
    to_tensor(dataset[name], device="cuda", way=way)
torch.cuda.synchronize(); print("ready", flush=True); sys.stdin.readline()
begun = time.perf_counter()
for i in range(rounds):
    to_tensor(dataset[names[i % len(names)]], device="cuda", way=way)
torch.cuda.synchronize(); print(time.perf_counter() - begun)
"""


# --- hot -----------------------------------------------------------------------------------------------------------


def peers(folder: Path) -> dict[str, Way]:
    """Return what one would otherwise use."""

    def pt_cpu(name: str) -> torch.Tensor:
        data = torch.load(folder / f"{name}.pt", weights_only=True)
        return (data["data"].float() * data["scale"]).to(torch.bfloat16).cuda()

    def pt_gpu(name: str) -> torch.Tensor:
        data = torch.load(folder / f"{name}.pt", weights_only=True)
        return (data["data"].cuda().float() * data["scale"].cuda()).to(torch.bfloat16)

    def bf16(name: str) -> torch.Tensor:
        return load_file(folder / f"{name}.bf16.safetensors", device="cuda")["features"]

    return {
        ".pt, dequantized on the CPU": pt_cpu,
        ".pt, dequantized on the GPU": pt_gpu,
        "safetensors bf16": bf16,
    }


def int8_peers(folder: Path, records: Records) -> dict[str, tuple[Peer, str]]:
    """Return the ways that bring int8 and a scale, and how their files' names end; those that work here."""
    found = {label: (peer, ".bytes") for label, peer in peers_of_bytes(records.shape).items()}
    found |= {label: (peer, ".safetensors") for label, peer in peers_of_safetensors().items()}
    expected = dict(zip(records.names, records.values(), strict=True))
    for label, (peer, suffix) in [*found.items()]:
        paths = [folder / f"{name}{suffix}" for name in records.names]
        try:
            pairs = peer(paths)
        except Exception as exc:  # a library that does not work on this machine
            click.echo(f"{label} is left out: {exc!r}", err=True)
            del found[label]
            continue
        for (values, scale), name in zip(pairs, records.names, strict=True):
            if not np.array_equal(values.cpu().numpy(), expected[name]):
                raise click.ClickException(f"{label} gives other values for {name}")
            if not np.array_equal(scale.cpu().numpy(), records.scale()):
                raise click.ClickException(f"{label} gives another scale for {name}")
    return found


def dequantized(peer: Peer, paths: list[Path]) -> list[torch.Tensor]:
    """Return what a peer brings, as bf16."""
    tensors = []
    for values, scale in peer(paths):
        tensors.append(torch.empty(values.shape, dtype=torch.bfloat16, device="cuda"))
        dequantize_into(tensors[-1], values, (scale,))
    return tensors


def ours(store: featstore.FeatureStore, codecs: list[str], names: list[str]) -> dict[str, Way]:
    """Return featstore's ways, the look-up included but where the name says otherwise."""

    def call(codec: str, way: str, name: str) -> torch.Tensor:
        return to_tensor(store[codec].lookup(name), device="cuda", way=way)

    held = {name: store["raw"][name] for name in names}
    # What is registered no longer crosses as pageable memory does, and what is not must not be by the others.
    ways: dict[str, Way] = {
        "featstore pageable": partial(call, "raw-pageable", "pageable"),
        "featstore staged": partial(call, "raw-staged", "staged"),
        "featstore registered": partial(call, "raw", "registered"),
        "featstore auto": partial(call, "raw", "auto"),
    }
    ways["featstore registered, looked up before"] = lambda name: to_tensor(
        held[name], device="cuda", way="registered"
    )
    for codec in codecs[1:]:
        ways[f"featstore {codec}, decompressed on the CPU"] = partial(call, codec, "staged")
    return ways


def limit(dataset: featstore.Dataset, names: list[str]) -> Way:
    """Return the way that has the bytes in page-locked memory and the scales on the GPU."""
    held = {name: dataset[name] for name in names}
    pinned = {
        name: torch.from_numpy(np.array(found.data)).pin_memory() for name, found in held.items()
    }
    scales = {
        name: tuple(torch.from_numpy(s.copy()).cuda() for s in found.scales)
        for name, found in held.items()
    }

    def call(name: str) -> torch.Tensor:
        stored = pinned[name].to("cuda", non_blocking=True)
        if not scales[name]:
            return stored.view(torch.bfloat16)
        out = torch.empty(stored.shape, dtype=torch.bfloat16, device="cuda")
        dequantize_into(out, stored, scales[name])
        return out

    return call


def check(ways: dict[str, Way], dataset: featstore.Dataset, names: list[str]) -> None:
    """End the run where a way gives other bits than the CPU."""
    for name in names:
        expected = to_tensor(dataset[name])
        for label, call in ways.items():
            if not torch.equal(call(name).cpu(), expected):
                raise click.ClickException(f"{label} gives other bits than the CPU for {name}")


def time_ways(ways: dict[str, Way], names: list[str], repeats: int) -> dict[str, list[float]]:
    """Return seconds of `repeats` calls of each way, the GPU's work included; peers of files a quarter as many."""
    seconds: dict[str, list[float]] = defaultdict(list)
    spare_the_living()
    for _ in range(ROUNDS):
        for label, call in ways.items():
            few = not label.startswith(("featstore", "limit"))
            for name in names:
                call(name)
            for i in range(max(1, repeats // ROUNDS // (4 if few else 1))):
                seconds[label].append(_time(partial(call, names[i % len(names)])))
    return seconds


def _time(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    taken = time.perf_counter() - begun
    del result
    return taken


# --- cold, readers, tune -------------------------------------------------------------------------------------------


def cold(folder: Path, codecs: list[str], records: Records) -> dict[str, float]:
    """Return GB/s of reading every record once from disk: of features for ours, of the file for plain reading."""
    found = {}
    for codec in codecs:
        file = folder / codec / "data.mdb"
        settle(file.parent)
        plain = [_plain(file) for _ in range(3)]
        found[f"{codec}: plain sequential reading"] = statistics.median(plain)
        for way, verify in [("prefetch", "first"), ("prefetch", "never")] + (
            [("staged", "first"), ("staged", "never")] if codec == "raw" else []
        ):
            evict(file.parent)
            if (left := resident_share(file.parent)) > 0.01:
                click.echo(
                    f"{left:.0%} of {codec} stay in the page cache; is the --workdir in memory?",
                    err=True,
                )
            seconds = float(_python(COLD, folder, codec, way, verify, *records.names))
            found[f"{codec}: featstore {way}, verify {verify}"] = (
                records.videos * records.nbytes / seconds / 1e9
            )
    return found


def _plain(file: Path) -> float:
    evict(file.parent)
    block = bytearray(8 << 20)
    total = 0
    begun = time.perf_counter()
    with open(file, "rb", buffering=0) as opened:
        while count := opened.readinto(block):
            total += count
    return total / (time.perf_counter() - begun) / 1e9


def readers(folder: Path, records: Records, rounds: int) -> dict[str, float]:
    """Return GB/s of features of 1, 2 and 4 processes that read hot records to one GPU at once, all together."""
    found = {}
    for codec, way in [("raw", "registered"), ("raw", "staged")]:
        for count in (1, 2, 4):
            words = [sys.executable, "-c", READER, folder, codec, way, str(rounds), *records.names]
            started = [
                subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for _ in range(count)
            ]
            for reader in started:
                assert reader.stdout is not None
                reader.stdout.readline()
            for reader in started:
                assert reader.stdin is not None
                reader.stdin.write("go\n")
                reader.stdin.flush()
            seconds = [float(reader.communicate()[0]) for reader in started]
            found[f"{codec} {way}, {count} processes"] = sum(
                rounds * records.nbytes / each / 1e9 for each in seconds
            )
    return found


def _python(program: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True
    )
    if done.returncode:
        raise click.ClickException(f"a reading process failed:\n{done.stderr}")
    return done.stdout


def tune(store: featstore.FeatureStore, names: list[str], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of a record by the sizes it crosses with."""
    found = {}

    def median(dataset: str, way: str) -> float:
        call = partial(to_tensor, device="cuda", way=way)
        seconds = [
            _time(partial(call, store[dataset][names[i % len(names)]])) for i in range(repeats)
        ]
        return statistics.median(seconds[repeats // 4 :]) * 1e3

    for mib in (8, 16, 32, 64):
        with mock.patch.object(staged, "PIECE_BYTES", mib << 20):
            found[f"registered, pieces of {mib} MiB"] = median("raw", "registered")
    for mib, slots in ((2, 16), (4, 8), (8, 4), (8, 8), (16, 3)):
        ring = staged.Ring(slot_bytes=mib << 20, slots=slots)
        with mock.patch.object(staged, "_ring", (os.getpid(), ring)):
            found[f"staged, {slots} slots of {mib} MiB"] = median("raw-staged", "staged")
    return found


# --- the report ----------------------------------------------------------------------------------------------------

NOTES = """\
How to read it
- Trust ratios, not milliseconds. "limit" is the limit's median over this one's; "vs" names how many times longer a
  way takes than featstore registered, the look-up included.
- The limit copies first and dequantizes then; ours dequantizes one piece while the next crosses, so it may pass it.
- Codecs: GB/s are of features, not of what is read. Kinds: GB/s are of what crosses to the GPU.
- Peers bring int8 and its scale, which featstore's kernel dequantizes; "values alone" is without that.
- Every way gave the CPU's bits for two records before it was timed.
"""


def render(data: dict[str, Any], records: Records) -> str:
    """Return the whole result as text."""
    parts = [
        "bench_read_gpu: from a stored record to a bf16 tensor on the GPU",
        describe(data["machine"]),
    ]
    parts[-1] += f"\n{data['gpu']}"
    tokens, dim = records.shape
    parts.append(
        f"{records.videos} records of {tokens:,} x {dim:,} int8, {show_bytes(records.nbytes)}; stored: "
        + ", ".join(f"{codec} {show_bytes(size)}" for codec, size in data["stored_bytes"].items())
    )
    if "hot" in data:
        parts.append(_hot_table(data["hot"], records))
        parts.append("\n".join(f"{name}: {said}" for name, said in data["explained"].items()))
    if "many" in data:
        rows = [(label, f"{each:.2f}") for label, each in data["many"].items()]
        parts.append(table((f"{MANY} videos in one call", "ms a video"), rows))
    if "kinds" in data:
        parts.append(_kinds_table(data["kinds"]))
    for part, unit, title in (
        ("cold", "GB/s", "cold, from disk"),
        ("readers", "GB/s", "processes at once, all together"),
        ("tune", "ms", "pieces, slots, threads"),
    ):
        if part in data:
            parts.append(table((title, unit), [(k, f"{v:.2f}") for k, v in data[part].items()]))
    return "\n\n".join([*parts, NOTES.strip()]) + "\n"


def _hot_table(hot: dict[str, dict[str, float]], records: Records) -> str:
    best, mine = hot[LIMIT]["median_s"], hot["featstore registered"]["median_s"]
    rows = []
    for label, found in hot.items():
        times = [show_time(found[f"{name}_s"]) for name in ("median", "p90", "p99", "max")]
        rate = records.nbytes / found["median_s"] / 1e9
        share = f"{best / found['median_s']:.0%}"
        rows.append(
            (
                label,
                f"{found['count']:.0f}",
                *times,
                f"{rate:.1f}",
                share,
                f"{found['median_s'] / mine:.2f}",
            )
        )
    return table(("hot", "count", "median", "p90", "p99", "max", "GB/s", "limit", "vs"), rows)


def _kinds_table(kinds: dict[str, dict[str, Any]]) -> str:
    rows = []
    for kind, found in kinds.items():
        best = found["ways"][LIMIT]["median_s"]
        for label, each in found["ways"].items():
            rate = f"{found['bytes'] / each['median_s'] / 1e9:.1f}"
            times = [show_time(each[f"{name}_s"]) for name in ("median", "p90")]
            rows.append((f"{kind}: {label}", *times, rate, f"{best / each['median_s']:.0%}"))
    return table(("kinds", "median", "p90", "GB/s", "limit"), rows)


def plot(path: Path, data: dict[str, Any]) -> str:
    """Draw what was measured; return what became of it."""
    panels = {}
    if "hot" in data:
        hot = data["hot"].items()
        panels["hot, to bf16 on the GPU: median, ms"] = {k: v["median_s"] * 1e3 for k, v in hot}
    panels |= {f"{part}: GB/s": data[part] for part in ("cold", "readers") if part in data}
    return plot_bars(path, panels, ours="featstore", unit="log scale") if panels else "no plot"


@click.command()
@click.option("--videos", default=16, show_default=True, help="Records; 63 MiB each at 128 frames.")
@click.option("--frames", default=128, show_default=True)
@click.option("--repeats", default=200, show_default=True, help="Timed calls of a way.")
@click.option("--codecs", default="raw,lz4,zstd", show_default=True, help="raw, and others.")
@click.option(
    "--parts",
    default="hot,many,kinds,cold,readers",
    show_default=True,
    help=f"Of {', '.join(PARTS)}.",
)
@click.option(
    "--workdir",
    default=tempfile.gettempdir(),
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where records are written, on a real disk; all is removed at the end.",
)
@click.option(
    "--out", default=RESULTS, type=click.Path(path_type=Path), help="Folder of the results."
)
def main(
    videos: int, frames: int, repeats: int, codecs: str, parts: str, workdir: Path, out: Path
) -> None:
    """Measure, print a table, and write it to files."""
    if not torch.cuda.is_available():
        raise click.ClickException("there is no CUDA GPU here, which is what this measures")
    wanted = parts.split(",")
    kinds = codecs.split(",")
    records = Records(videos, frames)
    data: dict[str, Any] = {
        "benchmark": "read_gpu",
        "machine": machine(PACKAGES, workdir),
        "gpu": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}",
        "settings": {"videos": videos, "frames": frames, "repeats": repeats},
        "stored_bytes": {},
    }
    with tempfile.TemporaryDirectory(prefix="bench_read-", dir=workdir) as place:
        folder = Path(place)
        for codec in kinds:
            click.echo(f"writing {codec}", err=True)
            write_store(folder, f"warm-{codec}", Records(1, 1), codec)
            data["stored_bytes"][codec] = write_store(folder, codec, records, codec)
        if "cold" in wanted:  # before this process maps the stores: mapped pages stay
            click.echo("cold", err=True)
            data["cold"] = cold(folder, kinds, records)
        few = Records(min(MANY, videos), frames)
        for way in ("pageable", "staged"):
            write_store(folder, f"raw-{way}", few, "raw")
        store = featstore.open(folder)
        for part, measure in (
            ("hot", partial(_measure_hot, store, kinds, few, repeats)),
            ("many", partial(_measure_many, store, few, max(4, repeats // 10))),
            ("kinds", partial(_measure_kinds, folder, Records(min(2, videos), frames), repeats)),
            ("tune", lambda: {"tune": tune(store, few.names[:4], max(8, repeats // 5))}),
            (
                "readers",
                lambda: {"readers": readers(folder, Records(min(4, videos), frames), repeats)},
            ),
        ):
            if part in wanted:
                click.echo(part, err=True)
                found = measure()
                data |= found
                click.echo(_glance(found), err=True)
    text = render(data, records)
    write_results(out, "bench_read_gpu", text, data)
    click.echo(text, nl=False)
    click.echo(plot(out / "bench_read_gpu.png", data), err=True)


def _measure_hot(
    store: featstore.FeatureStore, kinds: list[str], records: Records, repeats: int
) -> dict[str, Any]:
    few = Records(min(4, records.videos), records.frames)
    files = store.cache_dir / "files"
    files.mkdir(exist_ok=True)
    write_files(files, few)
    write_peer_files(files, few)
    ways, alone = peers(files), {}
    for label, (peer, suffix) in int8_peers(files, few).items():
        ways[label] = lambda name, peer=peer, end=suffix: dequantized(
            peer, [files / f"{name}{end}"]
        )[0]
        alone[f"{label}, values alone"] = lambda name, peer=peer, end=suffix: peer(
            [files / f"{name}{end}"]
        )
    ways |= {**ours(store, kinds, few.names), LIMIT: limit(store["raw"], few.names)}
    check(ways, store["raw"], few.names[:2])
    seconds = time_ways(alone | ways, few.names, repeats)
    return {
        "hot": {label: Summary.of(each).to_dict() for label, each in seconds.items()},
        "explained": {codec: explain(store[codec]["v0"]) for codec in kinds},
    }


def _measure_many(
    store: featstore.FeatureStore, records: Records, repeats: int
) -> dict[str, dict[str, float]]:
    """Return milliseconds a video, of all in one call."""
    files, names = store.cache_dir / "files", records.names
    files.mkdir(exist_ok=True)
    write_peer_files(files, records)
    ways: dict[str, Callable[[], list[torch.Tensor]]] = {}
    for label, (peer, suffix) in int8_peers(files, records).items():
        paths = [files / f"{name}{suffix}" for name in names]
        ways[label] = partial(dequantized, peer, paths)

    def each(dataset: str, way: str) -> list[torch.Tensor]:
        return [to_tensor(store[dataset].lookup(n), device="cuda", way=way) for n in names]

    ways["featstore prefetch"] = lambda: [
        x for _, x in prefetch(store["raw-staged"], names, device="cuda")
    ]
    ways["featstore staged"] = partial(each, "raw-staged", "staged")
    ways["featstore registered"] = partial(each, "raw", "registered")
    best = limit(store["raw"], names)
    ways[LIMIT] = lambda: [best(name) for name in names]
    expected = [to_tensor(store["raw"][name]) for name in names]
    for label, call in ways.items():
        if not all(torch.equal(a.cpu(), b) for a, b in zip(call(), expected, strict=True)):
            raise click.ClickException(f"{label} gives other bits than the CPU")
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for label, call in ways.items():
            seconds[label].append(_time(call))
    found = {label: statistics.median(s) / len(names) * 1e3 for label, s in seconds.items()}
    return {"many": found}


def _measure_kinds(folder: Path, records: Records, repeats: int) -> dict[str, Any]:
    """Return for each kind its bytes, and the seconds of each way and of the limit."""
    found = {}
    for kind in KINDS:
        stored = {way: f"{kind.replace('/', '-')}-{way}" for way in WAYS}
        for name in stored.values():
            write_store(folder, name, records, "raw", kind)
        store = featstore.open(folder)

        def call(dataset: Any, way: str, name: str) -> torch.Tensor:
            return to_tensor(dataset.lookup(name), device="cuda", way=way)

        ways = {f"featstore {way}": partial(call, store[stored[way]], way) for way in WAYS}
        if kind == "bf16":
            write_store(folder, "planes", records, "planes", kind)
            label = "featstore planes, decompressed on the CPU"
            ways[label] = partial(call, store["planes"], "staged")
        ways[LIMIT] = limit(store[stored["registered"]], records.names)
        check(ways, store[stored["staged"]], records.names)
        seconds = time_ways(ways, records.names, repeats // 2)
        found[kind] = {
            "bytes": store[stored["staged"]][records.names[0]].nbytes,
            "ways": {label: Summary.of(each).to_dict() for label, each in seconds.items()},
        }
    return {"kinds": found}


def _glance(found: dict[str, Any]) -> str:
    """Return the medians of a part, to be seen at once."""
    lines = []
    for part in found.values():
        for label, each in part.items():
            ways = each["ways"] if isinstance(each, dict) and "ways" in each else {"": each}
            for way, value in ways.items():
                shown = f"{value['median_s'] * 1e3:8.3f} ms" if isinstance(value, dict) else value
                shown = f"{shown:8.3f}" if isinstance(shown, float) else shown
                lines.append(f"  {shown}  {label} {way}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
