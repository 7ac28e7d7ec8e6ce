"""How long does LongVA-7B's vision side take for the frames of a video, and where does the time go?

The same weights, random, and the same frames, random, through the modules of `modeling` (eager) and through the fused
steps, in one run; how far their features are apart beside what another batch size changes; the time by kind of kernel:

    python benchmarks/bench_encode.py --out benchmarks/results

It needs a GPU and Triton.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from bench_ingest import make_recipes
from measure import describe, machine, table, write_results

REPEATS = 15
KINDS = {  # by what the name of a kernel holds, the first that fits
    "attention": ("flash", "fmha", "sdpa", "attention", "cudnn_generated"),
    "products": ("gemm", "cutlass", "nvjet", "xmma", "splitk", "cublas"),
    "quick_gelu": ("quick_gelu", "sigmoid", "MulFunctor", "mul"),
    "layer norm, adds": ("layer_norm", "add_layer_norm", "CUDAFunctor_add", "add"),
    "patches, pooling": ("conv", "patches", "avg_pool", "average", "pool", "index", "nchw", "nhwc"),
    "gelu": ("Gelu", "gelu"),
}


def milliseconds(call: Any) -> float:
    """Return the median time of `call` on the GPU."""
    for _ in range(3):
        call()
    found = []
    for _ in range(REPEATS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        call()
        ended.record()
        ended.synchronize()
        found.append(begun.elapsed_time(ended))
    return statistics.median(found)


def kinds(call: Any) -> dict[str, float]:
    """Return the milliseconds of one `call` by kind of kernel."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in profile.key_averages():
        words = KINDS.items()
        kind = next((k for k, parts in words if any(p in event.key for p in parts)), "other")
        found[kind] = found.get(kind, 0.0) + event.self_device_time_total / 1000
        if kind == "other" and event.self_device_time_total > 200:
            found[event.key[:60]] = event.self_device_time_total / 1000
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the relative L2 distance."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@click.command()
@click.option("--nframe", default=128, show_default=True)
@click.option("--dtype", default="fp16", show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path))
@torch.inference_mode()
def main(nframe: int, dtype: str, out: Path | None) -> None:
    """Measure, print tables, and write text and JSON."""
    with tempfile.TemporaryDirectory(prefix="bench-encode-") as made:
        words = {"model": "longva-7b", "device": "cuda:0", "dtype": dtype, "batch_frames": None}
        encoder: Any = make_recipes(Path(made), words)[0].build()
        encoder.load()
        facts = machine(("featstore", "torch", "triton", "transformers"), Path(made))
    height, width = encoder.preprocessing.max_frame
    frames = torch.randint(0, 256, (nframe, height, width, 3), dtype=torch.uint8, device="cuda")
    fused = encoder._fused
    if fused is None:
        raise click.ClickException("the fused steps cannot be compiled here")

    def eager(part: torch.Tensor = frames) -> torch.Tensor:
        return encoder._model(encoder._pixels(part))  # type: ignore[no-any-return]

    expected = eager()
    halves = torch.cat([eager(part) for part in frames.chunk(2)])
    ways = {"eager": eager, "fused": lambda: fused(frames)}
    times = {name: milliseconds(call) for name, call in ways.items()}
    profiles = {name: kinds(call) for name, call in ways.items()}
    gaps = {
        "fused": apart(fused(frames), expected),
        "eager, half the batch": apart(halves, expected),
    }
    names = sorted({kind for found in profiles.values() for kind in found})
    rows = [[kind, *(f"{profiles[way].get(kind, 0):.1f}" for way in ways)] for kind in names]
    rows.append(["whole, by events", *(f"{times[way]:.1f}" for way in ways)])
    text = "\n".join(
        [
            f"{describe(facts)}\n{torch.cuda.get_device_name()}\n",
            f"{nframe} frames, {dtype}, ms by kind of kernel",
            table(["kernels", *ways], rows),
            f"fused takes {times['fused'] / times['eager']:.0%} of eager's time",
            "relative L2 to eager: " + ", ".join(f"{k} {gap:.1e}" for k, gap in gaps.items()),
        ]
    )
    data = {"machine": facts, "gpu": torch.cuda.get_device_name(), "nframe": nframe, "dtype": dtype}
    data |= {"ms": times, "ms_by_kind": profiles, "relative_l2": gaps}
    if out:
        write_results(out, "bench_encode", text + "\n", data)
    click.echo(text)


if __name__ == "__main__":
    main()
