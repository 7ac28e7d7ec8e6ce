"""How long does a question take, with the features computed each time, stored, and with the prefix kept?

LongVA-7B's real shapes and number of tokens with random weights, so that no download is needed; 128 frames of real
clips, 8 new tokens. Questions come sorted by video, or one on each video in turn, with one prefix kept or all. Needs a
CUDA GPU and 20 GB of disk for the checkpoint:

    python benchmarks/bench_eval.py CLIP.mp4 [CLIP.mp4 ...] --out benchmarks/results
"""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file

import featstore
from featstore.decoding.video_file import Video
from featstore.encoders import LongVAEncoder
from featstore.models import CachedLongVA
from featstore.models.generating.prefix import PrefixCache
from featstore.pipeline.on_demand import OnDemandEncoder
from featstore.sampling import Sampling

TOOL = Path(__file__).parents[1] / "tools" / "make_tiny_checkpoint.py"
HIDDEN, LAYERS, WIDE, HEADS, KV_HEADS, VOCABULARY = 3584, 28, 18944, 28, 4, 152064
TOWER_HIDDEN, TOWER_LAYERS, TOWER_WIDE = 1024, 24, 4096
ENTRIES = (
    151643  # of the tokenizer beside its special tokens; the model's vocabulary is cut to both
)
TOKENS = 8


def shapes() -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of LongVA-7B."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "model.mm_projector.0.weight": (HIDDEN, TOWER_HIDDEN),
        "model.mm_projector.0.bias": (HIDDEN,),
        "model.mm_projector.2.weight": (HIDDEN, HIDDEN),
        "model.mm_projector.2.bias": (HIDDEN,),
    }
    kv = HIDDEN // HEADS * KV_HEADS
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        for name, rows in (("q", HIDDEN), ("k", kv), ("v", kv)):
            found[f"{layer}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            found[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        found[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        found[f"{layer}mlp.gate_proj.weight"] = found[f"{layer}mlp.up_proj.weight"] = (WIDE, HIDDEN)
        found[f"{layer}mlp.down_proj.weight"] = (HIDDEN, WIDE)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}{norm}.weight"] = (HIDDEN,)
    tower = "model.vision_tower.vision_tower.vision_model."
    found[f"{tower}embeddings.class_embedding"] = (TOWER_HIDDEN,)
    found[f"{tower}embeddings.patch_embedding.weight"] = (TOWER_HIDDEN, 3, 14, 14)
    found[f"{tower}embeddings.position_embedding.weight"] = (577, TOWER_HIDDEN)
    for norm in ("pre_layrnorm", "post_layernorm"):
        found |= {f"{tower}{norm}.{part}": (TOWER_HIDDEN,) for part in ("weight", "bias")}
    for i in range(TOWER_LAYERS):
        layer = f"{tower}encoder.layers.{i}."
        linear = {
            f"self_attn.{name}_proj": (TOWER_HIDDEN, TOWER_HIDDEN)
            for name in ("q", "k", "v", "out")
        }
        linear |= {"mlp.fc1": (TOWER_WIDE, TOWER_HIDDEN), "mlp.fc2": (TOWER_HIDDEN, TOWER_WIDE)}
        for name, shape in linear.items():
            found[f"{layer}{name}.weight"], found[f"{layer}{name}.bias"] = shape, shape[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            found |= {f"{layer}{norm}.{part}": (TOWER_HIDDEN,) for part in ("weight", "bias")}
    return found


def make_checkpoint(folder: Path, *, language: bool = True) -> Path:
    """Write a checkpoint of LongVA-7B's shapes: configs and tokenizer of the tiny one, weights drawn on the GPU.

    language: also the tensors that speak, 15 GB.
    """
    spec = importlib.util.spec_from_file_location("make_tiny_checkpoint", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.make_tiny_checkpoint(folder)
    fill_vocabulary(folder / "tokenizer.json")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": WIDE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "mm_hidden_size": TOWER_HIDDEN,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "tokenizer_model_max_length": 224000,
        "max_position_embeddings": 224000,
        "sliding_window": 224000,
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    tensors = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, shape in shapes().items():
        if not language and "vision_tower" not in name and "mm_projector" not in name:
            continue
        if "norm" in name and name.endswith("weight"):
            tensors[name] = torch.ones(shape, dtype=torch.float16)
        elif name.endswith("bias"):
            tensors[name] = torch.zeros(shape, dtype=torch.float16)
        else:
            tensors[name] = (torch.randn(shape, device=device) * 0.02).half().cpu()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def fill_vocabulary(path: Path) -> None:
    """Give a tokenizer as many entries as Qwen2's has, which no text is cut into."""
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first = len(vocabulary)
    vocabulary |= {f"<entry {number}>": number for number in range(first, ENTRIES)}
    for token in tokenizer["added_tokens"]:
        token["id"] += ENTRIES - first
    path.write_text(json.dumps(tokenizer))


def seconds_a_question(
    model: CachedLongVA, clips: list[Path], questions: int, *, kept: int = 0, in_turn: bool = False
) -> float:
    """Return the mean seconds of a question where each video has `questions` of them.

    Args:
        model: the model.
        clips: the videos.
        questions: the number of questions of each.
        kept: the number of videos whose prefixes are kept; at first there are none.
        in_turn: one question on each video, then the next on each; otherwise all of a video one after another.
    """
    asked = [(clip, number) for clip in clips for number in range(questions)]
    if in_turn:
        asked.sort(key=lambda pair: pair[1])
    model._answerer.prefixes = PrefixCache(model._language.model, kept)
    begun = time.perf_counter()
    for clip, number in asked:
        model.generate(
            f"Question {number}: what happens in this video, and why does it?",
            clip.stem,
            dataset="bench",
            path=clip,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
        )
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / (len(clips) * questions)


def parts_of(checkpoint: Path, clips: list[Path], model: CachedLongVA) -> dict[str, float]:
    """Return the mean seconds of each step of an uncached question; decoding includes resizing, in its own process."""
    encoder = LongVAEncoder(checkpoint)
    on_demand = OnDemandEncoder(encoder, timeout=600)
    sampling = Sampling(128)
    on_demand.encode(Video("warm", str(clips[0])), sampling)
    whole, encode = [], []
    for clip in clips:
        begun = time.perf_counter()
        encoded = on_demand.encode(Video(clip.stem, str(clip)), sampling)
        torch.cuda.synchronize()
        whole.append(time.perf_counter() - begun)
        frames = torch.randint(0, 255, (128, 336, 336, 3), dtype=torch.uint8).numpy()
        begun = time.perf_counter()
        on_demand.encode_frames(frames, "frames")
        torch.cuda.synchronize()
        encode.append(time.perf_counter() - begun)
    features = encoded.features(torch.float16)
    on_demand.close()
    seconds = {}
    for tokens in (1, TOKENS):
        begun = time.perf_counter()
        for _ in range(3):
            model.answer_features(
                "What happens?", features, max_new_tokens=tokens, min_new_tokens=tokens
            )
        torch.cuda.synchronize()
        seconds[tokens] = (time.perf_counter() - begun) / 3
    return {
        "decode, resize": statistics.fmean(whole) - statistics.fmean(encode),
        "encode": statistics.fmean(encode),
        "prefill": seconds[1],
        f"{TOKENS - 1} more tokens": seconds[TOKENS] - seconds[1],
    }


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--questions", multiple=True, type=int, default=(1, 3, 18), show_default=True)
@click.option(
    "--workdir", type=click.Path(), help="Where checkpoint and store lie; removed at the end."
)
@click.option(
    "--out", type=click.Path(file_okay=False), help="Write bench_eval.txt and .json here."
)
def main(
    clips: tuple[Path, ...], questions: tuple[int, ...], workdir: str | None, out: str | None
) -> None:
    """Measure, print a table, and write it to files."""
    folder = Path(tempfile.mkdtemp(prefix="bench-eval-", dir=workdir))
    videos = list(clips)
    try:
        checkpoint = make_checkpoint(folder / "longva-7b")
        found: dict[str, dict[int, float]] = {}
        with CachedLongVA(checkpoint, prefix_cache=0) as model:
            seconds_a_question(model, videos[:1], 1)
            found["uncached"] = {
                n: seconds_a_question(model, videos, n) for n in questions if n <= 3
            }
            steps = parts_of(checkpoint, videos, model)
        del model
        torch.cuda.empty_cache()
        with CachedLongVA(checkpoint, folder / "cache") as model:
            seconds_a_question(model, videos, 1)  # stores what is missing
            for label, kept, in_turn in (
                ("cached", 0, False),
                ("prefix kept", 1, False),
                ("prefix kept, in turn", 1, True),
                ("all prefixes kept, in turn", len(videos), True),
            ):
                found[label] = {
                    n: seconds_a_question(model, videos, n, kept=kept, in_turn=in_turn)
                    for n in questions
                }
            statistics_text = str(model.statistics)
    finally:
        shutil.rmtree(folder)
    for n in questions:
        found["uncached"].setdefault(n, found["uncached"][max(found["uncached"])])
    results = {
        "machine": _machine(),
        "clips": [clip.name for clip in videos],
        "seconds": found,
        "steps": steps,
    }
    text = _render(results) + "\n\n" + statistics_text
    click.echo(text)
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        Path(out, "bench_eval.txt").write_text(text + "\n", encoding="utf-8")
        Path(out, "bench_eval.json").write_text(
            json.dumps(results, indent=2) + "\n", encoding="utf-8"
        )


def _machine() -> dict[str, str]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "featstore": featstore.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _render(results: dict[str, Any]) -> str:
    counts = list(results["seconds"]["cached"])
    lines = [", ".join(f"{name} {value}" for name, value in results["machine"].items())]
    lines.append(
        f"LongVA-7B's shapes, fp16, 128 frames, {TOKENS} new tokens; clips: {', '.join(results['clips'])}"
    )
    lines.append(f"{'seconds a question':28}" + "".join(f"{f'{n} a video':>14}" for n in counts))
    for label, seconds in results["seconds"].items():
        cells = [
            f"{seconds[n]:8.3f} {results['seconds']['uncached'][n] / seconds[n]:4.1f}x"
            for n in counts
        ]
        lines.append(f"{label:28}" + "".join(f"{cell:>14}" for cell in cells))
    whole = sum(results["steps"].values())
    lines.append("\nsteps of an uncached question")
    lines += [
        f"  {name:26} {value:8.3f} s {value / whole:5.0%}"
        for name, value in results["steps"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
