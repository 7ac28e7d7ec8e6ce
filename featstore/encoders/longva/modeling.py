"""LongVA's vision modules: CLIP tower, projector and pooling, in the order and arithmetic of the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from featstore.encoders.longva.checkpoint import VisionConfig


class VisionModel(nn.Module):
    """Pixels in, features out; `weights.needed_shapes` names its parameters."""

    def __init__(self, vision: VisionConfig) -> None:
        """Build the modules; under `torch.device("meta")` this takes no memory.

        Args:
            vision: the numbers of the model.
        """
        super().__init__()
        tower = vision.tower
        clip = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=tower.hidden_size,
                intermediate_size=tower.intermediate_size,
                num_hidden_layers=vision.layers,  # those above the selected hidden state never run
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
        self.vision_model.post_layernorm = nn.Identity()  # it is for the class token, unused here
        self.mm_projector = _projector(vision)
        self.config = vision

    def forward(self, pixels: torch.Tensor, *, image: bool = False) -> torch.Tensor:
        """Return the features (B, T, D) of frames.

        Args:
            pixels: (B, 3, S, S), normalized, in the model's dtype.
            image: they are tiles of an image, which the original pools by averages of 2 x 2, whatever its config says
                of videos.
        """
        hidden = self.vision_model(pixel_values=pixels).last_hidden_state  # (B, 1 + N, C)
        patches = hidden[:, 1:]  # without the class token
        return self.pool(self.mm_projector(patches), image=image)  # -> (B, N, D) -> (B, T, D)

    def pool(
        self,
        features: torch.Tensor,
        *,
        image: bool = False,
        average: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the features (B, T, D) that are kept of a frame's patches (B, N, D).

        Args:
            features: projected.
            image: as for `forward`.
            average: computes the averages of 2 x 2 neighbours of the second axis, a square of the given side.
        """
        # get_2dPool of the LongVA repository, longva/model/llava_arch.py: the projector comes first.
        mode, stride = ("average", 2) if image else (self.config.pool_mode, self.config.pool_stride)
        if stride == 1:
            return features
        side = self.config.tower.side
        if average is not None and (mode, stride) == ("average", 2):
            return average(features, side)
        count, _, dim = features.shape
        grid = features.view(count, side, side, dim).permute(0, 3, 1, 2).contiguous()
        pool = nn.functional.avg_pool2d if mode == "average" else nn.functional.max_pool2d
        pooled: torch.Tensor = pool(grid, stride)  # (B, D, 24, 24) -> (B, D, 12, 12)
        return pooled.flatten(2).transpose(1, 2).contiguous()


def build_model(
    vision: VisionConfig, weights: dict[str, torch.Tensor], device: torch.device
) -> VisionModel:
    """Return the model with given parameters.

    Args:
        vision: the numbers of the model.
        weights: name -> tensor, used without a copy.
        device: the device the tensors are on.
    """
    with torch.device("meta"):
        model = VisionModel(vision)
    embeddings = model.vision_model.embeddings
    positions = torch.arange(embeddings.num_positions, device=device)
    embeddings.position_ids = positions.expand((1, -1))  # the only buffer, and in no checkpoint
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
