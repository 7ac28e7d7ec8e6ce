"""LongVA's vision side on CUDA in half precision: the steps of `modeling`, the memory-bound ones fused.

Matrix products and attention are torch's own. The patch convolution is a product, too, whose sums have another order,
as those of the layer norms have: features differ from those of `modeling` by what another batch size changes, a
relative L2 of 1e-3 in fp16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from featstore.torch.kernels.dequantize import fused_passes

if TYPE_CHECKING:
    from featstore.encoders.longva.modeling import VisionModel

_ALIGNED = 8  # values: rows of a product's factors that begin elsewhere cost it a slower kernel


class FusedVision:
    """A `VisionModel` from frames to features, on the GPU that its weights are on."""

    def __init__(self, model: VisionModel, table: torch.Tensor) -> None:
        """Take the model, and the table (3, 256) of what becomes of each value of a channel."""
        from featstore.torch.kernels import vision

        self._kernels: Any = vision
        self._model = model
        self._table = table.contiguous()
        embeddings: Any = model.vision_model.embeddings
        kernel = embeddings.patch_embedding.weight  # (C, 3, P, P)
        self._patch = kernel.shape[-1]
        flat = kernel.flatten(1)
        padding = -flat.shape[1] % _ALIGNED
        self._product = functional.pad(flat, (0, padding)).contiguous()
        positions = embeddings.position_embedding.weight  # (1 + N, C)
        self._class = embeddings.class_embedding + positions[0]
        self._positions = positions[1:]

    def __call__(self, frames: torch.Tensor, *, image: bool = False) -> torch.Tensor:
        """Return the features (B, T, D) of frames (B, H, W, 3) uint8; see `VisionModel.forward`."""
        count, tower = len(frames), self._model.vision_model
        rows = self._kernels.patches(
            frames.contiguous(), self._table, self._patch, self._product.shape[1]
        )
        embedded = rows @ self._product.T  # (B * N, C)
        hidden = embedded.new_empty((count, len(self._positions) + 1, embedded.shape[1]))
        hidden[:, 0] = self._class
        torch.add(embedded.view(count, -1, embedded.shape[1]), self._positions, out=hidden[:, 1:])
        hidden = tower.pre_layrnorm(hidden)
        hidden = self._layers(hidden, list(tower.encoder.layers))
        features = self._model.mm_projector(hidden[:, 1:])
        return self._model.pool(features, image=image, average=self._average)

    def _layers(self, hidden: torch.Tensor, layers: list[Any]) -> torch.Tensor:
        if not layers:
            return hidden
        add_layer_norm = self._kernels.add_layer_norm
        normed = layers[0].layer_norm1(hidden)
        for i, layer in enumerate(layers):
            hidden, normed = add_layer_norm(
                hidden, _attend(layer.self_attn, normed), layer.layer_norm2
            )
            mlp = layer.mlp
            update = mlp.fc2(self._kernels.quick_gelu(mlp.fc1(normed)))
            if i + 1 == len(layers):
                return hidden.add_(update)
            hidden, normed = add_layer_norm(hidden, update, layers[i + 1].layer_norm1)
        raise AssertionError("unreachable")

    def _average(self, features: torch.Tensor, side: int) -> torch.Tensor:
        return self._kernels.average_2x2(features.contiguous(), side)  # type: ignore[no-any-return]


def fused_vision(model: VisionModel, table: torch.Tensor) -> FusedVision | None:
    """Return the model with fused steps, None if it cannot have them: no GPU, no Triton, another activation."""
    suits = (
        table.device.type == "cuda"
        and table.dtype in (torch.float16, torch.bfloat16)
        and model.config.tower.hidden_act == "quick_gelu"
    )
    return FusedVision(model, table) if suits and fused_passes() is not None else None


def _attend(attention: Any, normed: torch.Tensor) -> torch.Tensor:
    count, tokens, width = normed.shape
    shape = (count, tokens, attention.num_heads, attention.head_dim)
    queries, keys, values = (
        product(normed).view(shape).transpose(1, 2)
        for product in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = functional.scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
    return attention.out_proj(mixed.transpose(1, 2).reshape(count, tokens, width))  # type: ignore[no-any-return]
