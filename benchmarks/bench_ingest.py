"""How fast is an ingest, against its slowest stage alone?

Each stage is measured by itself: decoding with its frames taken away at once, encoding frames that lie where it
computes, writing records that are there, beside the same bytes appended to a plain file with the same syncs. Then the
pipeline, once with frames for free, so that the encoder limits it, and once with real clips. Encoders are LongVA-7B's
vision side with random weights, a tiny one, or a toy:

    python benchmarks/bench_ingest.py --model longva-7b --device cuda:0 --out benchmarks/results
    python benchmarks/bench_ingest.py --model toy --videos 20
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from measure import ROOT, describe, installed, machine, show_bytes, table, write_results
from stages_alone import (
    FreeFrames,
    at_real_size,
    decode_alone,
    encode_alone,
    quantize_ms,
    steady_rate,
    write_alone,
    write_plainly,
)
from watching import Watch

from featstore.decoding.pool import DecoderPool
from featstore.decoding.video_file import Video
from featstore.encoders.registry import EncoderRecipe
from featstore.pipeline.ingest import ingest
from featstore.pipeline.options import IngestOptions
from featstore.pipeline.plan import decode_order
from featstore.pipeline.scheduler import Scheduler
from featstore.pipeline.write.writer_client import start_writer
from featstore.sampling import Sampling
from featstore.store.paths import dataset_path, make_folder
from featstore.system.cpus import default_workers

if TYPE_CHECKING:
    from types import ModuleType

    from featstore.encoders.base import Encoder
    from featstore.spec import FeatureSpec

MODELS = ("longva-7b", "tiny", "toy")
PACKAGES = ("featstore", "lmdb", "numpy", "torch", "triton", "decord", "av")
CLIP_SIZE = 1280, 720


@dataclass
class Bench:
    """What is measured, with what, and what came of it: rates in videos a second."""

    recipes: list[EncoderRecipe]
    encoder: Encoder
    spec: FeatureSpec
    workers: int
    folder: Path
    alone: dict[str, float] = field(default_factory=dict)
    pipeline: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    quantize_ms: dict[str, float] = field(default_factory=dict)

    def run(self, label: str, videos: list[Video], stages: tuple[str, ...], pool: Any) -> None:
        """Ingest `videos` and note how fast, as a share of the slowest of `stages` alone."""
        _say(f"ingesting {label}")
        recipes = self.recipes if len(self.recipes) > 1 else []
        cache_dir = self.folder / label.replace(" ", "-")
        summary = ingest(
            videos,
            cache_dir,
            "bench",
            encoder=recipes or self.encoder,
            sampling=self.spec.sampling,
            options=IngestOptions(workers=self.workers, dry_run=True),
        )
        make_folder(dataset_path(cache_dir, "bench"))
        options = IngestOptions(min_free=1 << 20, lock_wait=1.0)
        begun, ends = time.monotonic(), []

        def note(progress: Any) -> None:
            ends.extend([time.monotonic()] * (progress.done - len(ends)))

        with Watch() as watch, ExitStack() as stack:
            Scheduler(
                stack,
                summary,
                self.encoder,
                recipes,
                partial(start_writer, stack, summary, self.encoder, cache_dir, options),
                options=options,
                on_progress=note,
                pool=pool,
            ).run(decode_order(videos))
        if summary.failures:
            raise click.ClickException(summary.failures[0].reason)
        rate = steady_rate(begun, ends)
        limit = min(stages, key=lambda stage: self.alone[stage])
        a_video = {stage: seconds / summary.stored for stage, seconds in summary.busy.items()}
        of = {"decode": summary.workers, "encode": summary.encoders, "write": 1}
        self.memory[label] = watch.memory
        self.pipeline[label] = {
            "videos": summary.stored,
            "videos_a_second": rate,
            "slowest_stage": limit,
            "share_of_slowest": rate / self.alone[limit],
            "busy": {stage: a_video[stage] * rate / of[stage] for stage in a_video},
            "gpu_busy": watch.gpu_share(ends[len(ends) // 5], ends[-1]),
            "shared_bytes": summary.shared_bytes,
            "peak_pss_bytes": watch.peak,
        }

    def measure_alone(self, clips: list[Video], videos: int) -> None:
        """Measure each stage by itself."""
        devices = len(self.recipes)
        _say("decoding alone")
        self.alone["decode"] = decode_alone(clips, self.spec, self.workers)
        _say("encoding alone")
        self.alone["encode"] = encode_alone(self.encoder, self.spec, max(3, videos // 4)) * devices
        for name, size in (("write", self.spec), ("write, 63 MiB", at_real_size(self.spec))):
            if name != "write" and size == self.spec:
                continue
            _say(f"{name} alone")
            plain = f"plain file for {name}"
            self.alone[plain] = write_plainly(self.folder, size, max(10, videos // 4))
            self.alone[name] = write_alone(self.folder / name, size, max(10, videos // 4))

    def render(self, facts: dict[str, Any]) -> str:
        """Return the results for people."""
        names = ", ".join(map(str, self.recipes))
        lines = [describe(facts), *([facts["gpu"]] if facts["gpu"] else []), ""]
        lines.append(
            f"{names}; {self.spec.sampling.nframe} frames a video, batches of {self.encoder.batch_frames}, "
            f"{self.spec.encoder.dtype}, {self.workers} decode workers"
        )
        rows = [[name, f"{rate:.2f}"] for name, rate in self.alone.items()]
        lines += ["", table(["stage alone", "videos/s"], rows)]
        for name in [name for name in self.alone if name.startswith("write")]:
            share = self.alone[name] / self.alone[f"plain file for {name}"]
            lines.append(f"{name}: {share:.0%} of the plain file's rate")
        if self.quantize_ms:
            found = ", ".join(f"{name} {ms:.2f} ms" for name, ms in self.quantize_ms.items())
            lines.append(f"quantizing a video and measuring its error: {found}")
        head = ["pipeline", "videos/s", "of slowest", "decode", "encode", "write", "GPU", "memory"]
        lines += ["", table(head, [self._row(label) for label in self.pipeline])]
        lines.append(
            "decode, encode, write: share of the time at work; GPU: median of nvidia-smi's"
        )
        lines.append(
            "memory: most of all processes together (PSS), of which are shared "
            + ", ".join(show_bytes(run["shared_bytes"]) for run in self.pipeline.values())
        )
        return "\n".join(lines)

    def _row(self, label: str) -> list[str]:
        run = self.pipeline[label]
        gpus = " ".join(f"{share:.0%}" for share in run["gpu_busy"].values())
        return [
            label,
            f"{run['videos_a_second']:.2f}",
            f"{run['share_of_slowest']:.0%} ({run['slowest_stage']})",
            *(f"{run['busy'][stage]:.0%}" for stage in ("decode", "encode", "write")),
            gpus or "-",
            show_bytes(run["peak_pss_bytes"]),
        ]


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="toy", show_default=True)
@click.option("--device", default="auto", show_default=True, help="As of featstore ingest.")
@click.option("--dtype", type=click.Choice(["fp16", "bf16", "fp32"]))
@click.option("--nframe", default=128, show_default=True)
@click.option("--batch-frames", type=int)
@click.option("--workers", type=int, help="Decode workers.  [default: one a core]")
@click.option("--videos", default=40, show_default=True, help="In the run with free frames.")
@click.option("--decode-videos", type=int, help="In the run with clips.  [default: 4 a worker]")
@click.option(
    "--clips", type=click.Path(exists=True), help="A folder; else two 720p clips are made."
)
@click.option("--clip-frames", default=216, show_default=True, help="Of the clips that are made.")
@click.option("--workdir", type=click.Path(), help="Where stores lie; what is made is removed.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", default="bench_ingest", show_default=True, help="Of the result files.")
def main(**options: Any) -> None:
    """Measure, print a table, and write text, JSON and a plot."""
    with tempfile.TemporaryDirectory(prefix="bench-ingest-", dir=options["workdir"]) as made:
        folder = Path(made)
        _say("making an encoder")
        recipes = make_recipes(folder, options)
        encoder = recipes[0].build()
        sampling = Sampling(options["nframe"])
        spec = ingest(
            [Video("x", "x")],
            folder,
            "x",
            encoder=encoder,
            sampling=sampling,
            options=IngestOptions(dry_run=True),
        ).spec
        workers = options["workers"] or default_workers()
        bench = Bench(recipes, encoder, spec, workers, folder)
        facts = machine(PACKAGES, folder) | {"gpu": gpu_name(encoder)}
        _say("making clips")
        clips = list_clips(folder, options, options["decode_videos"] or 4 * workers)
        free = [Video(f"free-{i}", f"/free/{i}") for i in range(options["videos"])]
        bench.measure_alone(clips, options["videos"])
        if facts["gpu"]:
            bench.quantize_ms = quantize_ms(spec, encoder.device)  # type: ignore[attr-defined]
        bench.run("frames for free", free, ("encode", "write"), FreeFrames)
        bench.run("clips", clips, ("decode", "encode", "write"), DecoderPool)
        data = {"machine": facts, "options": _plain(options), "spec": spec.to_dict()}
        data |= {"alone": bench.alone, "pipeline": bench.pipeline, "memory": bench.memory}
        data["quantize_ms"] = bench.quantize_ms
        text = bench.render(facts)
    if options["out"]:
        options["out"].mkdir(parents=True, exist_ok=True)
        text += "\n" + plot(options["out"] / f"{options['name']}.png", data)
        write_results(options["out"], options["name"], text + "\n", data)
    click.echo(text)


def _say(stage: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {stage}", err=True)


def make_recipes(folder: Path, options: dict[str, Any]) -> list[EncoderRecipe]:
    """Return a recipe for each device, of an encoder made here."""
    devices = options["device"].split(",")
    batch = options["batch_frames"]
    if options["model"] == "toy":
        return [EncoderRecipe("toy", batch_frames=batch) for _ in devices]
    checkpoint = folder / "checkpoint"
    if options["model"] == "tiny":
        _load(ROOT / "tools" / "make_tiny_checkpoint.py").make_tiny_checkpoint(checkpoint)
    else:
        _load(ROOT / "benchmarks" / "bench_eval.py").make_checkpoint(checkpoint, language=False)
    words = {"checkpoint": str(checkpoint), "dtype": options["dtype"]}
    return [EncoderRecipe("longva", {**words, "device": device}, batch) for device in devices]


def list_clips(folder: Path, options: dict[str, Any], count: int) -> list[Video]:
    """Return `count` videos: the files of --clips, or clips made here, over and over under other ids."""
    if options["clips"]:
        paths = sorted(path for path in Path(options["clips"]).iterdir() if path.is_file())
    else:
        tool, (width, height) = _load(ROOT / "tools" / "make_sample_clips.py"), CLIP_SIZE
        paths = []
        for draw in (tool.draw_bouncing_ball, tool.draw_color_bars):
            path = folder / f"{draw.__name__}.mp4"
            frames = options["clip_frames"]
            tool.make_clip(path, width=width, height=height, fps=25, frames=frames, draw=draw)
            paths.append(path)
    repeated = paths * math.ceil(count / len(paths))
    return [Video(f"clip-{i}", str(path)) for i, path in enumerate(repeated[:count])]


def gpu_name(encoder: Any) -> str:
    """Return the name of the GPU an encoder computes on, nothing where it uses none."""
    if getattr(getattr(encoder, "device", None), "type", "") != "cuda":
        return ""
    import torch

    return torch.cuda.get_device_name(encoder.device)


def plot(path: Path, data: dict[str, Any]) -> str:
    """Draw rates and memory over time, and return a sentence on what became of it."""
    if not installed("matplotlib"):
        return "no plot: matplotlib is not installed (pip install matplotlib)"
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (rates, memory) = plt.subplots(1, 2, figsize=(12, 4))
    found = {name: rate for name, rate in data["alone"].items() if "," not in name}
    found |= {f"pipeline, {k}": run["videos_a_second"] for k, run in data["pipeline"].items()}
    colors = ["#c1440e" if name.startswith("pipeline") else "#7d8ca3" for name in found]
    bars = rates.barh(list(found), list(found.values()), color=colors)
    rates.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    rates.set_xscale("log")
    rates.margins(x=0.15)
    rates.set_xlabel("videos a second")
    for label, samples in data["memory"].items():
        memory.plot([at for at, _ in samples], [size / 2**30 for _, size in samples], label=label)
    memory.set_xlabel("seconds")
    memory.set_ylabel("GiB, all processes (PSS)")
    memory.set_ylim(bottom=0)
    memory.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return f"plot: {path.name}"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in ("out", "workdir", "clips", "name")}


if __name__ == "__main__":
    main()
