"""Features to a tensor on any device."""

from __future__ import annotations

import contextlib
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from featstore.torch.forked import about_to_compute
from featstore.torch.kernels.dequantize import dequantize_into
from featstore.torch.kernels.eager import part
from featstore.torch.kernels.quantize import TORCH_DTYPES
from featstore.torch.upload.cudart import copy_stream, find_device, numbered
from featstore.torch.upload.staged import alias
from featstore.torch.upload.transfer import WAYS, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from featstore.records.features import Features

# Of memory that is not page-locked CUDA copies so many bytes without waiting for what is before them on the stream.
_ASYNCHRONOUS = 64 << 10


def to_tensor(
    features: Features,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
    way: str = "auto",
) -> torch.Tensor:
    """Return the features as a new tensor (rows, width), which shares no memory with the store.

    int8 crosses to the device as int8 and is dequantized there: the float32 product `value * scale`, rounded once to
    `dtype`, with the same bits on every device; of two scales the product is rounded to float32 first. A compressed
    payload is decompressed on the CPU.

    >>> import featstore
    >>> x = to_tensor(featstore.get("vision_cache", "demo", "water"))
    >>> x.shape, x.dtype
    (torch.Size([16, 8]), torch.bfloat16)

    Args:
        features: as a look-up in the store returns them.
        device: where the tensor goes, the CPU by default.
        dtype: its floating-point dtype.
        out: a tensor to fill and return instead of a new one; it decides device and dtype.
        way: how bytes reach a GPU: `auto`, `registered`, `staged` or `pageable`; see featstore.torch.explain.

    Returns:
        The tensor (rows, width); `out` itself if it is given.

    Raises:
        RecordError: a compressed payload is damaged.
        FeatstoreError: the device is not available.
        TypeError: `dtype` is no torch.dtype.
        ValueError: it is of integers, `out` has another shape or overlaps itself, or there is no such way.
    """
    if way not in WAYS:
        raise ValueError(f"way is {way!r}; use one of {', '.join(WAYS)}")
    check_dtype(dtype if out is None else out.dtype)
    if out is not None and tuple(out.shape) != features.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, the features have {features.shape}")
    if out is not None and _overlaps_itself(out):
        raise ValueError(
            f"out has strides {out.stride()}, with which several of its elements are one; pass a tensor that "
            "overlaps itself nowhere"
        )
    place = find_device(device) if out is None else out.device
    about_to_compute(place)
    kind = TORCH_DTYPES[features.header.storage.values]
    if place.type == "cuda":
        place = numbered(place)
        with torch.cuda.device(place):  # memory is registered and kernels are compiled for that GPU
            return _put(features, out, place, dtype, kind, way)
    stored = alias(features.data.view(np.uint8)).view(
        kind
    )  # may fail: before memory is allocated for `out`
    if out is None:
        out = torch.empty(features.shape, dtype=dtype, device=place)
    if place.type == "cpu":
        _fill(out, stored, tuple(torch.from_numpy(scale.copy()) for scale in features.scales))
    else:
        out.copy_(to_tensor(features, dtype=out.dtype))
    return out


def _overlaps_itself(out: torch.Tensor) -> bool:
    """Return whether elements of `out` share memory; also of layouts that interleave, which nobody needs."""
    extent = 0
    for stride, size in sorted(zip(out.stride(), out.shape, strict=True)):
        if size > 1 and stride <= extent:
            return True
        extent += stride * (size - 1)
    return False


def check_dtype(dtype: object) -> None:
    """Raise TypeError if `dtype` is no torch.dtype, ValueError if it is none of floating point."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype is {dtype!r}; pass a torch.dtype, such as torch.bfloat16")
    if not dtype.is_floating_point:
        raise ValueError(
            f"features are floats, and {dtype} would cut them; use a floating-point dtype"
        )


def _put(
    features: Features,
    out: torch.Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
    kind: torch.dtype,
    way: str,
) -> torch.Tensor:
    """Return `out`, or a new tensor, filled on the GPU `device`; the features' memory is read when it returns."""
    values: NDArray[np.uint8] = features.data.reshape(-1).view(np.uint8)
    ours, copies = torch.cuda.current_stream(device), copy_stream(device)
    owner = features.owner if features.header.storage.codec == "raw" else None
    with torch.cuda.stream(copies):
        # Memory of the copy stream, so that copies do not wait for kernels of the caller.
        stored = torch.empty(features.shape, dtype=kind, device=device)
        uploading = upload(values, stored.view(-1).view(torch.uint8), owner=owner, way=way)
        try:
            # The first is on its way while the rest is prepared.
            pieces = chain([next(uploading)], uploading)
            scales = tuple(_to_gpu(scale, device) for scale in features.scales)
            ours.wait_event(copies.record_event())
            if out is None:
                with torch.cuda.stream(ours):
                    out = torch.empty(features.shape, dtype=dtype, device=device)
            _fill_piece_by_piece(out, stored, scales, pieces, ours)
        finally:
            uploading.close()  # a traceback would keep it, and the slots that other uploads wait for
            crossed = copies.record_event()
            copies.wait_stream(ours)
            crossed.synchronize()  # from here on the caller may drop the map
    return out


def _to_gpu(scale: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """Copy a scale on the current stream, without waiting for what is on its way there before."""
    here = alias(scale)
    if scale.nbytes > _ASYNCHRONOUS:
        with contextlib.suppress(RuntimeError):  # no page-locked memory is available
            here = torch.empty_like(here, pin_memory=True).copy_(here)
    return here.to(device, non_blocking=True)


def _fill_piece_by_piece(
    out: torch.Tensor,
    stored: torch.Tensor,
    scales: tuple[torch.Tensor, ...],
    pieces: Iterator[tuple[int, torch.cuda.Event]],
    stream: torch.cuda.Stream,
) -> None:
    """Dequantize the rows of each piece on `stream` while the next one crosses."""
    row_bytes = stored.shape[1] * stored.itemsize
    done, waiting = 0, next(pieces, None)
    while waiting is not None:
        crossed, event = waiting
        waiting = next(pieces, None)  # started before this one is dequantized
        rows = slice(done, crossed // row_bytes)
        if rows.start < rows.stop:
            with torch.cuda.stream(stream):
                stream.wait_event(event)
                _fill(out[rows], stored[rows], part(scales, rows))
            done = rows.stop


def _fill(out: torch.Tensor, stored: torch.Tensor, scales: tuple[torch.Tensor, ...]) -> None:
    if scales:
        dequantize_into(out, stored, scales)
    else:
        out.copy_(stored)
