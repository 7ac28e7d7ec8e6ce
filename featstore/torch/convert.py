"""Features to a tensor on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from featstore.torch.dequantize import dequantize_into
from featstore.torch.memory import alias
from featstore.torch.transfer import upload

if TYPE_CHECKING:
    from featstore.record import Features

_STORED = {
    "int8": torch.int8,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def to_tensor(
    features: Features,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
    way: str = "auto",
) -> torch.Tensor:
    """Return the features as a tensor (num_tokens, hidden_dim) of `dtype` on `device`, the CPU by default.

    int8 crosses to the device as int8 and is dequantized there: the float32 product `value * scale`, rounded once to
    `dtype`; the same bits on every device and by every way. out: filled and returned where given; it decides device and
    dtype. way: how bytes reach a GPU, `auto`, `registered`, `staged` or `pageable`; see featstore.torch.explain.
    """
    if out is None:
        out = torch.empty(features.shape, dtype=dtype, device=device)
    elif tuple(out.shape) != features.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, the features have {features.shape}")
    kind = _STORED[features.header.quantization]
    if out.device.type == "cpu":
        _fill(out, alias(features.data.view(np.uint8)).view(kind), _scale(features, out))
        return out
    scale = _scale(
        features, out
    )  # on its way before the values, which the GPU then waits for alone
    stored = torch.empty(features.shape, dtype=kind, device=out.device)
    passed = upload(
        features.data.reshape(-1).view(np.uint8),
        stored.view(-1).view(torch.uint8),
        owner=features.owner if features.header.codec == "raw" else None,
        way=way,
    )
    _fill(out, stored, scale)
    if passed is not None:
        passed.synchronize()  # the caller may let go of the map now
    return out


def _scale(features: Features, out: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(features.scale.copy()).to(out.device, non_blocking=True)


def _fill(out: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> None:
    if stored.dtype == torch.int8:
        dequantize_into(out, stored, scale)
    else:
        out.copy_(stored)
