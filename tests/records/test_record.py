from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from quick import examples
from sample_records import (
    HEADER,
    VALUES,
    changed,
    hostile,
    joined,
    pack,
    plain_fields,
    read,
    values_of,
    whole_record,
)
from strategies import headers

from featstore.errors import RecordError
from featstore.geometry import RowLayout
from featstore.records.features import Features
from featstore.records.quantization import dequantize, quantize
from featstore.records.record import LMDB_VALUE_OFFSET, pack_prefix, parse
from featstore.records.storage import (
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    PAGE,
    STORED_DTYPES,
    Storage,
)

GOLDEN = Path(__file__).parents[1] / "golden"


@given(headers(), st.integers(0, 100))
def test_a_record_comes_back_as_it_was_packed(header, seed):
    x = values_of(header, seed)
    header, record = whole_record(header, x)
    stored, scales = quantize(x, header.storage)
    found = read(record)
    features = Features(found.header, found)
    assert found.header == header
    assert features.shape == x.shape
    assert np.array_equal(features.data, stored)
    assert len(features.scales) == len(scales)
    assert all(map(np.array_equal, features.scales, scales))
    assert np.array_equal(features.dequantize(), dequantize(stored, scales, header.storage.values))
    assert struct.pack(f"<{len(found.header.frames)}I", *found.header.frames) == (
        header.frame_indices
    )


@given(headers())
def test_a_compressed_record_comes_back(header):
    header, record = whole_record(header, np.zeros(header.shape, np.float32), codec="lz4")
    found = read(record)
    assert found.header == header
    assert not Features(found.header, found).data.any()


@given(headers())
def test_the_payload_begins_on_a_page_of_the_map(header):
    header, record = whole_record(header, values_of(header))
    offset = len(record) - len(parse(memoryview(record)).payload)
    assert (LMDB_VALUE_OFFSET + offset) % PAGE == 0


@given(headers())
def test_any_msgpack_reader_can_open_a_record(header):
    header, record = whole_record(header, values_of(header))
    fields, scale, payload = msgpack.unpackb(record, unicode_errors="surrogatepass")
    assert fields["format"] == 2
    assert fields["video_id"] == header.video_id
    assert fields["shape"] == list(header.shape)
    assert len(scale) == header.scale_bytes
    assert len(payload) == header.raw_bytes


def test_a_record_of_ordinary_names_needs_no_options_to_msgpack():
    fields, _, payload = msgpack.unpackb(whole_record()[1])
    assert fields["video_id"] == HEADER.video_id
    assert len(payload) == 12


def test_arrays_are_read_only_and_views_on_the_record():
    found = read(whole_record()[1])
    features = Features(found.header, found)
    assert not features.data.flags.writeable
    assert not any(scale.flags.writeable for scale in features.scales)
    assert np.shares_memory(features.data, np.frombuffer(found.payload, np.int8))


def test_every_truncation_of_a_record_raises_record_error():
    record = whole_record()[1]
    for length in range(len(record)):
        with pytest.raises(RecordError):
            read(record[:length])


def test_every_flipped_byte_of_a_record_raises_record_error():
    record = whole_record()[1]
    for at in range(len(record)):
        for mask in (0x01, 0x80, 0xFF):
            flipped = bytearray(record)
            flipped[at] ^= mask
            with pytest.raises(RecordError):
                read(bytes(flipped))


def test_bytes_after_a_record_raise_record_error():
    with pytest.raises(RecordError, match="do not end with"):
        read(whole_record()[1] + b"\0")


@given(headers(), st.data())
@examples(50)
def test_any_damage_to_any_record_raises_record_error(header, data):
    record = bytearray(whole_record(header, values_of(header))[1])
    at = data.draw(st.integers(0, len(record) - 1))
    damage = data.draw(st.binary(min_size=1, max_size=20))
    before = bytes(record)
    record[at : at + len(damage)] = damage
    if bytes(record) != before:
        with pytest.raises(RecordError):
            read(bytes(record))


@given(st.binary(max_size=300))
def test_garbage_raises_record_error(record):
    with pytest.raises(RecordError):
        read(record)


@given(st.binary(max_size=300))
def test_garbage_behind_a_right_checksum_raises_record_error(garbage):
    head = bytearray(whole_record()[1][:52]) + garbage
    head[26:30] = struct.pack(">I", len(head))
    at = head.index(b"prefix_xxh3") + 13
    head[at : at + 8] = bytes(8)
    head[at : at + 8] = xxhash.xxh3_64_digest(head)
    with pytest.raises(RecordError):
        read(bytes(head))


def test_a_future_format_is_refused_with_the_remedy():
    record = bytearray(whole_record()[1])
    record[11] = 3
    with pytest.raises(RecordError, match="has format 3, this featstore reads format 2; update"):
        read(bytes(record))


def test_a_damaged_payload_names_its_video():
    record = bytearray(whole_record()[1])
    record[-1] ^= 1
    with pytest.raises(RecordError, match="payload of video 'demo/water é' is damaged"):
        read(bytes(record))


def test_a_liars_record_is_believed_where_it_does_not_lie():
    found = read(hostile(plain_fields(), scale=np.ones(3, "<f4").tobytes()))
    assert found.header.video_id == HEADER.video_id


LIES: list[dict[str, Any]] = [
    {"shape": [4]},
    {"shape": [4, 3, 1]},
    {"shape": []},
    {"shape": [0, 3]},
    {"shape": [-4, -3]},
    {"shape": [4, 2]},
    {"shape": [2, 3]},
    {"shape": [6, 2]},
    {"shape": [4.0, 3]},
    {"shape": [True, 12]},
    {"shape": ["4", "3"]},
    {"shape": "43"},
    {"shape": 12},
    {"shape": None},
    {"shape": {"4": 0, "3": 0}},
    {"shape": [1 << 30, 1 << 20]},
    {"shape": [1 << 40, 1 << 40]},
    {"shape": [(1 << 64) - 1, 1]},
    {"shape": [4] * 65},
    {"nframe": 1},
    {"nframe": -1},
    {"nframe": 3.0},
    {"nframe": True},
    {"nframe": None},
    {"frame_indices": b""},
    {"frame_indices": bytes(7)},
    {"frame_indices": bytes(16)},
    {"frame_indices": [0, 1]},
    {"frame_indices": "\0" * 8},
    {"layout": None},
    {"layout": [2, 2, 1, 1, 0, 1, None]},
    *(
        changed("layout", **{name: value})
        for name in ("units", "tokens_per_unit", "frames_per_unit", "stride", "planes")
        for value in (0, -2, 3, 1 << 20, (1 << 64) - 1, 2.0, True, None, ...)
        if (name, value) not in (("frames_per_unit", 3), ("planes", 3))  # which could be
    ),
    *(changed("layout", extra_rows=value) for value in (-1, 1, 1 << 25, None, ...)),
    *(
        changed("layout", grid=grid)
        for grid in ([], [2], [2, 2], [2, 1, 2, 1], [1, 2, 2], [2, 3, 1], [2, -1, -2], [2, 0, 0])
    ),
    changed("layout", more=1),
    {"total_frames": 0},
    {"total_frames": -5},
    {"total_frames": "9"},
    {"fps": "fast"},
    {"fps": False},
    {"storage": "int8"},
    *(changed("storage", values=value) for value in ("int4", "fp32", "bf16", 8, None, ...)),
    *(
        changed("storage", granularity=value)
        for value in ("none", "row", "token", "tensor", "channel_token", None, ...)
    ),
    changed("storage", values="bf16", granularity="none"),
    *(changed("storage", codec=value) for value in ("gzip", "planes", "", ["raw"], None, ...)),
    changed("storage", more=1),
    {"dtype": "fp64"},
    {"dtype": b"bf16"},
    {"decoder": 7},
    {"doubt": None},
    {"video_id": b"bytes"},
    {"video_id": 7},
    {"dataset": None},
    {"spec": []},
    {"video_path": msgpack.ExtType(5, b"x")},
    {"created": "today"},
    {"payload_xxh3": "0"},
    {"payload_xxh3": 1},
    {"source": []},
    {"source": [1, 2, "x"]},
    {"source": 5},
    changed("source", size="1"),
    changed("source", mtime_ns=None),
    changed("source", xxh3_128=3),
    changed("source", more=4),
    {"error": {}},
    {"error": [1.0, 0.0, 0.0, 0.0, 0.0]},
    *(
        changed("error", **{name: value})
        for name in ("cosine", "relative_l2", "max_abs", "token_p99", "token_max")
        for value in ("1", None, ...)
    ),
    changed("error", more=0.0),
    {"video_id": ...},
    {"payload_xxh3": ...},
    {"source": ...},
    {"unheard_of": 1},
    {"self": 1},
    {"": ""},
    {f"more {i}": i for i in range(100)},
    {"video_path": "x" * (2 << 20)},
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: str(lie)[:40])
def test_a_header_that_lies_raises_record_error(lie):
    with pytest.raises(RecordError):
        read(hostile(plain_fields(**lie), scale=np.ones(3, "<f4").tobytes()))


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(plain_fields())), json_like)
def test_any_value_in_any_field_parses_or_raises_record_error(name, value):
    try:
        found = read(hostile(plain_fields(**{name: value}), scale=np.ones(3, "<f4").tobytes()))
    except RecordError:
        return
    assert Features(found.header, found).dequantize().shape == found.header.shape
    layout = found.header.layout
    assert layout.rows == found.header.shape[0]
    assert (layout.units - 1) * layout.stride < len(found.header.frames)


def test_keys_that_are_no_strings_raise_record_error():
    for key in (b"spec", 5, None):
        with pytest.raises(RecordError):
            read(hostile({**plain_fields(), key: 1}))


def test_a_header_nested_without_end_raises_record_error():
    nested: Any = []
    for _ in range(400):
        nested = [nested]
    with pytest.raises(RecordError):
        read(hostile(plain_fields(video_path=nested)))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_not_above_zero_raises_record_error(value):
    scale = np.array([1.0, value, 1.0], "<f4").tobytes()
    with pytest.raises(RecordError, match="not above zero"):
        read(hostile(plain_fields(), scale=scale))


@pytest.mark.parametrize(("scale", "payload"), [(0, 12), (8, 12), (16, 12), (12, 0), (12, 13)])
def test_a_scale_or_payload_of_another_size_raises_record_error(scale, payload):
    with pytest.raises(RecordError):
        read(hostile(plain_fields(), scale=bytes(scale), payload=bytes(payload)))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (4, 0)},
        {"shape": (5, 3)},
        {"shape": (1 << 24, 1 << 20), "layout": RowLayout(units=2, tokens_per_unit=1 << 23)},
        {"frame_indices": bytes(7)},
        {"nframe": 1},
        {"nframe": np.int64(3)},
        {"total_frames": 1 << 70},
        {"fps": None},
        {"layout": RowLayout(units=4, tokens_per_unit=1)},
        {"layout": RowLayout(units=2, tokens_per_unit=2, planes=2)},
    ],
)
def test_what_could_not_be_read_is_not_packed(changes):
    with pytest.raises(RecordError):
        pack(dataclasses.replace(HEADER, **changes), bytes(12), bytes(12))


def test_an_integer_where_a_float_is_meant_is_packed_and_read():
    """To the type checker 25 is a float; it made records that could not be read."""
    header, record = whole_record(dataclasses.replace(HEADER, fps=25, created=0))
    assert read(record).header == header


@pytest.mark.parametrize(("scale", "payload"), [(11, 12), (12, 11), (12, 13)])
def test_a_scale_or_payload_of_another_size_is_not_packed(scale, payload):
    with pytest.raises(ValueError, match="expected 12"):
        pack(HEADER, np.ones(3, "<f4").tobytes()[:scale], bytes(payload))


def test_a_header_too_long_to_be_read_is_not_packed():
    header = dataclasses.replace(HEADER, video_path="x" * MAX_HEADER_BYTES)
    with pytest.raises(RecordError, match="the header holds"):
        pack(header, np.ones(3, "<f4").tobytes(), bytes(12))


NAN, INF, HUGE, TINY = float("nan"), float("inf"), 3e38, 1e-30


@pytest.mark.parametrize(
    ("granularity", "scales"),
    [
        ("channel", [1, 1, 0]),
        ("channel", [1, NAN, 1]),
        ("channel", [1, 1, -1]),
        ("channel", [1, 1, INF]),
        ("channel", [1, 1, HUGE]),
        ("channel_token", [1, 1, 1, HUGE, 1, 1, 1]),
        ("channel_token", [1e25, 1, 1, 1, 1, 1, 1e25]),
        ("channel_token", [TINY, 1, 1, 1, 1, 1, TINY]),
        ("channel_token", [1, 1, NAN, 1, 1, 1, 1]),
    ],
)
def test_scales_that_restore_no_numbers_are_neither_packed_nor_read(granularity, scales):
    header = dataclasses.replace(HEADER, storage=Storage("int8", granularity))
    with pytest.raises(RecordError, match="not above zero, or make values that are not finite"):
        pack(header, np.array(scales, "<f4").tobytes(), bytes(12))


@pytest.mark.parametrize("name", ["cosine", "relative_l2", "max_abs", "token_p99", "token_max"])
def test_an_error_that_is_no_number_is_not_packed(name):
    error = dataclasses.replace(HEADER.error, **{name: NAN})
    with pytest.raises(RecordError, match="error = "):
        pack(dataclasses.replace(HEADER, error=error), np.ones(3, "<f4").tobytes(), bytes(12))


def test_a_payload_beyond_what_lmdb_takes_is_not_packed():
    header = dataclasses.replace(HEADER, storage=Storage("int8", "channel", "lz4"))
    with pytest.raises(RecordError, match="4 GiB at most"):
        pack_prefix(header, np.ones(3, "<f4").tobytes(), MAX_PAYLOAD_BYTES + 1)


# What a record of each kind holds; the header's numbers are those of HEADER if they are not named.
GOLDEN_RECORDS = {
    "int8_channel": (HEADER, VALUES),
    "int8_channel_token": (
        dataclasses.replace(HEADER, storage=Storage("int8", "channel_token")),
        VALUES,
    ),
    "int8_tensor_lz4": (
        dataclasses.replace(HEADER, storage=Storage("int8", "tensor", "lz4"), shape=(4, 60)),
        np.ones((4, 60), np.float32),
    ),
    "bf16": (dataclasses.replace(HEADER, storage=Storage("bf16")), VALUES / 3),
    "fp16_grid": (
        dataclasses.replace(
            HEADER,
            storage=Storage("fp16"),
            shape=(7, 6),
            layout=RowLayout(
                units=1,
                tokens_per_unit=6,
                frames_per_unit=2,
                stride=2,
                extra_rows=1,
                planes=2,
                grid=(1, 2, 3),
            ),
            doubt="a frame could not be sought",
        ),
        np.arange(42, dtype=np.float32).reshape(7, 6),
    ),
}


def read_golden(name: str) -> bytes:
    """Read a file of hex digits; `00 x 12` is a run of twelve zeros, `#` begins a remark."""
    record = b""
    for line in (GOLDEN / f"{name}.hex").read_text().splitlines():
        digits, _, times = line.partition("#")[0].partition(" x ")
        record += bytes.fromhex(digits) * int(times or 1)
    return record


@pytest.mark.parametrize("name", GOLDEN_RECORDS)
def test_golden_bytes_are_packed_and_read(name):
    """Should these change, records made before cannot be read: raise FORMAT, keep the old files, read both."""
    header, x = GOLDEN_RECORDS[name]
    golden = read_golden(f"record_v2_{name}")
    found = read(golden)
    features = Features(found.header, found)
    stored, scales = quantize(x, header.storage)
    header = dataclasses.replace(header, payload_xxh3=xxhash.xxh3_64_intdigest(found.payload))
    assert found.header == header
    assert np.array_equal(features.data, stored)
    assert all(map(np.array_equal, features.scales, scales))
    assert features.data.dtype == np.dtype(STORED_DTYPES[header.storage.values])
    # The compressed bytes are the library's to choose; ours are all around them.
    assert pack(header, joined(scales), bytes(found.payload)) == golden


def test_a_record_of_the_first_format_is_refused_in_words():
    """Its checksum is right: it is not damaged."""
    with pytest.raises(RecordError) as caught:
        parse(memoryview(read_golden("record_v1_int8_channel")))
    assert str(caught.value) == (
        "a record has format 1, this featstore reads format 2; ingest its video again into another --cache-dir"
    )
