"""Qwen-VL's vision modules: transformers' own towers, and the patches and rows around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3

from featstore.encoders.assembly import assemble
from featstore.encoders.pixels import normalize

if TYPE_CHECKING:
    from featstore.encoders.video_checkpoint import VideoCheckpoint

_TOWERS: dict[str, Any] = {
    "qwen2_5_vl": qwen2_5.Qwen2_5_VisionTransformerPretrainedModel,
    "qwen3_vl": qwen3.Qwen3VLVisionModel,
}


def build_tower(
    checkpoint: VideoCheckpoint, weights: dict[str, torch.Tensor], device: torch.device
) -> Any:
    """Return transformers' tower with given weights; CheckpointError if they are not those of the config."""
    cls = _TOWERS[checkpoint.model_type]
    config = cls.config_class(**checkpoint.vision.values)
    small = cls.config_class(**{**checkpoint.vision.values, "depth": 0})
    return assemble(cls, config, small, weights, device, checkpoint.files)


def patches(frames: torch.Tensor, table: torch.Tensor, patch: int, merge: int) -> torch.Tensor:
    """Return the flat patches of units (B, T, H, W, 3) uint8, in the order of transformers' video processors."""
    units, pair, height, width, _ = frames.shape
    pixels = normalize(frames, table)  # (B, T, H, W, 3) -> (B, T, 3, H, W)
    tall, wide = height // (patch * merge), width // (patch * merge)
    cells = pixels.view(units, pair, 3, tall, merge, patch, wide, merge, patch)
    # (B, T, C, h, m, p, w, m, p) -> (B, h, w, m, m, C, T, p, p)
    cells = cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return cells.reshape(-1, 3 * pair * patch * patch)


def rows(
    model: Any, pixels: torch.Tensor, units: int, size: tuple[int, ...], patch: int
) -> torch.Tensor:
    """Return the features (B, tokens, planes * D) of patches: the tower's output, then its DeepStack levels."""
    grid = torch.tensor([[units, size[0] // patch, size[1] // patch]], device=pixels.device)
    found = model(pixels, grid_thw=grid, return_dict=True)
    planes = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
    return torch.cat(planes, dim=-1).view(units, -1, len(planes) * planes[0].shape[-1])
