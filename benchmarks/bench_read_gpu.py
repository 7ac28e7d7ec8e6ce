"""How long does a stored record take to become a bf16 tensor on the GPU?

Beside featstore's ways stand what one would otherwise use, one file a video, and the limit: the same bytes from
page-locked memory with the same kernel. Needs a CUDA GPU:

    python benchmarks/bench_read_gpu.py --out benchmarks/results
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file

import featstore
from featstore.encoders import ToyEncoder
from featstore.quant import QuantError
from featstore.record import Header, SourceFingerprint
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.writer import FeatureWriter
from featstore.torch import to_tensor
from featstore.torch.dequantize import dequantize_into

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, TOKENS_A_FRAME = 3584, 144
ROOM = 1 << 20


def make_records(folder: Path, videos: int, frames: int, dataset: str = "bench") -> FeatureSpec:
    """Write the same int8 records to a dataset of a store, as .pt, and as safetensors in int8 and bf16."""
    tokens = frames * TOKENS_A_FRAME
    spec = FeatureSpec(ToyEncoder().identity, Sampling(frames), "none", "int8", "channel")
    buffer = memoryview(bytearray(ROOM + tokens * DIM))
    rng = np.random.default_rng(0)
    with FeatureWriter(folder / "store", dataset, min_free=1 << 30) as writer:
        writer.add_set(spec, "random")
        for i in range(videos):
            values = rng.integers(-127, 128, size=(tokens, DIM), dtype=np.int8)
            scale = rng.uniform(0.001, 0.1, size=(1, DIM)).astype(np.float32)
            header = Header(
                video_id=f"v{i}",
                video_path="",
                dataset=dataset,
                nframe=frames,
                frame_indices=np.arange(frames, dtype="<u4").tobytes(),
                total_frames=frames,
                fps=1.0,
                shape=(tokens, DIM),
                tokens_per_frame=TOKENS_A_FRAME,
                quantization="int8",
                scale="channel",
                dtype="fp16",
                model_signature=spec.encoder.model_signature,
                spec=spec.digest,
                source=SourceFingerprint(0, 0, ""),
                error=QuantError(1.0, 0.0, 0.0),
                created=0.0,
            )
            buffer[ROOM:] = memoryview(values).cast("B")
            writer.put(spec, header, scale.tobytes(), buffer, slice(ROOM, ROOM + values.nbytes))
            writer.commit()
            data = {"data": torch.from_numpy(values), "scale": torch.from_numpy(scale)}
            torch.save(data, folder / f"v{i}.pt")
            save_file(data, folder / f"v{i}.int8.safetensors")
            whole = (data["data"].float() * data["scale"]).to(torch.bfloat16)
            save_file({"features": whole}, folder / f"v{i}.bf16.safetensors")
    return spec


def ways(folder: Path, frames: int) -> dict[str, Callable[[str], torch.Tensor]]:
    """Return name -> a function that gives a video's bf16 tensor on the GPU."""
    dataset = featstore.open(folder / "store")["bench"]
    held = {name: dataset[name] for name in dataset}
    pinned = {
        name: torch.from_numpy(np.array(features.data)).pin_memory()
        for name, features in held.items()
    }
    scales = {
        name: torch.from_numpy(features.scale.copy()).cuda() for name, features in held.items()
    }
    shape = (frames * TOKENS_A_FRAME, DIM)

    def limit(name: str) -> torch.Tensor:
        out = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        dequantize_into(out, pinned[name].to("cuda", non_blocking=True), scales[name])
        return out

    def pt_cpu(name: str) -> torch.Tensor:
        data = torch.load(folder / f"{name}.pt", weights_only=True)
        return (data["data"].float() * data["scale"]).to(torch.bfloat16).cuda()

    def pt_gpu(name: str) -> torch.Tensor:
        data = torch.load(folder / f"{name}.pt", weights_only=True)
        return (data["data"].cuda().float() * data["scale"].cuda()).to(torch.bfloat16)

    def st_int8(name: str) -> torch.Tensor:
        data = load_file(folder / f"{name}.int8.safetensors", device="cuda")
        return (data["data"].float() * data["scale"]).to(torch.bfloat16)

    def st_bf16(name: str) -> torch.Tensor:
        return load_file(folder / f"{name}.bf16.safetensors", device="cuda")["features"]

    found = {
        ".pt, dequantized on the CPU": pt_cpu,
        ".pt, dequantized on the GPU": pt_gpu,
        "safetensors bf16": st_bf16,
        "safetensors int8": st_int8,
    }
    for way in ("pageable", "staged", "registered"):
        found[f"featstore {way}"] = lambda name, way=way: to_tensor(
            dataset.lookup(name), device="cuda", way=way
        )
    found["featstore registered, looked up before"] = lambda name: to_tensor(
        held[name], device="cuda", way="registered"
    )
    found["limit: page-locked memory, same kernel"] = limit
    return found


def measure(call: Callable[[str], Any], names: list[str], repeats: int) -> list[float]:
    """Return seconds of `repeats` calls, the GPU's work included, after two rounds of warming up."""
    for name in names + names:
        call(name)
    seconds = []
    for i in range(repeats):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call(names[i % len(names)])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return seconds


def forget(folder: Path) -> None:
    """Drop the files' clean pages from the page cache; pages a process has mapped stay."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


COLD = """
import sys, time, torch, featstore
from featstore.torch import prefetch, to_tensor
torch.zeros(1, device="cuda")
folder, way, verify, videos = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
dataset = featstore.open(folder, verify=verify)["bench"]
names = [f"v{i}" for i in range(videos)]
warm = featstore.open(folder)["warm"]  # compiles the kernel and takes page-locked memory, as the first record would
for _ in prefetch(warm, ["v0"], device="cuda"):
    to_tensor(warm["v0"], device="cuda", way=way if way != "prefetch" else "auto")
torch.cuda.synchronize(); begun = time.perf_counter()
if way == "prefetch":
    for _ in prefetch(dataset, names, device="cuda"):
        pass
else:
    for name in names:
        to_tensor(dataset[name], device="cuda", way=way)
torch.cuda.synchronize(); print(time.perf_counter() - begun)
"""
READERS = """
import sys, time, torch, featstore
from featstore.torch import to_tensor
folder, way, videos, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dataset = featstore.open(folder)["bench"]
names = list(dataset)
for name in names:
    to_tensor(dataset[name], device="cuda", way=way)
torch.cuda.synchronize(); print("ready", flush=True); sys.stdin.readline()
begun = time.perf_counter()
for i in range(rounds):
    to_tensor(dataset[names[i % len(names)]], device="cuda", way=way)
torch.cuda.synchronize(); print(time.perf_counter() - begun)
"""


def cold(folder: Path, videos: int, size: int) -> dict[str, float]:
    """Return GB/s of reading every record once from disk, in a fresh process, against plain sequential reading."""
    found = {}
    forget(folder)
    begun = time.perf_counter()
    with open(folder / "store" / "bench" / "data.mdb", "rb", buffering=0) as file:
        block = bytearray(8 << 20)
        total = 0
        while count := file.readinto(block):
            total += count
    found["plain sequential reading"] = total / (time.perf_counter() - begun) / 1e9
    for way, verify in itertools.product(("prefetch", "registered", "staged"), ("first", "never")):
        forget(folder)
        words = [sys.executable, "-c", COLD, str(folder / "store"), way, verify, str(videos)]
        seconds = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        found[f"featstore {way}, verify {verify}"] = videos * size / seconds / 1e9
    return found


def many_readers(folder: Path, videos: int, size: int, rounds: int = 200) -> dict[str, float]:
    """Return GB/s of 1, 2 and 4 processes that read hot records to one GPU at once."""
    found = {}
    for count in (1, 2, 4):
        words = [
            sys.executable,
            "-c",
            READERS,
            str(folder / "store"),
            "registered",
            str(videos),
            str(rounds),
        ]
        readers = [
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.write("go\n")
            reader.stdin.flush()
        seconds = [float(reader.communicate()[0]) for reader in readers]
        found[f"{count} readers"] = sum(rounds * size / each / 1e9 for each in seconds)
    return found


def describe_machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "featstore": featstore.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


@click.command()
@click.option("--videos", default=16, show_default=True, help="Records; 63 MiB each at 128 frames.")
@click.option("--frames", default=128, show_default=True)
@click.option("--repeats", default=200, show_default=True)
@click.option(
    "--workdir", type=click.Path(), help="Where the records are written; removed at the end."
)
@click.option(
    "--out", type=click.Path(file_okay=False), help="Write bench_read_gpu.txt and .json here."
)
def main(videos: int, frames: int, repeats: int, workdir: str | None, out: str | None) -> None:
    """Measure, print a table, and write it to files."""
    folder = Path(tempfile.mkdtemp(prefix="bench-read-", dir=workdir))
    size = frames * TOKENS_A_FRAME * DIM
    try:
        make_records(folder, 1, 1, "warm")
        make_records(folder, videos, frames)
        from_disk = cold(
            folder, videos, size
        )  # before this process maps the store: mapped pages stay
        names = [f"v{i}" for i in range(videos)]
        calls = ways(folder, frames)
        expected = {name: calls[".pt, dequantized on the CPU"](name) for name in names[:2]}
        rows = []
        for label, call in calls.items():
            for name, tensor in expected.items():
                assert torch.equal(call(name), tensor), label
            slow = label.startswith((".pt", "safetensors"))
            seconds = sorted(measure(call, names, repeats // 4 if slow else repeats))
            rows.append({"way": label, "seconds": seconds})
        del calls
        results = {
            "machine": describe_machine(),
            "record_bytes": size,
            "hot": [_summary(row["way"], row["seconds"], size) for row in rows],
            "cold_gb_s": from_disk,
            "readers_gb_s": many_readers(folder, videos, size),
        }
    finally:
        shutil.rmtree(folder)
    text = render(results)
    click.echo(text)
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        Path(out, "bench_read_gpu.txt").write_text(text + "\n", encoding="utf-8")
        Path(out, "bench_read_gpu.json").write_text(
            json.dumps(results, indent=2) + "\n", encoding="utf-8"
        )


def _summary(way: str, seconds: list[float], size: int) -> dict[str, Any]:
    pick = [
        seconds[min(len(seconds) - 1, int(len(seconds) * share))] * 1e3 for share in (0.9, 0.99)
    ]
    median = statistics.median(seconds)
    return {
        "way": way,
        "count": len(seconds),
        "median_ms": median * 1e3,
        "p90_ms": pick[0],
        "p99_ms": pick[1],
        "max_ms": seconds[-1] * 1e3,
        "gb_s": size / median / 1e9,
    }


def render(results: dict[str, Any]) -> str:
    """Return the tables as text."""
    best = results["hot"][-1]["median_ms"]
    lines = [", ".join(f"{name} {value}" for name, value in results["machine"].items())]
    lines.append(
        f"one record of {results['record_bytes']} bytes int8 to bf16 on the GPU, in the page cache"
    )
    lines.append(
        f"{'way':40} {'count':>5} {'median':>8} {'p90':>8} {'p99':>8} {'max':>8} {'GB/s':>6} {'limit':>6}"
    )
    lines += [
        f"{row['way']:40} {row['count']:5} {row['median_ms']:8.2f} {row['p90_ms']:8.2f} {row['p99_ms']:8.2f} "
        f"{row['max_ms']:8.2f} {row['gb_s']:6.1f} {best / row['median_ms']:6.0%}"
        for row in results["hot"]
    ]
    for title, key in (
        ("cold, from disk", "cold_gb_s"),
        ("processes at once, registered", "readers_gb_s"),
    ):
        lines.append(f"\n{title} (GB/s)")
        lines += [f"  {name:38} {rate:8.2f}" for name, rate in results[key].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
