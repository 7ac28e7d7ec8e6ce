"""Make a tiny checkpoint of a vision model of transformers with random weights, as its authors lay theirs out.

Config, safetensors and processor config as on the Hub; CLIP also gets a tokenizer of a few words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch

WORDS = ["a", "red", "green", "blue", "grey", "square", "moving", "water", "street", "cat"]
SIDE, PATCH, FRAMES = 28, 14, 4
_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
_VISION = {**_COMMON, "image_size": SIDE, "patch_size": PATCH}
_TEXT = {**_COMMON, "vocab_size": 16, "max_position_embeddings": 16}
_EDGE = {"size": {"shortest_edge": 32}, "crop_size": {"height": SIDE, "width": SIDE}}
_EXACT = {"size": {"height": SIDE, "width": SIDE}}
# Name -> (class, its config's values, processor, its values).
KINDS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "clip": (
        "CLIPModel",
        {
            "text_config": {**_TEXT, "eos_token_id": 1},
            "vision_config": _VISION,
            "projection_dim": 24,
        },
        "CLIPImageProcessor",
        _EDGE,
    ),
    "siglip": (
        "SiglipModel",
        {"text_config": _TEXT, "vision_config": _VISION},
        "SiglipImageProcessor",
        _EXACT,
    ),
    "dinov2": ("Dinov2Model", {**_VISION, "image_size": 56}, "BitImageProcessor", _EDGE),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel",
        {**_VISION, "num_register_tokens": 4},
        "BitImageProcessor",
        _EDGE,
    ),
    "dinov3_vit": (
        "DINOv3ViTModel",
        {**_VISION, "num_register_tokens": 4},
        "DINOv3ViTImageProcessorFast",
        _EXACT,
    ),
    "vit": ("ViTForImageClassification", _VISION, "ViTFeatureExtractor", {"size": SIDE}),
    "ijepa": ("IJepaModel", _VISION, "ViTImageProcessor", _EXACT),
    "videomae": (
        "VideoMAEForPreTraining",
        {
            **_VISION,
            "num_frames": FRAMES,
            "decoder_num_hidden_layers": 1,
            "decoder_hidden_size": 16,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 16,
        },
        "VideoMAEFeatureExtractor",
        _EDGE,
    ),
    "vivit": (
        "VivitForVideoClassification",
        {**_VISION, "num_frames": FRAMES, "tubelet_size": [2, PATCH, PATCH]},
        "VivitImageProcessor",
        _EDGE,
    ),
    "timesformer": (
        "TimesformerForVideoClassification",
        {**_VISION, "num_frames": FRAMES},
        "VideoMAEImageProcessor",
        _EDGE,
    ),
    "vjepa2": (
        "VJEPA2Model",
        {
            "patch_size": PATCH,
            "crop_size": SIDE,
            "frames_per_clip": FRAMES,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "mlp_ratio": 1.5,
            "pred_hidden_size": 16,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 1,
            "pred_mlp_ratio": 1.0,
            "num_pooler_layers": 1,
        },
        "VJEPA2VideoProcessor",
        {"crop_size": SIDE},
    ),
}


def make_tiny_vision(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a checkpoint into `folder` and return it.

    Args:
        folder: made if it is missing.
        kind: one of KINDS.
        seed: of the weights.
    """
    import transformers

    name, values, processor, options = KINDS[kind]
    cls = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(cls.config_class(**values))
        # Biases and norms that begin as 0 and 1 would hide a mistake.
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    video = processor.endswith("VideoProcessor")
    key = "feature_extractor_type" if processor.endswith("Extractor") else "image_processor_type"
    file = "video_preprocessor_config.json" if video else "preprocessor_config.json"
    stated = {"video_processor_type" if video else key: processor, **options}
    (folder / file).write_text(json.dumps(stated, indent=2), encoding="utf-8")
    if kind == "clip":
        _make_tokenizer(folder)
    return folder


def _make_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<end>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(sorted(KINDS)), default="clip", show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, kind: str, seed: int) -> None:
    """Make a tiny vision checkpoint in FOLDER."""
    click.echo(make_tiny_vision(folder, kind, seed))


if __name__ == "__main__":
    main()
