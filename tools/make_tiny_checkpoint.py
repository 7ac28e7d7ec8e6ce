"""Make a tiny LongVA checkpoint with random weights: the layout of LongVA-7B in about 1.5 MB.

The vision tower and the projector are drawn from one seed, the language model from another, so two
checkpoints can see alike and speak differently. The CLIP folder that the config names lies inside
the checkpoint, with configs only: LongVA's tower is finetuned and comes with its own weights.
"""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from safetensors.torch import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CLIP_NAME = "openai/clip-tiny-patch14-336"
CLIP_PREFIX = "model.vision_tower.vision_tower.vision_model."
MODEL_TYPES = ("llava_qwen", "qwen2")  # both are found in LongVA's checkpoints

VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 16,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
CLIP = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": 16,
    "text_config": {
        "model_type": "clip_text_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "projection_dim": 16,
        "vocab_size": 64,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "vision_config": VISION,
    "torch_dtype": "float32",
}
PREPROCESSOR = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "do_resize": True,
    "size": 336,  # integers, as in the file of openai/clip-vit-large-patch14-336
    "resample": 3,
    "do_center_crop": True,
    "crop_size": 336,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

VOCABULARY = 512  # tokens; the embedding has more rows, as Qwen2's has
SPECIAL_TOKENS = {"<|endoftext|>": 509, "<|im_start|>": 510, "<|im_end|>": 511}
MAX_LENGTH = 32768

LANGUAGE: dict[str, Any] = {
    "architectures": ["LlavaQwenForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 576,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "max_position_embeddings": MAX_LENGTH,
    "rope_theta": 1e9,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
    "use_cache": True,
    "bos_token_id": SPECIAL_TOKENS["<|endoftext|>"],
    "eos_token_id": SPECIAL_TOKENS["<|im_end|>"],
    "torch_dtype": "bfloat16",
}
MULTIMODAL = {
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "mm_hidden_size": VISION["hidden_size"],
    "mm_patch_merge_type": "unires",
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "average",
    "mm_spatial_pool_stride": 2,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": CLIP_NAME,
    "tokenizer_model_max_length": MAX_LENGTH,
    "tokenizer_padding_side": "right",
    "use_mm_proj": True,
}
GENERATION = {
    "bos_token_id": SPECIAL_TOKENS["<|endoftext|>"],
    "pad_token_id": SPECIAL_TOKENS["<|endoftext|>"],
    "eos_token_id": [SPECIAL_TOKENS["<|im_end|>"], SPECIAL_TOKENS["<|endoftext|>"]],
    "do_sample": True,
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
}

# How Qwen2 splits a text before the merges.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = (
    "system\nYou are a helpful assistant.",
    "user\nWhat happens in this video? Describe it in a few words.",
    "assistant\nA yellow ball crosses the picture and bounces off every edge.",
    "Which of the following colors is not shown in the clip? Answer with the letter only.",
    "A. red B. green C. blue D. The colored bars move slowly from right to left.",
    "How many times does the eye close before the last frame is over?",
    "The person opens a door, walks along the street and waits for the morning train.",
    "Someone is cutting vegetables while water boils in a large pot on the stove.",
    "First the camera follows a dog near the river, then it turns towards the bridge.",
    "Two children throw stones into the lake and count the rings they make.",
    "It was raining all evening, so nobody noticed the small bird under the window.",
)


@click.command()
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Seed of vision tower and projector.")
@click.option("--language-seed", type=int, help="Seed of the language model.  [default: --seed]")
@click.option(
    "--shards",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of safetensors files the weights are split over.",
)
@click.option(
    "--model-type",
    type=click.Choice(MODEL_TYPES),
    default=MODEL_TYPES[0],
    show_default=True,
    help="What config.json calls the model.",
)
def main(out_dir: Path, seed: int, language_seed: int | None, shards: int, model_type: str) -> None:
    """Write a tiny LongVA checkpoint to OUT_DIR, which is new or empty, and print its path."""
    try:
        made = make_tiny_checkpoint(
            out_dir, seed=seed, language_seed=language_seed, shards=shards, model_type=model_type
        )
    except FileExistsError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(made)


def make_tiny_checkpoint(
    out_dir: Path | str,
    *,
    seed: int = 0,
    language_seed: int | None = None,
    shards: int = 1,
    model_type: str = "llava_qwen",
) -> Path:
    """Write a checkpoint of random bfloat16 weights to `out_dir` and return its path.

    The same arguments give the same bytes. Raises FileExistsError if `out_dir` holds anything.
    """
    out = new_folder(out_dir)
    write_json(out / "config.json", LANGUAGE | MULTIMODAL | {"model_type": model_type})
    write_json(out / "generation_config.json", GENERATION)
    write_json(out / CLIP_NAME / "config.json", CLIP)
    write_json(out / CLIP_NAME / "preprocessor_config.json", PREPROCESSOR)
    write_tokenizer(out)

    language = draw(language_layout(), seed if language_seed is None else language_seed)
    write_weights(out, language | draw(vision_layout(), seed), shards=shards)
    return out


class Normal(NamedTuple):
    """A tensor to be drawn: its shape, and the normal distribution of its values."""

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0


def draw(layout: dict[str, Normal], seed: int) -> dict[str, torch.Tensor]:
    """Draw a layout's tensors in their order."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (mean + std * torch.randn(shape, generator=generator)).bfloat16()
        for name, (shape, std, mean) in layout.items()
    }


def vision_layout() -> dict[str, Normal]:
    """Return the tensors that see: CLIP's vision tower and LongVA's projector.

    The gains give features with a standard deviation of 1 to 2 that follow the picture.
    """
    dim, hidden, out = VISION["hidden_size"], VISION["intermediate_size"], LANGUAGE["hidden_size"]
    patch = VISION["patch_size"]
    positions = (VISION["image_size"] // patch) ** 2 + 1
    tower = {
        "embeddings.class_embedding": Normal((dim,), 0.7),
        "embeddings.patch_embedding.weight": Normal((dim, 3, patch, patch), 1.3 / sqrt(3) / patch),
        "embeddings.position_embedding.weight": Normal((positions, dim), 0.25),
        **_norm("pre_layrnorm", dim),  # CLIP's own spelling
        **_norm("post_layernorm", dim),
    }
    for index in range(VISION["num_hidden_layers"]):
        layer = f"encoder.layers.{index}"
        tower |= {
            **_norm(f"{layer}.layer_norm1", dim),
            **_linear(f"{layer}.self_attn.q_proj", dim, dim, gain=1.5),
            **_linear(f"{layer}.self_attn.k_proj", dim, dim, gain=1.5),
            **_linear(f"{layer}.self_attn.v_proj", dim, dim),
            **_linear(f"{layer}.self_attn.out_proj", dim, dim),
            **_norm(f"{layer}.layer_norm2", dim),
            **_linear(f"{layer}.mlp.fc1", dim, hidden, gain=1.2),
            **_linear(f"{layer}.mlp.fc2", hidden, dim, gain=1.2),
        }
    projector = {
        **_linear("model.mm_projector.0", dim, out),
        **_linear("model.mm_projector.2", out, out, gain=1.1),
    }
    return {CLIP_PREFIX + name: normal for name, normal in tower.items()} | projector


def language_layout() -> dict[str, Normal]:
    """Return the tensors that speak: Qwen2 with its embedding and head."""
    dim, hidden, rows = (LANGUAGE[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    kv_dim = dim * LANGUAGE["num_key_value_heads"] // LANGUAGE["num_attention_heads"]
    model = {
        "model.embed_tokens.weight": Normal((rows, dim), 0.5),
        **_norm("model.norm", dim, bias=False),
        **_linear("lm_head", dim, rows, gain=4, bias=False),
    }
    for index in range(LANGUAGE["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        model |= {
            **_norm(f"{layer}.input_layernorm", dim, bias=False),
            **_linear(f"{layer}.self_attn.q_proj", dim, dim, gain=1.5),
            **_linear(f"{layer}.self_attn.k_proj", dim, kv_dim, gain=1.5),
            **_linear(f"{layer}.self_attn.v_proj", dim, kv_dim, gain=1.2),
            **_linear(f"{layer}.self_attn.o_proj", dim, dim, gain=3.5, bias=False),
            **_norm(f"{layer}.post_attention_layernorm", dim, bias=False),
            **_linear(f"{layer}.mlp.gate_proj", dim, hidden, bias=False),
            **_linear(f"{layer}.mlp.up_proj", dim, hidden, bias=False),
            **_linear(f"{layer}.mlp.down_proj", hidden, dim, gain=2, bias=False),
        }
    return model


def write_weights(out: Path, tensors: dict[str, torch.Tensor], *, shards: int) -> None:
    """Write model.safetensors, or numbered files and their index if `shards` is above 1."""
    if shards == 1:
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": weight_map,
    }
    write_json(out / "model.safetensors.index.json", index)


def write_tokenizer(out: Path) -> None:
    """Train a byte-level BPE on a few sentences and write it as Qwen2's tokenizer files."""
    tokenizer = train_tokenizer()
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer.model.save(str(out))  # vocab.json and merges.txt
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    chat = ["<|im_start|>", "<|im_end|>"]
    names = {
        "additional_special_tokens": chat,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    write_json(out / "special_tokens_map.json", names)
    write_json(out / "added_tokens.json", SPECIAL_TOKENS)
    write_json(
        out / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(token_id): {"content": token, "special": True, **flags}
                for token, token_id in SPECIAL_TOKENS.items()
            },
            **names,
            "bos_token": None,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "model_max_length": MAX_LENGTH,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
        },
    )


def train_tokenizer() -> Tokenizer:
    """Return a tokenizer of 512 entries, the three special ones last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    # Not through the trainer, which would number them first.
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _linear(
    name: str, in_dim: int, out_dim: int, *, gain: float = 1.0, bias: bool = True
) -> dict[str, Normal]:
    weight = {f"{name}.weight": Normal((out_dim, in_dim), gain / sqrt(in_dim))}
    return weight | {f"{name}.bias": Normal((out_dim,), 0.1)} if bias else weight


def _norm(name: str, dim: int, *, bias: bool = True) -> dict[str, Normal]:
    weight = {f"{name}.weight": Normal((dim,), 0.1, mean=1.0)}
    return weight | {f"{name}.bias": Normal((dim,), 0.1)} if bias else weight


def new_folder(out_dir: Path | str) -> Path:
    """Return the folder, made if it is missing; raise FileExistsError if it holds anything."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):  # never mix with, or overwrite, weights that took longer to make
        raise FileExistsError(f"{out} is not empty; name a new folder or remove this one")
    return out


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of a checkpoint, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
