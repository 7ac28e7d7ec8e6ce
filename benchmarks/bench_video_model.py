"""How long does a question take, with a Qwen2.5-VL of 7B's shape: live, from stored features, with the prefix kept?

Weights are random, of the published shape: answers mean nothing, times do. A checkpoint of 16 GB is written first.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from make_sample_clips import draw_bouncing_ball, make_clip
from make_tiny_video_model import QWEN_TEMPLATE, processor, tiny_model, write_video_tokenizer
from measure import describe, machine, show_ratio, show_time, table, write_results

from featstore.models import CachedVideoModel
from featstore.sampling import Sampling

QUESTIONS = [f"What happens in part {number} of this video?" for number in range(1, 7)]
VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
VISION |= {"out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112}
TEXT = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
TEXT |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


@click.command()
@click.option("--tiny", is_flag=True, help="A tiny model, to see that it runs.")
@click.option("--device", default="cuda", show_default=True, help="A torch device.")
@click.option("--nframe", default=128, show_default=True, help="Frames of the video.")
@click.option("--max-pixels", default=200_704, show_default=True, help="Pixels of a frame at most.")
@click.option("--tokens", default=8, show_default=True, help="New tokens an answer.")
@click.option(
    "--video",
    type=click.Path(exists=True, path_type=Path),
    help="A file; by default one of half a second for each frame.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write text and JSON here.")
def main(
    tiny: bool,
    device: str,
    nframe: int,
    max_pixels: int,
    tokens: int,
    video: Path | None,
    out: Path | None,
) -> None:
    """Print seconds a question, median and range, of the three ways."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        facts = machine(("featstore", "torch", "transformers"), work)
        checkpoint = write_checkpoint(work / "model", device, tiny=tiny)
        if video is None:
            video = work / "ball.mp4"
            size = {"width": 640, "height": 360}
            make_clip(video, fps=4, frames=2 * nframe, draw=draw_bouncing_ball, **size)
        options: dict[str, Any] = {
            "device": device,
            "sampling": Sampling(nframe, "qwen"),
            "dataset": "bench",
            "max_pixels": max_pixels,
            "min_pixels": max_pixels // 4,
        }
        seconds: dict[str, list[float]] = {}
        for way, more in {
            "live": {"cache_dir": None, "prefix_cache": 0},
            "stored": {"cache_dir": work / "cache", "prefix_cache": 0},
            "prefix kept": {"cache_dir": work / "cache", "prefix_cache": 1},
        }.items():
            with CachedVideoModel(checkpoint, **options, **more) as model:
                seconds[way] = times(model, str(video), tokens)
    on_gpu = device.startswith("cuda")
    gpu = torch.cuda.get_device_name(device) if on_gpu else "no GPU"
    live = statistics.median(seconds["live"])
    rows = []
    for way, found in seconds.items():
        middle = statistics.median(found)
        shown = map(show_time, (middle, min(found), max(found)))
        rows.append([way, *shown, show_ratio(live / middle)])
    text = (
        f"{describe(facts)}\n{gpu}, {nframe} frames at most\n\n"
        f"{table(('a question', 'median', 'min', 'max', 'times live'), rows)}\n"
    )
    click.echo(text, nl=False)
    if out is not None:
        data = {"machine": facts, "gpu": gpu, "nframe": nframe, "seconds": seconds}
        write_results(out, "bench_video_model", text, data)


def write_checkpoint(out: Path, device: str, *, tiny: bool) -> Path:
    """Write a Qwen2.5-VL with random weights in bf16."""
    out.mkdir()
    ids = write_video_tokenizer(out, QWEN_TEMPLATE)
    model = tiny_model("qwen2_5_vl", ids)
    if not tiny:
        config = model.config.to_dict()
        config["vision_config"] |= VISION
        config["text_config"] |= TEXT | {"rope_parameters": ROPE, "layer_types": None}
        whole = transformers.Qwen2_5_VLConfig(**config)
        with torch.device(device):
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.bfloat16)
            model = transformers.Qwen2_5_VLForConditionalGeneration(whole)
            torch.set_default_dtype(before)
    model.save_pretrained(out)
    (out / "preprocessor_config.json").write_text(json.dumps(processor("qwen2_5_vl")))
    return out


def times(model: CachedVideoModel, video: str, tokens: int) -> list[float]:
    """Return the seconds of each question; a question before them loads, stores and warms up."""
    seconds = []
    for question in ["Warm up.", *QUESTIONS]:
        start = time.perf_counter()
        model.generate_ids(
            question, "video", path=video, min_new_tokens=tokens, max_new_tokens=tokens
        )
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


if __name__ == "__main__":
    main()
