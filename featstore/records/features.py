"""One video's stored features, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.records.codecs import CODECS
from featstore.records.quantization import dequantize
from featstore.records.sizes import scale_shape
from featstore.spec import STORED_DTYPES
from featstore.system.forks import cached_property

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.records.header import Header
    from featstore.records.record import Record


@dataclass(frozen=True)
class Features:
    """One video's stored features.

    The arrays are read-only and stay valid as long as they are referenced, whatever happens to the store.

    Args:
        header: what the record says about them.
        owner: the object that keeps their memory map open, None if they are not in one.
    """

    header: Header
    _record: Record = field(repr=False)
    owner: object = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (num_tokens, hidden_dim)."""
        return self.header.shape

    @cached_property
    def data(self) -> NDArray[Any]:
        """The stored values, (num_tokens, hidden_dim): int8, float16, float32, or the bits of bfloat16 as uint16.

        A view of the memory map for the codec raw; for other codecs a copy, decompressed on first access.

        Raises:
            RecordError: a compressed payload is damaged.
        """
        payload = CODECS[self.header.codec].decompress(self._record.payload, self.header.raw_bytes)
        values = np.frombuffer(payload, dtype=STORED_DTYPES[self.header.quantization])
        return values.reshape(self.header.shape)

    @cached_property
    def scale(self) -> NDArray[np.float32]:
        """The float32 scale: (1, hidden_dim), (num_tokens, 1) or (1, 1); (0, 0) if floats are stored."""
        values = np.frombuffer(bytes(self._record.scale), dtype="<f4")
        return values.reshape(scale_shape(self.header.scale, *self.header.shape))

    def dequantize(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return the features as float32.

        Args:
            out: float32 array (num_tokens, hidden_dim) to fill and return instead of a new one.
        """
        return dequantize(self.data, self.scale, self.header.quantization, out)
