"""The payload as it is."""

from __future__ import annotations

from featstore.errors import RecordError


class Raw:
    """The only codec that is read without a copy."""

    def compress(self, payload: memoryview) -> memoryview:
        """Return `payload` itself."""
        return payload

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return `stored` itself, which must be `raw_bytes` long."""
        if len(stored) != raw_bytes:
            raise RecordError(f"the payload holds {len(stored)} bytes, its shape needs {raw_bytes}")
        return stored
