"""Make a tiny checkpoint of a video model of transformers with random weights, processor files included: about 1 MB."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import torch
from make_tiny_checkpoint import (
    PREPROCESSOR,
    SPECIAL_TOKENS,
    new_folder,
    train_tokenizer,
    write_json,
)

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision")
VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<video>",
)
VOCABULARY = 576
# Qwen2.5-VL's own template, for one user turn of texts and videos.
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = QWEN_TEMPLATE.replace("<|vision_start|><|video_pad|><|vision_end|>", "<video>\n")
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": SPECIAL_TOKENS["<|im_end|>"],
    "pad_token_id": SPECIAL_TOKENS["<|endoftext|>"],
    "tie_word_embeddings": False,
}
_IMAGES = {name: PREPROCESSOR[name] for name in ("image_mean", "image_std")}


@click.command()
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--family",
    type=click.Choice(FAMILIES),
    default=FAMILIES[0],
    show_default=True,
    help="Which model.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the vision side.")
@click.option("--language-seed", type=int, help="Seed of the language model.  [default: --seed]")
def main(out_dir: Path, family: str, seed: int, language_seed: int | None) -> None:
    """Write a tiny checkpoint to OUT_DIR, which is new or empty, and print its path."""
    click.echo(make_tiny_video_model(out_dir, family, seed=seed, language_seed=language_seed))


def make_tiny_video_model(
    out_dir: Path | str, family: str, *, seed: int = 0, language_seed: int | None = None
) -> Path:
    """Write a checkpoint of random float32 weights to `out_dir` and return its path."""
    out = new_folder(out_dir)
    ids = write_video_tokenizer(
        out, LLAVA_TEMPLATE if family == "llava_onevision" else QWEN_TEMPLATE
    )
    model = tiny_model(family, ids)
    for name, tensor in sorted(model.state_dict().items()):
        sees = re.search(r"visual\.|vision_tower\.|multi_modal_projector\.|image_newline", name)
        _draw(name, tensor, seed if sees or language_seed is None else language_seed)
    model.save_pretrained(out)
    write_json(out / "generation_config.json", {"eos_token_id": [SPECIAL_TOKENS["<|im_end|>"]]})
    write_json(out / "preprocessor_config.json", processor(family))
    if family == "llava_onevision":
        write_json(
            out / "processor_config.json",
            {"num_image_tokens": 25, "vision_feature_select_strategy": "full"},
        )
    return out


def tiny_model(family: str, ids: dict[str, int]) -> Any:
    """Return a tiny model of a family; `ids` of the tokens that stand for images and videos."""
    import transformers

    if family == "llava_onevision":
        vision = {"model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 64}
        vision |= {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 70,  # five patches a side, an odd number as the published 27
            "patch_size": 14,
        }
        vision |= {"vision_use_head": False}
        config = transformers.LlavaOnevisionConfig(
            vision_config=vision,
            text_config={"model_type": "qwen2", **_TEXT},
            image_token_index=ids["<image>"],
            video_token_index=ids["<video>"],
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=False,
        )
        return transformers.LlavaOnevisionForConditionalGeneration(config)
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": 64,
    }
    named = {f"{kind}_token_id": ids[f"<|{kind}_pad|>"] for kind in ("image", "video")}
    named |= {f"vision_{end}_token_id": ids[f"<|vision_{end}|>"] for end in ("start", "end")}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    if family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1], "window_size": 56, "tokens_per_second": 2}
        config = transformers.Qwen2_5_VLConfig(
            vision_config=vision,
            text_config={**_TEXT, "rope_parameters": rope},
            tie_word_embeddings=False,
            **named,
        )
        return transformers.Qwen2_5_VLForConditionalGeneration(config)
    vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    config = transformers.Qwen3VLConfig(
        vision_config=vision,
        text_config={
            **_TEXT,
            "head_dim": 16,
            "rope_parameters": {**rope, "mrope_interleaved": True},
        },
        tie_word_embeddings=False,
        **named,
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


def processor(family: str) -> dict[str, Any]:
    """Return what a family's processor file says."""
    if family == "llava_onevision":
        return {"size": {"height": 70, "width": 70}, "resample": 3, **_IMAGES}
    if family == "qwen2_5_vl":
        return {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **_IMAGES,
        }
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"longest_edge": 25165824, "shortest_edge": 4096}
    return {"size": size, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, **halves}


def write_video_tokenizer(out: Path, template: str) -> dict[str, int]:
    """Write a tokenizer with the tokens of videos and a chat template; return the ids of these tokens."""
    from tokenizers import AddedToken

    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in VISION_TOKENS])
    tokenizer.save(str(out / "tokenizer.json"))
    names = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
    }
    write_json(out / "tokenizer_config.json", {**names, "chat_template": template})
    return {token: tokenizer.token_to_id(token) for token in VISION_TOKENS}


def _draw(name: str, tensor: torch.Tensor, seed: int) -> None:
    """Fill a tensor with values that follow from its name and the seed, large enough that answers differ."""
    generator = torch.Generator().manual_seed(
        seed * 1_000_003 + sum(name.encode()) * 31 + len(name)
    )
    drawn = torch.randn(tensor.shape, generator=generator)
    if tensor.dim() == 1:
        drawn = drawn * 0.1 + float(name.endswith("weight"))
    else:
        gain = 4.0 if name.startswith("lm_head") else 1.3
        drawn = drawn * (
            0.5 if "embed" in name and "proj" not in name else gain / tensor[0].numel() ** 0.5
        )
    tensor.copy_(drawn)


if __name__ == "__main__":
    main()
