"""The CLIP model that a LongVA config names: its folder, its tower's numbers, its preprocessing.

LongVA's config holds a name, `openai/clip-vit-large-patch14-336`, and relies on that model's own files. Its weights are
those before LongVA's finetuning, so they are used only if a checkpoint has none of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featstore.checkpoints.config_fields import ConfigFields, read_json
from featstore.checkpoints.files import Files, HubFiles, LocalFiles, open_files
from featstore.checkpoints.quantized import quantized_config
from featstore.errors import CheckpointError
from featstore.preprocessing import ShortestEdgeCrop


@dataclass(frozen=True)
class TowerConfig:
    """The numbers of a CLIP vision tower; the defaults are those of transformers' CLIPVisionConfig."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def side(self) -> int:
        """Return the number of patches along one side of an image."""
        return self.image_size // self.patch_size


# The largest values that are accepted.
_SIZES = {
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "image_size": 1 << 13,
    "patch_size": 1 << 10,
}
EXAMPLE = "openai/clip-vit-large-patch14-336"  # the tower of the published LongVA
# So that LongVA checkpoints with their own tower need no second download.
BUILT_IN = {
    EXAMPLE: TowerConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
}


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model.

    Attributes:
        files: its files.
        tower: its tower's numbers.
        built_in: whether these are from `BUILT_IN`.
    """

    files: Files
    tower: TowerConfig
    built_in: bool = False

    def preprocessing(self) -> ShortestEdgeCrop:
        """Return what its image processor does.

        Raises:
            CheckpointError: it does something featstore does not.
        """
        size = self.tower.image_size
        if self.built_in:
            return ShortestEdgeCrop(shortest_edge=size, crop_height=size, crop_width=size)
        found = [_preprocessing(fields, size) for fields in _image_processors(self.files)]
        if found[1:] and found[0] != found[1]:
            raise CheckpointError(
                f"{self.files} says in preprocessor_config.json and in processor_config.json how frames are resized, "
                "but not the same; remove the one that the model was not trained with"
            )
        return found[0]


def find_clip(name: str, checkpoint: Files, override: str | None = None) -> ClipModel:
    """Return the CLIP model of a checkpoint.

    A folder of its name is looked for in the checkpoint, in the working directory and in the two folders above the
    checkpoint; then come the built-in numbers, then the Hub.

    Args:
        name: what the checkpoint's config calls it.
        checkpoint: the checkpoint's files.
        override: a CLIP folder or name to use in place of `name`.

    Raises:
        CheckpointError: there is no such model, or it is not one featstore knows.
    """
    if override is not None:
        name, folders = override, [Path(override).expanduser()]
    else:
        folders = [Path(name)]
        if isinstance(checkpoint, LocalFiles):
            inside = Path(os.path.abspath(checkpoint.folder))
            folders = [inside / name, *folders, *(above / name for above in inside.parents[:2])]
    for folder in folders if name else []:  # an empty name would be the working directory's
        clip = LocalFiles(folder)
        config = read_json(clip, "config.json")
        if config is not None:
            return ClipModel(clip, _tower(config))
    if name in BUILT_IN:
        return ClipModel(HubFiles(name), BUILT_IN[name], built_in=True)
    try:
        files = open_files(name, EXAMPLE)
        config = read_json(files, "config.json")
    except CheckpointError as exc:
        raise _no_clip(exc.found, name, checkpoint, override) from exc
    if config is None:
        raise _no_clip(f"{files} has no config.json{files.caveat}", name, checkpoint, override)
    return ClipModel(files, _tower(config))


def _no_clip(found: str, name: str, checkpoint: Files, override: str | None) -> CheckpointError:
    """Return the error that says who named a CLIP model that cannot be read."""
    named = (
        f"{checkpoint}/config.json has mm_vision_tower"
        if override is None
        else "the given vision_tower"
    )
    return CheckpointError(
        f"{named} = {name!r:.200}, but {found}",
        remedy=f"give the CLIP model's folder, or its name on the Hub such as {EXAMPLE}, with --vision-tower "
        "(in Python: vision_tower=); for a name on the Hub check the network and HF_HUB_OFFLINE",
    )


def _tower(config: ConfigFields) -> TowerConfig:
    _refuse_others(config, ("clip", "clip_vision_model"))
    if config.get("model_type") == "clip":
        nested = config.get("vision_config")
        if not isinstance(nested, dict):
            raise config.wrong("vision_config", "an object")
        config = ConfigFields({"model_type": "clip_vision_model"} | nested, config.origin)
        _refuse_others(config, ("clip_vision_model",))
    default = TowerConfig()
    config.integer("num_channels", 3, 3, 3)
    sizes = {
        name: config.integer(name, 1, most, getattr(default, name)) for name, most in _SIZES.items()
    }
    tower = TowerConfig(
        **sizes,
        hidden_act=config.text("hidden_act", default.hidden_act, ("quick_gelu", "gelu")),
        layer_norm_eps=config.number("layer_norm_eps", 0, 1, default.layer_norm_eps),
    )
    if tower.patch_size > tower.image_size:
        raise config.wrong("patch_size", f"at most image_size = {tower.image_size}")
    if tower.hidden_size % tower.num_attention_heads:
        raise config.wrong("num_attention_heads", f"a divisor of hidden_size = {tower.hidden_size}")
    return tower


def _refuse_others(config: ConfigFields, model_types: tuple[str, ...]) -> None:
    remedy = (
        "name a CLIP model that is not quantized with --vision-tower, or use another checkpoint"
    )
    if config.get("model_type") not in model_types:
        raise config.wrong("model_type", " or ".join(map(repr, model_types)), remedy)
    if config.get("quantization_config") is not None:
        raise quantized_config(config, remedy)


def _image_processors(files: Files) -> list[ConfigFields]:
    """Return what the files say of the image processor, at least once; transformers 5 writes it into the processor."""
    own = read_json(files, "preprocessor_config.json")
    processor = read_json(files, "processor_config.json")
    found = [own] if own is not None else []
    if processor is not None and "image_processor" in processor.values:
        nested = processor.get("image_processor")
        if not isinstance(nested, dict):
            raise processor.wrong("image_processor", "an object")
        found.append(ConfigFields(nested, f"image_processor of {processor.origin}"))
    if not found:
        raise CheckpointError(
            f"{files} has no preprocessor_config.json, and no processor_config.json with an image_processor, which say "
            "how frames are resized; copy the CLIP model's own beside its config.json"
        )
    return found


def _preprocessing(fields: ConfigFields, image_size: int) -> ShortestEdgeCrop:
    for step in ("do_center_crop", "do_rescale", "do_normalize"):
        if fields.values.get(step, True) is not True:
            raise fields.wrong(step, "true")
    resizes = fields.values.get("do_resize", True)
    if not isinstance(resizes, bool):
        raise fields.wrong("do_resize", "true or false")
    height = _edge(fields, "crop_size", "height")
    width = _edge(fields, "crop_size", "width")
    if (height, width) != (image_size, image_size):
        raise fields.wrong("crop_size", f"the tower's image_size = {image_size}")
    shortest = _edge(fields, "size", "shortest_edge") if resizes else 0
    if resizes and shortest < image_size:
        raise fields.wrong("size", f"at least the crop's {image_size} pixels")
    return ShortestEdgeCrop(
        shortest_edge=shortest,
        crop_height=height,
        crop_width=width,
        resample=fields.integer("resample", 0, 5, 3),
        rescale=fields.number("rescale_factor", 1e-9, 1e9, 1 / 255),
        mean=fields.triple("image_mean", -1e9, ShortestEdgeCrop.mean),
        std=fields.triple("image_std", 1e-9, ShortestEdgeCrop.std),
    )


def _edge(fields: ConfigFields, name: str, edge: str) -> int:
    """Return a size in pixels: one integer in old files, a dict with `edge` in new ones."""
    value: Any = fields.get(name)
    if value is None:
        value = 224  # the default of CLIP's image processor, whatever its tower takes
    pixels = value.get(edge) if isinstance(value, dict) else value
    if type(pixels) is not int or not 1 <= pixels <= 1 << 14:
        raise fields.wrong(name, f"pixels, as 336 or {{{edge!r}: 336}}")
    return pixels
