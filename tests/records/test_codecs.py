import os
import struct
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from quick import examples

from featstore.errors import RecordError
from featstore.records.codecs import CODECS, compress, decompress, lz4, planes, zstd
from featstore.records.codecs import blocks as blocks_module
from featstore.records.codecs.blocks import BLOCK_BYTES
from featstore.records.storage import Storage

IN_BLOCKS = ["lz4", "zstd"]
storages = st.sampled_from(
    [Storage("int8", codec=codec) for codec in ("raw", "lz4", "zstd")]
    + [Storage(values, codec="planes") for values in ("bf16", "fp16", "fp32")]
)
codecs = st.sampled_from(sorted(CODECS))
# Runs shrink, noise does not.
payloads = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.builds(
        lambda run, times: run * times, st.binary(min_size=1, max_size=3), st.integers(1, 5000)
    ),
)


@given(payloads, storages)
def test_a_payload_comes_back_and_never_grows(payload, asked):
    used, stored = compress(memoryview(payload), asked)
    assert used in (asked, replace(asked, codec="raw"))
    assert len(stored) <= len(payload)
    assert bytes(decompress(memoryview(stored), len(payload), used)) == payload


@pytest.mark.parametrize("codec", IN_BLOCKS)
@pytest.mark.parametrize(
    "size", [BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 5, 80 * BLOCK_BYTES]
)
def test_a_payload_of_several_blocks_comes_back(codec, size):
    """The largest on several threads."""
    payload = np.resize(np.arange(100, dtype=np.uint8), size).tobytes()
    asked = Storage("int8", codec=codec)
    used, stored = compress(memoryview(payload), asked)
    assert used == asked
    assert CODECS[codec].decompress(memoryview(stored), size) == payload


@pytest.mark.parametrize("codec", IN_BLOCKS)
def test_threads_decompress_beside_each_other(codec):
    payloads = [bytes([i]) * 100 * BLOCK_BYTES for i in range(4)]
    stored = [CODECS[codec].compress(memoryview(payload)) for payload in payloads]
    found = [b""] * 4

    def work(i):
        found[i] = bytes(CODECS[codec].decompress(memoryview(stored[i]), len(payloads[i])))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == payloads


@pytest.mark.parametrize("codec", IN_BLOCKS)
def test_what_one_thread_cannot_decompress_is_raised(codec):
    payload = bytes(100 * BLOCK_BYTES)
    stored = CODECS[codec].compress(memoryview(payload))
    (length,) = struct.unpack_from("<I", stored, 4 * 99)
    stored[-length:] = bytes(length)
    with pytest.raises(RecordError, match="block 99 of 100"):
        CODECS[codec].decompress(memoryview(stored), len(payload))


@pytest.mark.parametrize("codec", IN_BLOCKS)
def test_noise_is_stored_raw_without_a_copy(codec):
    payload = memoryview(np.random.default_rng(0).bytes(10_000))
    used, stored = compress(payload, Storage("int8", "token", codec))
    assert used == Storage("int8", "token", "raw")
    assert stored is payload


@pytest.mark.parametrize("codec", IN_BLOCKS)
def test_what_is_decompressed_is_read_only(codec):
    stored = CODECS[codec].compress(memoryview(bytes(5000)))
    assert CODECS[codec].decompress(memoryview(stored), 5000).readonly


def test_zstd_shrinks_what_features_look_like():
    """int8 values of a bell: few repetitions, an entropy well below eight bits."""
    values = np.random.default_rng(0).normal(0, 8, 300_000).round().astype(np.int8)
    used, stored = compress(memoryview(values.tobytes()), Storage("int8", codec="zstd"))
    assert used.codec == "zstd"
    assert len(stored) < 0.75 * len(values)


@given(payloads, st.sampled_from(IN_BLOCKS), st.data())
def test_a_damaged_payload_raises_record_error_or_gives_other_bytes(payload, codec, data):
    """The record's checksum stands before this; without it nothing but RecordError may come out."""
    stored = bytearray(CODECS[codec].compress(memoryview(payload)))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    try:
        out = CODECS[codec].decompress(memoryview(stored), len(payload))
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
@examples(300)
def test_garbage_raises_record_error(stored, codec, raw_bytes):
    try:
        out = CODECS[codec].decompress(memoryview(stored), raw_bytes)
    except RecordError:
        return
    assert len(out) == raw_bytes


@pytest.mark.parametrize("wrong", [-4, 4, 4000])
def test_a_payload_of_another_length_than_its_shape_needs_raises_record_error(wrong):
    for name in CODECS:
        stored = memoryview(CODECS[name].compress(memoryview(bytes(5000))))
        with pytest.raises(RecordError):
            CODECS[name].decompress(stored, 5000 + wrong)


@pytest.mark.parametrize("codec", IN_BLOCKS)
def test_a_claim_about_a_huge_payload_costs_no_memory(codec):
    """A bomb: some bytes whose header says 4 GB. No block expands as often as that."""
    blocks = -(-(4 << 30) // BLOCK_BYTES)
    table = struct.pack(f"<{blocks}I", *[0] * blocks)
    tracemalloc.start()
    with pytest.raises(RecordError, match="cannot expand"):
        CODECS[codec].decompress(memoryview(table), 4 << 30)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_zstd_frame_that_says_it_holds_more_than_its_block_is_not_opened():
    bomb = zstandard.ZstdCompressor().compress(bytes(100 << 20))
    stored = struct.pack("<I", len(bomb)).ljust(16, b"\0") + bomb
    with pytest.raises(RecordError, match="says it holds 104857600 bytes, expected 5000"):
        CODECS["zstd"].decompress(memoryview(stored), 5000)


def test_a_zstd_frame_that_does_not_say_what_it_holds_is_refused():
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(5000))
    stored = struct.pack("<I", len(frame)).ljust(16, b"\0") + frame
    with pytest.raises(RecordError, match="expected 5000"):
        CODECS["zstd"].decompress(memoryview(stored), 5000)


@pytest.mark.parametrize("layout", [lz4.LAYOUT, zstd.LAYOUT, planes.LAYOUT])
def test_the_ratio_that_is_believed_is_above_what_is_reached(layout):
    payload = memoryview(bytes(100 * BLOCK_BYTES))
    name = "planes2" if layout is planes.LAYOUT else layout.name
    assert len(payload) < layout.max_ratio * len(CODECS[name].compress(payload))


def test_lz4_blocks_follow_each_other_without_a_gap():
    blocks = [b"a" * 501, b"b", b"c" * 7]
    stored = bytes(lz4.LAYOUT.pack(blocks))
    assert stored == struct.pack("<3I", 501, 1, 7) + b"".join(blocks)


@pytest.mark.parametrize("codec", [*IN_BLOCKS, "planes2", "planes4"])
@pytest.mark.parametrize("cores", [1, 2, 99])
def test_any_number_of_cores_gives_the_same_bytes(codec, cores, monkeypatch):
    payload = np.resize(np.arange(1000, dtype=np.uint8), 3 << 20).tobytes()
    wanted = bytes(CODECS[codec].compress(memoryview(payload)))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    blocks_module._pool.cache_clear()
    stored = memoryview(CODECS[codec].compress(memoryview(payload)))
    assert stored == wanted
    assert CODECS[codec].decompress(stored, len(payload)) == payload
    blocks_module._pool.cache_clear()


@pytest.mark.parametrize("codec", ["zstd", "planes2"])
def test_a_damaged_block_is_named_by_its_number(codec):
    stored = CODECS[codec].compress(memoryview(bytes(4 * BLOCK_BYTES)))
    stored[-1:] = b"\xff"
    stored[-16:-1] = bytes(15)
    with pytest.raises(RecordError, match=f"^{codec[:6].rstrip('2')} block 3 of 4 "):
        CODECS[codec].decompress(memoryview(stored), 4 * BLOCK_BYTES)


def test_blocks_begin_on_multiples_of_the_alignment():
    assert zstd.LAYOUT.alignment == 16
    blocks = [b"a" * 500, b"b" * 160, b"c"]
    stored = memoryview(zstd.LAYOUT.pack(blocks))
    spans = zstd.LAYOUT.spans(stored, 2 * BLOCK_BYTES + 1, len(blocks))
    assert [start % 16 for start, _ in spans] == [0, 0, 0]
    assert [bytes(stored[start : start + length]) for start, length in spans] == blocks


def test_planes_shrink_floats_that_zstd_alone_hardly_does():
    """The exponents of a bell take few bits, its mantissas all of theirs."""
    values = np.random.default_rng(0).normal(0, 2, 300_000).astype(np.float32)
    bits = memoryview((values.view(np.uint32) >> 16).astype("<u2").tobytes())
    _, apart = compress(bits, Storage("bf16", codec="planes"))
    _, together = compress(bits, Storage("bf16", codec="zstd"))
    assert len(apart) < 0.75 * len(bits)
    assert len(apart) < 0.95 * len(together)


def test_an_unknown_codec_is_refused_before_any_work():
    with pytest.raises(ValueError, match="codec is 'gzip'; use one of raw, lz4, zstd, planes"):
        Storage("int8", codec="gzip")
    with pytest.raises(ValueError, match="use zstd with int8"):
        Storage("int8", codec="planes")
