"""Stored int8 to floats on the device: one pass over the values where Triton can compile, blocks elsewhere.

Either way the float32 product `value * scale`, rounded once: the same bits on every device.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from featstore.torch.blocks import blocks, part

log = logging.getLogger("featstore.torch")


def dequantize_into(out: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> None:
    """Write `stored` (N, D) int8 times `scale`, float32 that broadcasts over it, to `out` (N, D); on one device."""
    if out.device.type == "cuda" and out.is_contiguous():
        kernel = _kernel()
        if kernel is not None:
            kernel(out, stored, scale)
            return
    for rows in blocks(stored):
        out[rows].copy_(stored[rows].float().mul_(part(scale, rows)))


@functools.cache
def _kernel() -> Any:
    """Return the fused kernel, or None where it cannot be compiled: no Triton, no C compiler."""
    try:
        from featstore.torch.kernel import launch

        probe = torch.ones((2, 2), dtype=torch.int8, device="cuda")
        launch(torch.empty((2, 2), device="cuda"), probe, torch.ones((1, 2), device="cuda"))
    except Exception as exc:  # Triton fails in as many ways as there are toolchains
        log.info("dequantizing without the fused kernel: %s", exc)
        return None
    return launch
