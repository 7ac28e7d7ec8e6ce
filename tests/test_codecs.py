import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.codecs import BLOCK_BYTES, CODECS, LZ4_MAX_RATIO, compress
from featstore.errors import RecordError

codecs = st.sampled_from(sorted(CODECS))
# Runs shrink, noise does not.
payloads = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.builds(
        lambda run, times: run * times, st.binary(min_size=1, max_size=3), st.integers(1, 5000)
    ),
)


@given(payloads, codecs)
def test_a_payload_comes_back_and_never_grows(payload, asked):
    used, stored = compress(memoryview(payload), asked)
    assert used == asked or used == "raw"
    assert len(stored) <= len(payload)
    assert bytes(CODECS[used].decompress(memoryview(stored), len(payload))) == payload


@pytest.mark.parametrize(
    "size", [BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 5]
)
def test_a_payload_of_several_blocks_comes_back(size):
    payload = np.resize(np.arange(100, dtype=np.uint8), size).tobytes()
    used, stored = compress(memoryview(payload), "lz4")
    assert used == "lz4"
    assert CODECS["lz4"].decompress(memoryview(stored), size) == payload


def test_noise_is_stored_raw_without_a_copy():
    payload = memoryview(np.random.default_rng(0).bytes(10_000))
    used, stored = compress(payload, "lz4")
    assert used == "raw"
    assert stored is payload


def test_what_is_decompressed_is_read_only():
    _, stored = compress(memoryview(bytes(5000)), "lz4")
    assert CODECS["lz4"].decompress(memoryview(stored), 5000).readonly


@given(payloads, st.data())
def test_a_damaged_payload_raises_record_error_or_gives_other_bytes(payload, data):
    """The record's checksum stands before this; without it nothing but RecordError may come out."""
    stored = bytearray(CODECS["lz4"].compress(memoryview(payload)))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    try:
        out = CODECS["lz4"].decompress(memoryview(stored), len(payload))
    except RecordError:
        return
    assert len(out) == len(payload)


@given(payloads, codecs, st.data())
def test_a_truncated_payload_raises_record_error(payload, codec, data):
    stored = memoryview(bytes(CODECS[codec].compress(memoryview(payload))))
    cut = data.draw(st.integers(0, len(stored) - 1))
    with pytest.raises(RecordError):
        CODECS[codec].decompress(stored[:cut], len(payload))


@given(st.binary(max_size=200), codecs, st.integers(1, 1 << 40))
@settings(max_examples=300)
def test_garbage_raises_record_error(stored, codec, raw_bytes):
    try:
        out = CODECS[codec].decompress(memoryview(stored), raw_bytes)
    except RecordError:
        return
    assert len(out) == raw_bytes


@pytest.mark.parametrize("wrong", [-1, 1, 4000])
def test_a_payload_of_another_length_than_its_shape_needs_raises_record_error(wrong):
    for codec in CODECS.values():
        stored = memoryview(codec.compress(memoryview(bytes(5000))))
        with pytest.raises(RecordError):
            codec.decompress(stored, 5000 + wrong)


def test_a_claim_about_a_huge_payload_costs_no_memory():
    """A bomb: a few bytes whose header says 4 GB. No LZ4 block expands more than 255 times."""
    blocks = -(-(4 << 30) // BLOCK_BYTES)
    table = struct.pack(f"<{blocks}I", *[0] * blocks)
    tracemalloc.start()
    with pytest.raises(RecordError, match="cannot expand"):
        CODECS["lz4"].decompress(memoryview(table), 4 << 30)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_the_ratio_that_is_believed_is_above_what_lz4_reaches():
    payload = memoryview(bytes(BLOCK_BYTES))
    assert len(payload) < LZ4_MAX_RATIO * len(CODECS["lz4"].compress(payload))
