"""LLaVA-OneVision's vision modules: transformers' own model, without its language side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import LlavaOnevisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from featstore.encoders.assembly import assemble

if TYPE_CHECKING:
    import torch

    from featstore.encoders.video_checkpoint import VideoCheckpoint


class VisionOnly(LlavaOnevisionModel):  # type: ignore[no-untyped-call]
    """transformers' model, whose language side is left out as soon as it is built."""

    def __init__(self, config: Any) -> None:
        """Build all, with a language side of no size, and drop that."""
        super().__init__(config)
        self.language_model = None


def build_model(
    checkpoint: VideoCheckpoint, weights: dict[str, torch.Tensor], device: torch.device
) -> Any:
    """Return the tower and the projector with given weights; CheckpointError if they are not those of the config."""
    whole, small = (_config(checkpoint, layers=layers) for layers in (None, 0))
    return assemble(VisionOnly, whole, small, weights, device, checkpoint.files)


def _config(checkpoint: VideoCheckpoint, *, layers: int | None) -> Any:
    """Return the config with the least of a language side, and so many layers in the tower, None for its own."""
    values = checkpoint.config.values
    vision = {**checkpoint.vision.values}
    if layers is not None:
        vision["num_hidden_layers"] = layers
    text = {**values.get("text_config", {}), "num_hidden_layers": 0, "vocab_size": 1}
    text |= dict.fromkeys(("layer_types", "bos_token_id", "eos_token_id", "pad_token_id"))
    return LlavaOnevisionConfig(**{**values, "vision_config": vision, "text_config": text})


def pooled(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the pooled tokens (B, tokens, D) of pixels (B, 3, H, W): `get_video_features`, each frame by itself."""
    config = model.config
    found = model.get_video_features(
        pixels[None],
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        return_dict=True,
    ).pooler_output  # (1, B * tokens + 1, D), the newline last
    rows: torch.Tensor = found[0, :-1].reshape(len(pixels), -1, found.shape[-1])
    return rows
