"""How many bytes a record takes, in part and in whole, and how many it may take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from featstore.spec import STORED_DTYPES

if TYPE_CHECKING:
    from featstore.spec import FeatureSpec

PAGE = 4096
MAX_ID_BYTES = 4096
MAX_HEADER_BYTES = 1 << 20
MAX_PREFIX_BYTES = 64 << 20  # header, scale and padding: a token scale of 16 million tokens
MAX_PAYLOAD_BYTES = (1 << 32) - 1 - MAX_PREFIX_BYTES  # LMDB takes no value of 4 GiB
# A header is a few hundred bytes, an id and a path; the indices of the frames and the scale are added to it.
_HEADER_ROOM = 64 << 10


def scale_shape(granularity: str, num_tokens: int, hidden_dim: int) -> tuple[int, int]:
    """Return the shape of the scale that broadcasts over (num_tokens, hidden_dim); (0, 0) for floats."""
    shapes = {
        "channel": (1, hidden_dim),
        "token": (num_tokens, 1),
        "tensor": (1, 1),
        "none": (0, 0),
    }
    return shapes[granularity]


def scale_bytes(granularity: str, shape: tuple[int, int]) -> int:
    """Return the bytes of the float32 scale of features of `shape`."""
    return 4 * math.prod(scale_shape(granularity, *shape))


def payload_bytes(quantization: str, shape: tuple[int, int]) -> int:
    """Return the bytes of an uncompressed payload of `shape`, stored as `quantization`."""
    itemsize = int(STORED_DTYPES[quantization][-1])
    return math.prod(shape) * itemsize


def record_room(spec: FeatureSpec) -> tuple[int, int]:
    """Return the most bytes that the prefix and the payload of a record of `spec` take."""
    return _HEADER_ROOM + _varying_bytes(spec), payload_bytes(spec.quantization, _largest(spec))


def record_bytes(spec: FeatureSpec) -> int:
    """Return the most bytes that a record of `spec` usually takes, uncompressed: its header fits a page."""
    return PAGE + _varying_bytes(spec) + payload_bytes(spec.quantization, _largest(spec))


def _largest(spec: FeatureSpec) -> tuple[int, int]:
    return spec.sampling.nframe * spec.encoder.tokens_per_frame, spec.encoder.hidden_dim


def _varying_bytes(spec: FeatureSpec) -> int:
    """Return the bytes of frame indices and scale."""
    return 4 * spec.sampling.nframe + scale_bytes(spec.scale, _largest(spec))
