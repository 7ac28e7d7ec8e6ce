"""One video's stored features, as arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.records.codecs import decompress
from featstore.records.quantization import dequantize
from featstore.records.record import Record
from featstore.records.storage import STORED_DTYPES
from featstore.system.forks import cached_property

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featstore.records.header import Header
    from featstore.records.quantization import Scales

_AT_ONCE = 1 << 19  # values of small records that are dequantized at once, in a cache


@dataclass(frozen=True, repr=False, eq=False)
class Features:
    """One video's stored features.

    The arrays are read-only and stay valid as long as they are referenced, whatever happens to the store. `np.asarray`
    gives the features as float32. A pickle holds a copy of all that is stored of them.

    Args:
        header: what the record says about them.
        owner: the object that keeps their memory map open, None if they are not in one.
    """

    header: Header
    _record: Record
    owner: object = None

    @property
    def shape(self) -> tuple[int, int]:
        """Return (rows, width)."""
        return self.header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of `data`, the stored values; those of bfloat16 are its bits, uint16."""
        return np.dtype(STORED_DTYPES[self.header.storage.values])

    @property
    def nbytes(self) -> int:
        """Return the bytes of `data` and `scales`."""
        return self.header.raw_bytes + self.header.scale_bytes

    @cached_property
    def data(self) -> NDArray[Any]:
        """The stored values, (rows, width): int8, float16, float32, or the bits of bfloat16 as uint16.

        A view of the memory map for the codec raw; for other codecs a copy, decompressed on first access.

        Raises:
            RecordError: a compressed payload is damaged.
        """
        payload = decompress(self._record.payload, self.header.raw_bytes, self.header.storage)
        found: NDArray[Any] = np.ndarray(self.header.shape, self.dtype, payload)
        return found

    @cached_property
    def scales(self) -> Scales:
        """The float32 scales, whose product is that of a value: (rows, 1), (1, width) or both, (1, 1), or none."""
        return _scales(np.frombuffer(bytes(self._record.scales), "<f4"), self.header)

    def dequantize(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return the features as float32.

        Args:
            out: float32 array (rows, width) to fill and return instead of a new one.
        """
        return dequantize(self.data, self.scales, self.header.storage.values, out)

    def numpy(self) -> NDArray[np.float32]:
        """Return the features as a new float32 array (rows, width)."""
        return self.dequantize()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the features as float32, or as `dtype`.

        Raises:
            ValueError: no copy is allowed, and an array of features is always a new one.
        """
        if copy is False:
            raise ValueError(
                f"features stored as {self.header.storage} are a copy as an array: leave copy=False out, or take "
                "features.data, the stored values themselves"
            )
        features = self.dequantize()
        return features if dtype is None else features.astype(dtype, copy=False)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __repr__(self) -> str:
        """Return video, shape and storage."""
        rows, width = self.shape
        return f"<featstore.Features {self.header.video_id!r}: {rows} x {width}, {self.header.storage}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle header, scales and payload by value."""
        record = self._record
        return _unpickle, (self.header, bytes(record.scales), bytes(record.payload))


def dequantize_many(
    records: Sequence[Record],
) -> NDArray[np.float32] | list[NDArray[np.float32]]:
    """Return records' features as a new float32 array (records, rows, width), a list of arrays if shapes differ."""
    shapes = {record.header.shape for record in records}
    if len(shapes) > 1:
        return [Features(record.header, record).numpy() for record in records]
    shape = shapes.pop() if shapes else (0, 0)
    out, start = np.empty((len(records), *shape), dtype=np.float32), 0
    step = max(1, _AT_ONCE // max(1, math.prod(shape)))
    for storage, group in groupby(records, lambda record: record.header.storage):
        alike, raw_bytes = list(group), storage.payload_bytes(shape)
        for at in range(0, len(alike), step):
            some = alike[at : at + step]
            stop = start + len(some)
            if len(some) == 1:
                Features(some[0].header, some[0]).dequantize(out[start])
            else:
                stored = b"".join([decompress(r.payload, raw_bytes, storage) for r in some])
                values = np.frombuffer(stored, STORED_DTYPES[storage.values])
                values = values.reshape(len(some), *shape)
                joined = b"".join([record.scales for record in some])
                scales = np.frombuffer(joined, "<f4").reshape(len(some), -1)
                dequantize(values, _scales(scales, some[0].header), storage.values, out[start:stop])
            start = stop
    return out


def _scales(table: NDArray[np.float32], header: Header) -> Scales:
    """Return the scales of features like the header's from their numbers, (..., numbers), each (..., rows, width)."""
    scales, at = [], 0
    for rows, width in header.storage.scale_shapes(*header.shape):
        part = table[..., at : at + rows * width]
        scales.append(part.reshape(*table.shape[:-1], rows, width))
        at += rows * width
    return tuple(scales)


def _unpickle(header: Header, scales: bytes, payload: bytes) -> Features:
    return Features(header, Record(header, memoryview(scales), memoryview(payload)))
