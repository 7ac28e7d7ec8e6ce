"""What a LongVA checkpoint's config says about vision; no weight is read and torch is not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.checkpoints.config_fields import ConfigFields, read_json
from featstore.checkpoints.files import Files, open_files
from featstore.encoders.longva.clip import ClipModel, TowerConfig, find_clip
from featstore.encoders.longva.config import REMEDY, read_fields, takes_named_tower
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from featstore.spec import Setting

MODEL_TYPES = ("llava_qwen", "qwen2")  # LongVA's own name, and what some of its checkpoints carry
# With one of these, transformers adds an adapter to the weights, which may change the vision side.
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class VisionConfig:
    """How LongVA makes features: tower, hidden state without its class token, projector, pooling, in this order.

    Attributes:
        tower: the numbers of the CLIP tower, all of its layers.
        tower_name: what the config calls it.
        select_layer: index into the hidden states, of which there is one before the first layer and one after each.
        projector: `linear`, `mlp2x_gelu` (any depth) or `identity`.
        hidden_dim: width of the features, the language model's.
        pool_mode: `average` or `max`.
        pool_stride: side of the pooled squares in patches; 1 pools nothing.
    """

    tower: TowerConfig
    tower_name: str
    select_layer: int
    projector: str
    hidden_dim: int
    pool_mode: str
    pool_stride: int

    @property
    def layers(self) -> int:
        """Return the number of layers that run: those below the selected hidden state."""
        states = self.tower.num_hidden_layers + 1
        return self.select_layer if self.select_layer >= 0 else states + self.select_layer

    @property
    def projector_depth(self) -> int:
        """Return the number of linear layers in the projector."""
        if self.projector == "identity":
            return 0
        return 1 if self.projector == "linear" else int(self.projector[3:].partition("x")[0])

    @property
    def pooled_side(self) -> int:
        """Return the number of tokens along one side of a frame."""
        return self.tower.side // self.pool_stride  # like torch's pooling: a remainder is dropped

    @property
    def tokens_per_frame(self) -> int:
        """Return the number of tokens a frame becomes: 24 x 24 patches pooled 2 x 2 are 144."""
        return self.pooled_side**2

    @property
    def pooling(self) -> str:
        """Return `average:2`, `max:2` or `none`."""
        return f"{self.pool_mode}:{self.pool_stride}" if self.pool_stride > 1 else "none"

    @property
    def settings(self) -> dict[str, Setting]:
        """Return everything beside the weights, the dtype and the shape that determines features, by name.

        Of the tower's layers those that run are counted.
        """
        tower = self.tower
        return {
            "select_layer": self.select_layer,
            "select_feature": "patch",
            "projector": self.projector,
            "pooling": self.pooling,
            "tower.act": tower.hidden_act,
            "tower.eps": tower.layer_norm_eps,
            "tower.heads": tower.num_attention_heads,
            "tower.hidden": tower.hidden_size,
            "tower.image": tower.image_size,
            "tower.intermediate": tower.intermediate_size,
            "tower.layers": self.layers,
            "tower.patch": tower.patch_size,
        }


@dataclass(frozen=True)
class Checkpoint:
    """A LongVA checkpoint.

    Attributes:
        files: its files.
        config: its config.json.
        clip: the CLIP model that the config names.
        vision: how it makes features.
        named_tower: whether the tower's weights are that CLIP model's even if the checkpoint has its own.
    """

    files: Files
    config: ConfigFields
    clip: ClipModel
    vision: VisionConfig
    named_tower: bool


def read_checkpoint(
    checkpoint: str | Path, *, vision_tower: str | Path | None = None
) -> Checkpoint:
    """Read the configs of a checkpoint.

    Args:
        checkpoint: a folder, or a name on the Hub.
        vision_tower: a CLIP folder or name to use in place of the one that config.json names.

    Raises:
        CheckpointError: the checkpoint is not LongVA's, or needs something featstore does not do.
    """
    files = open_files(str(checkpoint))
    config = read_json(files, "config.json")
    if config is None:
        _refuse_adapters(files)  # often all that a folder holds
        raise CheckpointError(
            f"{files} has no config.json; expected the folder of a LongVA checkpoint, with config.json and safetensors"
        )
    _check_is_longva(config)
    _refuse_adapters(files)
    values = read_fields(config)
    named_tower = takes_named_tower(config, values)
    name = values["mm_vision_tower"]
    clip = find_clip(name, files, None if vision_tower is None else str(vision_tower))
    return Checkpoint(files, config, clip, _vision(config, values, clip.tower), named_tower)


def _check_is_longva(config: ConfigFields) -> None:
    model_type = config.get("model_type")
    if model_type in MODEL_TYPES and config.get("mm_vision_tower"):
        return
    tower = "an" if config.get("mm_vision_tower") else "no"
    raise CheckpointError(
        f"{config.origin} has model_type {model_type!r} and {tower} mm_vision_tower; a LongVA checkpoint has "
        f"{' or '.join(map(repr, MODEL_TYPES))} and an mm_vision_tower: give one, such as lmms-lab/LongVA-7B-DPO"
    )


def _refuse_adapters(files: Files) -> None:
    for name in ADAPTERS:
        if files.find(name) is not None:
            raise CheckpointError(
                f"{files} holds an adapter, {name}, which featstore does not apply; merge it into its base model with "
                "peft's merge_and_unload and use the result, or take it out of the folder if it is not to be used"
            )


def _vision(config: ConfigFields, values: dict[str, Any], tower: TowerConfig) -> VisionConfig:
    dim, layers = tower.hidden_size, tower.num_hidden_layers
    if values["mm_hidden_size"] not in (None, dim):
        raise config.wrong("mm_hidden_size", f"the tower's hidden_size = {dim}", REMEDY)
    if values["mm_projector_type"] == "identity" and values["hidden_size"] != dim:
        raise config.wrong(
            "hidden_size", f"the tower's {dim} with the projector 'identity'", REMEDY
        )
    if not -layers - 1 <= values["mm_vision_select_layer"] <= layers:
        raise config.wrong("mm_vision_select_layer", f"from {-layers - 1} to {layers}", REMEDY)
    if values["mm_spatial_pool_stride"] > tower.side:
        raise config.wrong("mm_spatial_pool_stride", f"from 1 to {tower.side}", REMEDY)
    return VisionConfig(
        tower=tower,
        tower_name=values["mm_vision_tower"],
        select_layer=values["mm_vision_select_layer"],
        projector=values["mm_projector_type"],
        hidden_dim=values["hidden_size"],
        pool_mode=values["mm_spatial_pool_mode"],
        pool_stride=values["mm_spatial_pool_stride"],
    )
