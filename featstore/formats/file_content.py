"""What a file of features holds, whatever its format: values as they are, their scales, and what it says of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from featstore.errors import QuantizeError
from featstore.formats.facts import record_facts
from featstore.records.storage import STORED_DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from numpy.typing import NDArray

    from featstore.records.features import Features
    from featstore.records.quantization import Scales

_VALUES = {np.dtype(dtype): values for values, dtype in STORED_DTYPES.items()}
_BF16_EXPONENT = 0x7F80


@dataclass(frozen=True)
class Claims:
    """What a `.pt` file of a cache says about its features.

    Args:
        video_path: path of the video's file.
        nframe: number of frames asked for.
        dataset: name of the dataset.
        signature: of the model that made them.
        shape: of the features, one axis for rows or several.
    """

    video_path: str
    nframe: int
    dataset: str
    signature: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FileContent:
    """The values of a file as they are there.

    Args:
        data: values, (rows, width) or with further axes before the last; bfloat16 as its bits, uint16.
        scales: arrays that broadcast over `data`, in the file's order.
        scale_names: what the file says that each is of, `token`, `channel` or `tensor`; empty if it does not.
        is_bf16: whether `data` is known to be bfloat16's bits.
        claims: what a `.pt` file says, None for other formats.
        facts: what featstore wrote of the record into a file of another format, None if it did not.
    """

    data: NDArray[Any]
    scales: tuple[NDArray[Any], ...] = ()
    is_bf16: bool = False
    claims: Claims | None = None
    scale_names: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None

    @property
    def checksum(self) -> str:
        """Return xxh3-128 of the values and scales, 32 hex digits."""
        return checksum_of([self.data, *self.scales])

    def values(self, *, is_bf16: bool = False) -> str:
        """Return what the values are, one of STORED_DTYPES; raise ValueError if they are something else.

        Args:
            is_bf16: integers of 16 bits are those of bfloat16.
        """
        found = _VALUES.get(self.data.dtype)
        if found is None or (found == "bf16" and not (is_bf16 or self.is_bf16)):
            raise ValueError(
                f"its values are {self.data.dtype}; featstore keeps int8 with scales, float16, bfloat16 and float32"
            )
        if found != "int8" and any(bool(np.any(scale != 1)) for scale in self.scales):
            raise ValueError(f"its values are {found} and have a scale; only int8 takes one")
        if found == "int8" and not self.scales:
            raise ValueError(
                "its values are int8 and have no scale, so what they stand for is unknown"
            )
        return found

    def flat_scales(self, values: str) -> tuple[str, Scales]:
        """Return the granularity and the float32 scales of the values as rows; ValueError if they do not fit them."""
        if values != "int8":
            return "none", ()
        names = self.scale_names or ("",) * len(self.scales)
        named = dict(
            _as_rows(scale, self.data.shape, name)
            for scale, name in zip(self.scales, names, strict=True)
        )
        if len(named) != len(self.scales) or (
            len(named) > 1 and set(named) != {"token", "channel"}
        ):
            shapes = ", ".join(str(scale.shape) for scale in self.scales)
            raise ValueError(
                f"its scales have the shapes {shapes}; one, or a token's and a channel's, are read"
            )
        order = [name for name in ("token", "channel", "tensor") if name in named]
        return "_".join(reversed(order)), tuple(named[name] for name in order)


def _as_rows(
    scale: NDArray[Any], shape: tuple[int, ...], name: str
) -> tuple[str, NDArray[np.float32]]:
    """Return the granularity of a scale, `name` if it has one, and the scale as features (rows, width) have it."""
    with np.errstate(over="ignore"):  # it is refused below
        found = np.asarray(scale, np.float32)
    if scale.dtype.kind != "f" or not np.array_equal(found, scale):
        raise ValueError(f"its scale is {scale.dtype} and not exact in float32; save it as float32")
    axes = (1,) * (len(shape) - found.ndim) + found.shape
    if name in ("", "tensor") and math.prod(axes) == 1:
        return "tensor", found.reshape(1, 1)
    if name in ("", "channel") and axes == (1,) * (len(shape) - 1) + shape[-1:]:
        return "channel", found.reshape(1, -1)
    if (
        name in ("", "token")
        and len(axes) == len(shape)
        and axes[-1] == 1
        and all(mine in (1, theirs) for mine, theirs in zip(axes, shape, strict=True))
    ):
        return "token", np.ascontiguousarray(
            np.broadcast_to(found.reshape(axes), (*shape[:-1], 1))
        ).reshape(-1, 1)
    raise ValueError(
        f"its {name and f'{name} '}scale has the shape {scale.shape} and the values {shape}; "
        "one for all, one a channel or one a row is read"
    )


def check_finite(data: NDArray[Any], values: str) -> None:
    """Raise QuantizeError if a value is NaN or infinite."""
    if values == "bf16":
        finite = bool(((data & _BF16_EXPONENT) != _BF16_EXPONENT).all())
    else:
        finite = values == "int8" or bool(np.isfinite(data).all())
    if not finite:
        raise QuantizeError("it holds values that are NaN or infinite")


def from_tensor(tensor: torch.Tensor, most_bytes: int) -> tuple[NDArray[Any], bool]:
    """Return the array of a tensor, without a copy, and whether it is bfloat16's bits.

    Args:
        tensor: as it was read from a file.
        most_bytes: bytes of the file; a tensor of more is a small one that claims to be large.

    Raises:
        ValueError: it is sparse, overlaps itself, or is larger than its file.
    """
    import torch

    plain = (
        tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    )
    if not plain or not tensor.is_contiguous() or tensor.nbytes > most_bytes:
        raise ValueError(
            f"a tensor {tuple(tensor.shape)} of {tensor.dtype} is not stored as plain values"
        )
    is_bf16 = tensor.dtype == torch.bfloat16
    tensor = tensor.detach()
    found: NDArray[Any] = (tensor.view(torch.uint16) if is_bf16 else tensor).numpy()
    return found, is_bf16


def arrays_of(features: Features) -> dict[str, NDArray[Any]]:
    """Return what is stored of features, by the names in files: `data`, and scales called by what each is of."""
    granularity = features.header.storage.granularity
    names = ("token", "channel") if granularity == "channel_token" else (granularity,)
    scales = zip(names, features.scales, strict=False)
    return {"data": features.data, **{f"{name}_scale": scale for name, scale in scales}}


def from_arrays(arrays: dict[str, NDArray[Any]], *, is_bf16: bool = False) -> FileContent:
    """Return the content of a file of named arrays; ValueError if it is not clear which of them are the features."""
    scales = [name for name in ("token", "channel", "tensor") if f"{name}_scale" in arrays]
    rest = [name for name in arrays if name.removesuffix("_scale") not in scales]
    if len(rest) != 1:
        names = ", ".join(sorted(rest)) or "none"
        raise ValueError(
            f"it holds the arrays {names:.200}; one of features and its scales are read"
        )
    found = tuple(arrays[f"{name}_scale"] for name in scales)
    return FileContent(arrays[rest[0]], found, is_bf16, scale_names=tuple(scales))


def checksum_of(arrays: Iterable[NDArray[Any]]) -> str:
    """Return xxh3-128 of the bytes of arrays, one after the other, 32 hex digits."""
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_metadata(text: str | None) -> dict[str, Any] | None:
    """Return what `metadata_of` made a text of; None if it is anything else."""
    try:
        facts = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    is_ours = isinstance(facts, dict) and all(
        isinstance(facts.get(name), str) for name in ("feature_set", "video_id")
    )
    return facts if is_ours else None


def metadata_of(features: Features) -> str:
    """Return what the record says, as JSON for a file."""
    # In ASCII: bytes of a file name that are not text are lone surrogates, which safetensors cannot store.
    return json.dumps(record_facts(features.header))
