"""What every codec must do. A codec's tests are a subclass that names it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.errors import RecordError
from featstore.records.codecs import CODECS, Codec

SIZES = (1, 2, 4095, 4096, 4097, 1 << 20)
# Runs shrink, noise does not.
payloads = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.builds(
        lambda run, times: run * times, st.binary(min_size=1, max_size=3), st.integers(1, 5000)
    ),
)


class CodecContract:
    """name: the codec's name in the table."""

    name: str

    @property
    def codec(self) -> Codec:
        return CODECS[self.name]

    def stored(self, payload: bytes) -> bytes:
        return bytes(self.codec.compress(memoryview(payload)))

    def test_a_payload_comes_back(self):
        @given(payload=payloads)
        def check(payload):
            stored = self.stored(payload)
            assert bytes(self.codec.decompress(memoryview(stored), len(payload))) == payload

        check()

    @pytest.mark.parametrize("size", SIZES)
    def test_a_payload_of_any_size_comes_back(self, size):
        payload = np.random.default_rng(size).integers(0, 3, size, dtype=np.uint8).tobytes()
        assert bytes(self.codec.decompress(memoryview(self.stored(payload)), size)) == payload

    def test_a_payload_that_may_only_be_read_is_compressed(self):
        assert self.stored(bytes(5000)) == bytes(self.codec.compress(memoryview(bytearray(5000))))

    def test_equal_payloads_give_equal_bytes(self):
        payload = np.random.default_rng(0).integers(0, 9, 100_000, dtype=np.uint8).tobytes()
        assert self.stored(payload) == self.stored(payload)

    def test_a_truncated_payload_is_a_record_error(self):
        @given(payload=payloads, data=st.data())
        def check(payload, data):
            stored = self.stored(payload)
            cut = data.draw(st.integers(0, len(stored) - 1))
            with pytest.raises(RecordError):
                self.codec.decompress(memoryview(stored)[:cut], len(payload))

        check()

    def test_damage_gives_a_record_error_or_as_many_other_bytes(self):
        """Checksums are verified before this; without them nothing else may come out."""

        @given(payload=payloads, data=st.data())
        def check(payload, data):
            stored = bytearray(self.stored(payload))
            at = data.draw(st.integers(0, len(stored) - 1))
            stored[at] ^= data.draw(st.integers(1, 255))
            try:
                found = self.codec.decompress(memoryview(stored), len(payload))
            except RecordError:
                return
            assert len(found) == len(payload)

        check()

    def test_a_claimed_size_takes_no_memory_before_it_is_checked(self):
        @given(stored=st.binary(max_size=200), claimed=st.integers(1, 1 << 40))
        def check(stored, claimed):
            try:
                found = self.codec.decompress(memoryview(stored), claimed)
            except RecordError:
                return
            assert len(found) == claimed <= 1 << 20

        check()
