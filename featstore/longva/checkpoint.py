"""What a LongVA checkpoint's config says about seeing: pure numbers, no weight is read and no torch loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.errors import CheckpointError
from featstore.longva.clip import Clip, TowerConfig, find_clip
from featstore.longva.files import Fields, Files, open_files, read_json

if TYPE_CHECKING:
    from pathlib import Path

MODEL_TYPES = ("llava_qwen", "qwen2")  # LongVA's own name, and what some of its checkpoints carry
MAX_PROJECTOR_DEPTH = 16


@dataclass(frozen=True)
class VisionConfig:
    """How LongVA makes features: tower, hidden state, projector, pooling, in this order.

    tower: the numbers of the CLIP tower, all of its layers.
    tower_name: what the config calls it.
    select_layer: index into the hidden states, of which there is one before the first layer and one after each.
    select_feature: `patch`, or `cls_patch` with the class token.
    projector: `linear`, `mlp2x_gelu` (any depth) or `identity`.
    hidden_dim: width of the features, the language model's.
    pool_mode, pool_stride: `average` or `max` over squares of that many patches; stride 1 pools nothing.
    """

    tower: TowerConfig
    tower_name: str
    select_layer: int
    select_feature: str
    projector: str
    hidden_dim: int
    pool_mode: str
    pool_stride: int

    @property
    def layers(self) -> int:
        """Return how many of the tower's layers run: those below the selected hidden state."""
        states = self.tower.num_hidden_layers + 1
        return self.select_layer if self.select_layer >= 0 else states + self.select_layer

    @property
    def projector_depth(self) -> int:
        """Return the number of linear layers in the projector."""
        if self.projector == "identity":
            return 0
        return 1 if self.projector == "linear" else int(self.projector[3:].partition("x")[0])

    @property
    def tokens_per_frame(self) -> int:
        """Return the number of tokens a frame becomes: 24 x 24 patches pooled 2 x 2 are 144."""
        side = (
            self.tower.side // self.pool_stride
        )  # as torch's pooling: a rest at the edge is dropped
        return side * side + (self.select_feature == "cls_patch")

    @property
    def pooling(self) -> str:
        """Return `average:2`, `max:2` or `none`."""
        return f"{self.pool_mode}:{self.pool_stride}" if self.pool_stride > 1 else "none"

    @property
    def architecture(self) -> str:
        """Return the tower's numbers as one line of `name=value`, sorted; layers are those that run."""
        tower = self.tower
        numbers = {
            "act": tower.hidden_act,
            "eps": f"{tower.layer_norm_eps:g}",
            "heads": tower.num_attention_heads,
            "hidden": tower.hidden_size,
            "image": tower.image_size,
            "intermediate": tower.intermediate_size,
            "layers": self.layers,
            "patch": tower.patch_size,
        }
        return " ".join(f"{name}={numbers[name]}" for name in sorted(numbers))


@dataclass(frozen=True)
class Checkpoint:
    """A LongVA checkpoint: its files, the CLIP model its config names, and how it sees."""

    files: Files
    clip: Clip
    vision: VisionConfig


def read_checkpoint(
    checkpoint: str | Path, *, vision_tower: str | Path | None = None
) -> Checkpoint:
    """Read the configs of `checkpoint`, a folder or a name on the Hub.

    vision_tower: a CLIP folder or name to use for the one that config.json names.
    Raises CheckpointError where it is not LongVA's, or does something featstore does not.
    """
    files = open_files(str(checkpoint))
    config = read_json(files, "config.json")
    if config is None:
        raise CheckpointError(
            f"{files} has no config.json; expected a LongVA checkpoint's folder, with config.json and safetensors"
        )
    _check_is_longva(config)
    name = config.text("mm_vision_tower")
    clip = find_clip(name, files, None if vision_tower is None else str(vision_tower))
    return Checkpoint(files, clip, _vision(config, clip.tower, name))


def _check_is_longva(config: Fields) -> None:
    model_type = config.get("model_type")
    if model_type in MODEL_TYPES and config.get("mm_vision_tower"):
        return
    tower = "an" if config.get("mm_vision_tower") else "no"
    raise CheckpointError(
        f"{config.origin} has model_type {model_type!r} and {tower} mm_vision_tower; a LongVA checkpoint has "
        f"{' or '.join(map(repr, MODEL_TYPES))} and an mm_vision_tower: give one, such as lmms-lab/LongVA-7B-DPO"
    )


def _vision(config: Fields, tower: TowerConfig, name: str) -> VisionConfig:
    for switch in ("s2", "mm_resampler_type"):
        if config.get(switch):
            raise config.wrong(switch, "none: featstore encodes without it")
    layers = tower.num_hidden_layers
    projector = config.text("mm_projector_type", "linear")
    if not re.fullmatch(r"linear|identity|mlp[1-9]\d?x_gelu", projector, re.ASCII):
        raise config.wrong("mm_projector_type", "'linear', 'mlp2x_gelu' (any depth) or 'identity'")
    config.integer("mm_hidden_size", tower.hidden_size, tower.hidden_size, tower.hidden_size)
    hidden_dim = tower.hidden_size
    if projector != "identity":
        hidden_dim = config.integer("hidden_size", 1, 1 << 20)
    vision = VisionConfig(
        tower=tower,
        tower_name=name,
        select_layer=config.integer("mm_vision_select_layer", -layers - 1, layers),
        select_feature=config.text("mm_vision_select_feature", "patch", ("patch", "cls_patch")),
        projector=projector,
        hidden_dim=hidden_dim,
        pool_mode=config.text("mm_spatial_pool_mode", "average", ("average", "max")),
        pool_stride=max(1, config.integer("mm_spatial_pool_stride", 0, tower.side, 1)),
    )
    if vision.projector_depth > MAX_PROJECTOR_DEPTH:
        raise config.wrong("mm_projector_type", f"at most {MAX_PROJECTOR_DEPTH} linear layers")
    if vision.pool_stride > 1 and vision.select_feature == "cls_patch":
        # LongVA's get_2dPool views the tokens as a square, which they are not with the class token among them.
        raise config.wrong("mm_vision_select_feature", "'patch' where mm_spatial_pool_stride pools")
    return vision
