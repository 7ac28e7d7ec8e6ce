"""Features that no model can answer from: not finite, or beyond the range of the dtype that the model computes in."""

from __future__ import annotations

import torch

from featstore.errors import NotFinite
from featstore.torch.kernels.quantize import TORCH_DTYPES

_WIDER = {"fp16": "bf16 or fp32", "bf16": "fp32"}


def fits(computed: str, dtype: torch.dtype) -> bool:
    """Return whether `dtype` holds every feature that was computed in fp16, bf16 or fp32."""
    return torch.finfo(dtype).max >= torch.finfo(TORCH_DTYPES[computed]).max


def refuse_not_finite(features: torch.Tensor, name: str) -> None:
    """Raise NotFinite if features that were given are NaN or infinite; the message calls them `name`."""
    count = _not_finite(features)
    if count:
        raise NotFinite(
            f"{name}: {count} of {features.numel()} values are NaN or infinite, all must be finite",
            remedy="give those that an encoder made",
        )


def refuse_too_large(features: torch.Tensor, name: str) -> None:
    """Raise NotFinite if features, finite before, are not in the dtype they were converted to."""
    count = _not_finite(features)
    if count:
        dtype = {kind: name for name, kind in TORCH_DTYPES.items()}[features.dtype]
        wider = _WIDER.get(dtype)
        raise NotFinite(
            f"{name}: {count} of {features.numel()} values do not fit {dtype}, whose largest number is "
            f"{torch.finfo(features.dtype).max:g}",
            remedy=wider
            and f"load the model in {wider}: dtype=, with featstore vlmeval --option dtype=",
        )


def _not_finite(features: torch.Tensor) -> int:
    finite = torch.isfinite(features)
    return 0 if bool(finite.all()) else finite.numel() - int(finite.sum())
