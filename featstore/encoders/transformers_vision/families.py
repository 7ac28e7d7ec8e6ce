"""Which vision models of transformers make features, and what must be known of each; torch is not loaded.

transformers' own class computes them, so that a family here is a line: which class, which of its tokens are patches,
which tensors of a checkpoint it does without.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.checkpoints.config_fields import ConfigFields, read_config
from featstore.checkpoints.files import Files, open_files
from featstore.checkpoints.quantized import quantized_config
from featstore.checkpoints.tensors import find_shard, list_tensors
from featstore.encoders.assembly import build_config
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from featstore.spec import Setting

EXAMPLE = "facebook/dinov2-base"
LAYERS = "num_hidden_layers"
# Values of a config that change no feature: names, training, and the classes of a classifier.
_IGNORED = (
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "model_type",
    "problem_type",
    "torch_dtype",
    "transformers_version",
)
_LARGEST = {"hidden_size": 1 << 16, LAYERS: 1 << 10, "intermediate_size": 1 << 18}
_HEADS = ("classifier.", "fc_norm.")


@dataclass(frozen=True)
class VisionFamily:
    """What is known of the models of a `model_type`.

    Attributes:
        model: the class in transformers.
        cls: whether the first token is a class token.
        registers: whether `num_register_tokens` tokens come behind it.
        frames: the config's name of the number of frames of a clip; None if frames are encoded one by one.
        any_length: whether clips may have another number of frames than the config says.
        side: the config's name of the size that frames must have; None if the model takes any.
        skipped: beginnings of names of tensors that these features do not depend on.
        pooler: beginning of the names of tensors that only the pooled output depends on; None if it has no such output.
        pools: whether the class is built with weights for the pooled output unless it is told otherwise.
        joint: the class that projects into the space shared with texts; `model` itself if its pooled output is there.
    """

    model: str
    cls: bool = True
    registers: bool = False
    frames: str | None = None
    any_length: bool = False
    side: str | None = "image_size"
    skipped: tuple[str, ...] = _HEADS
    pooler: str | None = None
    pools: bool = False
    joint: str | None = None


_CLIP = VisionFamily(
    "CLIPVisionModel",
    skipped=("text_model.", "text_projection.", "logit_scale"),
    pooler="post_layernorm.",
    joint="CLIPVisionModelWithProjection",
)
_SIGLIP = VisionFamily(
    "SiglipVisionModel",
    cls=False,
    skipped=("text_model.", "logit_scale", "logit_bias", *_HEADS),
    pooler="head.",
    joint="SiglipVisionModel",
)
FAMILIES = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "dinov2": VisionFamily("Dinov2Model", side=None, pooler=""),
    "dinov2_with_registers": VisionFamily(
        "Dinov2WithRegistersModel", registers=True, side=None, pooler=""
    ),
    "dinov3_vit": VisionFamily("DINOv3ViTModel", registers=True, side=None, pooler=""),
    "ijepa": VisionFamily("IJepaModel", cls=False, skipped=(*_HEADS, "pooler."), pools=True),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "timesformer": VisionFamily("TimesformerModel", frames="num_frames"),
    "videomae": VisionFamily(
        "VideoMAEModel",
        cls=False,
        frames="num_frames",
        skipped=(*_HEADS, "decoder.", "encoder_to_decoder.", "mask_token"),
    ),
    "vit": VisionFamily(
        "ViTModel", skipped=(*_HEADS, "lm_head.", "decoder."), pooler="pooler.", pools=True
    ),
    "vivit": VisionFamily("VivitModel", frames="num_frames", pooler="pooler.", pools=True),
    "vjepa2": VisionFamily(
        "VJEPA2Model",
        cls=False,
        frames="frames_per_clip",
        any_length=True,
        side="crop_size",
        skipped=(*_HEADS, "predictor.", "pooler."),
    ),
}
# What comes before the names of a vision model's tensors, in a model that has more.
_PREFIXES = (
    "vision_model.",
    *(f"{name}." for name in ("dinov2", "dinov2_with_registers", "vit", "ijepa")),
    *(f"{name}." for name in ("videomae", "vivit", "timesformer", "vjepa2")),
)
_REFUSED = {
    "siglip2": "its frames differ in their number of patches; use a SigLIP2 checkpoint of one size, such as "
    "google/siglip2-base-patch16-224",
    "dinov3_convnext": "its layers differ in their number of tokens",
}


@dataclass(frozen=True)
class VisionCheckpoint:
    """A checkpoint whose vision model makes features.

    Attributes:
        files: its files.
        family: what is known of its kind.
        config: the vision model's config, an object of transformers.
        stated: the same, as config.json states it.
    """

    files: Files
    family: VisionFamily
    config: Any
    stated: ConfigFields

    def patches(self, frame: tuple[int, int], frames: int) -> tuple[int, int, int]:
        """Return the (time, height, width) of a unit's patches.

        Raises:
            CheckpointError: the model takes no such frames or clips.
        """
        size = getattr(self.config, "patch_size", 0)
        tube = getattr(self.config, "tubelet_size", 1) if self.family.frames else 1
        if isinstance(tube, (list, tuple)):
            tube, *size = tube
        tall, wide = size if isinstance(size, (list, tuple)) else (size, size)
        numbers = (tube, tall, wide)
        if not all(type(number) is int and 1 <= number <= 1 << 12 for number in numbers):
            raise CheckpointError(
                f"{self.stated.origin} has patches of {numbers}; expected (frames, rows, columns), each from 1 to 4096"
            )
        cells = (frames // tube, frame[0] // tall, frame[1] // wide)
        if not all(cells) or frames % tube:
            raise CheckpointError(
                f"the model of {self.files} cuts clips into patches of {tube} frames, {tall} x {wide} pixels, which "
                f"{frames} frames of {frame[0]} x {frame[1]} do not give; take another --clip, or its processor's "
                "config as it was published"
            )
        return cells

    def settings(self) -> dict[str, Setting]:
        """Return every value of the config that may change a feature; also those that nobody here knows."""
        return flat_settings(
            "config", {k: v for k, v in self.stated.values.items() if k not in _IGNORED}
        )


def flat_settings(prefix: str, values: dict[str, Any]) -> dict[str, Setting]:
    """Return JSON values as settings: `prefix.name`, what is no plain value as its JSON."""
    return {f"{prefix}.{name}": _setting(value) for name, value in values.items()}


def _setting(value: Any) -> Setting:
    plain = isinstance(value, (str, bool, type(None)))
    number = isinstance(value, (int, float)) and math.isfinite(value) and abs(value) < 1 << 63
    return value if plain or number else json.dumps(value, sort_keys=True)


def read_vision(checkpoint: str | Path) -> VisionCheckpoint:
    """Read the config of a checkpoint.

    Args:
        checkpoint: a folder, or a name on the Hub.

    Raises:
        CheckpointError: it is none of FAMILIES, or its config cannot be followed.
    """
    files = open_files(str(checkpoint), EXAMPLE)
    fields = read_config(files, f"name a checkpoint of transformers, such as {EXAMPLE}")
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        why = _REFUSED.get(str(kind), f"expected one of {', '.join(FAMILIES)}")
        raise CheckpointError(
            f"{fields.origin} has model_type = {kind!r:.100}, of which no features are made: {why}"
        )
    if fields.get("quantization_config") is not None:
        raise quantized_config(fields)
    family = FAMILIES[kind]
    config = build_config(fields, kind)
    if kind in ("clip", "siglip"):
        nested = fields.get("vision_config")
        if not isinstance(nested, dict):
            raise fields.wrong("vision_config", "an object")
        shared = {"projection_dim": config.projection_dim} if kind == "clip" else {}
        config = config.vision_config
        for name, value in shared.items():
            setattr(config, name, value)
        fields = ConfigFields({**nested, **shared}, f"vision_config of {fields.origin}")
    for name, most in _LARGEST.items():
        value = getattr(config, name, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise CheckpointError(
                f"{fields.origin} has {name} = {value!r:.100}, expected from 1 to {most}"
            )
    if getattr(config, "num_channels", getattr(config, "in_chans", 3)) != 3:
        raise fields.wrong("num_channels", "3: frames are RGB")
    return VisionCheckpoint(files, family, config, fields)


def find_vision_tensors(found: VisionCheckpoint, *, pool: str) -> dict[str, tuple[Path, str]]:
    """Return name -> (safetensors file, name in it) of the tensors that features depend on.

    Names here are without the prefix of a larger model, so that the same weights have one digest in all of them.

    Args:
        found: the checkpoint.
        pool: see `TransformersEncoder`; a pooled output has weights of its own.
    """
    family, skipped = found.family, list(found.family.skipped)
    if pool not in ("pooler", "joint") and family.pooler:
        skipped.append(family.pooler)
    if pool != "joint":
        skipped.append("visual_projection.")
    needed = {}
    for key, shard in list_tensors(found.files).items():
        name = next((key[len(p) :] for p in _PREFIXES if key.startswith(p)), key)
        if not name.startswith(tuple(skipped)) and not name.endswith("position_ids"):
            needed[name] = (find_shard(found.files, shard, key), key)
    return needed
