"""LongVA's vision modules: CLIP tower, projector and pooling, in the order and arithmetic of the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

if TYPE_CHECKING:
    from featstore.encoders.longva.checkpoint import VisionConfig


class VisionModel(nn.Module):
    """Pixels in, features out; its parameters are called as in `weights.needed_shapes`."""

    def __init__(self, vision: VisionConfig) -> None:
        """Build the modules; under `torch.device("meta")` this takes no memory."""
        super().__init__()
        tower = vision.tower
        clip = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=tower.hidden_size,
                intermediate_size=tower.intermediate_size,
                num_hidden_layers=vision.layers,  # what lies above the selected hidden state never runs
                num_attention_heads=tower.num_attention_heads,
                image_size=tower.image_size,
                patch_size=tower.patch_size,
                hidden_act=tower.hidden_act,
                layer_norm_eps=tower.layer_norm_eps,
            )
        )
        clip.set_attn_implementation("sdpa")
        # transformers up to 5.17 wraps the tower once more.
        self.vision_model = getattr(clip, "vision_model", clip)
        self.vision_model.post_layernorm = (
            nn.Identity()
        )  # applied to the class token, which is not used
        self.mm_projector = _projector(vision)
        self.config = vision

    def forward(self, pixels: torch.Tensor, *, image: bool = False) -> torch.Tensor:
        """Return features (B, T, D) of normalised pixels (B, 3, S, S).

        image: they are tiles of one. The original pools those by averages of 2 x 2, whatever its config says of videos.
        """
        hidden = self.vision_model(pixel_values=pixels).last_hidden_state  # (B, 1 + N, C)
        patches = hidden[:, 1:]  # without the class token
        mode, stride = ("average", 2) if image else (self.config.pool_mode, self.config.pool_stride)
        return self._pool(self.mm_projector(patches), mode, stride)  # -> (B, N, D) -> (B, T, D)

    def _pool(self, features: torch.Tensor, mode: str, stride: int) -> torch.Tensor:
        # get_2dPool of the LongVA repository, longva/model/llava_arch.py: the projector comes first.
        if stride == 1:
            return features
        side = self.config.tower.side
        count, _, dim = features.shape
        grid = features.view(count, side, side, dim).permute(0, 3, 1, 2).contiguous()
        pool = nn.functional.avg_pool2d if mode == "average" else nn.functional.max_pool2d
        pooled: torch.Tensor = pool(grid, stride)  # (B, D, 24, 24) -> (B, D, 12, 12)
        return pooled.flatten(2).transpose(1, 2).contiguous()


def build_model(
    vision: VisionConfig, weights: dict[str, torch.Tensor], device: torch.device
) -> VisionModel:
    """Return the model with `weights` as its parameters, as they are: on their device, in their dtype."""
    with torch.device("meta"):
        model = VisionModel(vision)
    embeddings = model.vision_model.embeddings
    positions = torch.arange(embeddings.num_positions, device=device)
    embeddings.position_ids = positions.expand((1, -1))  # the one buffer, and in no checkpoint
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _projector(vision: VisionConfig) -> nn.Module:
    # build_vision_projector of the LongVA repository, longva/model/multimodal_projector/builder.py; GELU is exact.
    dim, out = vision.tower.hidden_size, vision.hidden_dim
    if vision.projector == "identity":
        return nn.Identity()
    if vision.projector == "linear":
        return nn.Linear(dim, out)
    layers: list[nn.Module] = [nn.Linear(dim, out)]
    for _ in range(1, vision.projector_depth):
        layers += [nn.GELU(), nn.Linear(out, out)]
    return nn.Sequential(*layers)
