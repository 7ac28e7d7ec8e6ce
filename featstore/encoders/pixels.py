"""Bytes of frames to the values that transformers' processors on torchvision make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from featstore.preprocessing import ExactResize, ShortestEdgeCrop, VideoPixelBudget


def pixel_table(pre: ExactResize | ShortestEdgeCrop | VideoPixelBudget) -> torch.Tensor:
    """Return (256, 3) float32, the value of each byte in each channel, as transformers rounds it on torchvision."""
    import torch

    mean, std = (torch.tensor(values) * (1.0 / pre.rescale) for values in (pre.mean, pre.std))
    return (torch.arange(256, dtype=torch.float32)[:, None] - mean) / std


def normalize(frames: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return (..., 3, H, W) values of (..., H, W, 3) bytes."""
    import torch

    return torch.stack([table[:, c][frames[..., c].int()] for c in range(3)], dim=-3)
