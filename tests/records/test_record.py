import dataclasses
import struct
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import headers

from featstore.errors import RecordError
from featstore.records.codecs import compress
from featstore.records.features import Features
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError, dequantize, quantize
from featstore.records.record import LMDB_VALUE_OFFSET, Record, pack, pack_prefix, parse
from featstore.records.sizes import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, PAGE
from featstore.spec import STORED_DTYPES

GOLDEN = Path(__file__).parents[1] / "golden"

HEADER = Header(
    video_id="demo/water é",
    video_path="/videos/demo/water é.mp4",
    dataset="demo",
    nframe=3,
    frame_indices=struct.pack("<2I", 0, 70_000),
    total_frames=70_001,
    fps=29.97,
    shape=(4, 3),
    tokens_per_frame=2,
    quantization="int8",
    scale="channel",
    dtype="bf16",
    model_signature="0123abcd",
    spec="00112233445566778899aabbccddeeff",
    source=SourceFingerprint(123_456_789, 1_700_000_000_123_456_789, "f" * 32),
    error=QuantError(cosine=0.99, relative_l2=0.01, max_abs=0.5),
    created=1_700_000_000.25,
)
VALUES = np.arange(-6, 6, dtype=np.float32).reshape(4, 3)


def whole_record(
    header: Header = HEADER, x: np.ndarray = VALUES, codec: str = "raw"
) -> tuple[Header, bytes]:
    """Return a record of `x` with its header as the writer completes it."""
    stored, scale = quantize(x, header.quantization, header.scale)
    used, payload = compress(memoryview(stored.tobytes()), codec)
    checksum = xxhash.xxh3_64_intdigest(payload)
    header = dataclasses.replace(header, codec=used, payload_xxh3=checksum)
    return header, pack(header, scale.tobytes(), bytes(payload))


def values_of(header: Header, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=header.shape).astype(np.float32)


def read(record: bytes) -> Record:
    found = parse(memoryview(record))
    found.verify()
    return found


def hostile(fields: Any, scale: bytes = bytes(12), payload: bytes = bytes(12)) -> bytes:
    """A record with a right checksum around any header: what a liar would write."""
    packer = msgpack.Packer(unicode_errors="surrogatepass")
    head = bytearray(b"\x93\xde" + struct.pack(">H", len(fields) + 4))
    for key, value in (("format", 1), ("prefix_bytes", 0xFFFFFFFF), ("prefix_xxh3", bytes(8))):
        head += packer.pack(key) + packer.pack(value)
    for key, value in fields.items():
        head += packer.pack(key) + packer.pack(value)
    head += packer.pack("pad") + b"\xc5\0\0"
    for part in (scale, payload):
        head += b"\xc6" + struct.pack(">I", len(part)) + part
    prefix_bytes = len(head) - len(payload)
    at = head.index(b"prefix_bytes") + len("prefix_bytes") + 1
    head[at : at + 4] = struct.pack(">I", prefix_bytes)
    at = head.index(b"prefix_xxh3") + len("prefix_xxh3") + 2
    head[at : at + 8] = xxhash.xxh3_64_digest(head[:prefix_bytes])
    return bytes(head)


def plain_fields(**changes: Any) -> dict[str, Any]:
    fields = {**vars(HEADER), "payload_xxh3": xxhash.xxh3_64_intdigest(bytes(12))}
    fields |= {"source": list(vars(HEADER.source).values()), "error": vars(HEADER.error)}
    fields |= changes
    return {name: value for name, value in fields.items() if value is not ...}


@given(headers(), st.integers(0, 100))
def test_a_record_comes_back_as_it_was_packed(header, seed):
    x = values_of(header, seed)
    header, record = whole_record(header, x)
    stored, scale = quantize(x, header.quantization, header.scale)
    found = read(record)
    features = Features(found.header, found)
    assert found.header == header
    assert features.shape == x.shape
    assert np.array_equal(features.data, stored)
    assert np.array_equal(features.scale, scale)
    assert np.array_equal(features.dequantize(), dequantize(stored, scale, header.quantization))
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
    assert fields["format"] == 1
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
    assert not features.scale.flags.writeable
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
@settings(max_examples=50)
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
    record[11] = 2
    with pytest.raises(RecordError, match="has format 2, this featstore reads format 1; update"):
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
    {"tokens_per_frame": 0},
    {"tokens_per_frame": -2},
    {"tokens_per_frame": 3},
    {"tokens_per_frame": (1 << 64) - 1},
    {"total_frames": 0},
    {"total_frames": -5},
    {"total_frames": "9"},
    {"fps": "fast"},
    {"fps": False},
    {"quantization": "int4"},
    {"quantization": "fp32"},
    {"quantization": "bf16", "scale": "none"},
    {"quantization": 8},
    {"scale": "none"},
    {"scale": "row"},
    {"scale": "token"},
    {"scale": "tensor"},
    {"scale": None},
    {"dtype": "fp64"},
    {"dtype": b"bf16"},
    {"codec": "gzip"},
    {"codec": ["raw"]},
    {"video_id": b"bytes"},
    {"video_id": 7},
    {"dataset": None},
    {"spec": []},
    {"model_signature": {}},
    {"video_path": msgpack.ExtType(5, b"x")},
    {"created": "today"},
    {"payload_xxh3": "0"},
    {"payload_xxh3": 1},
    {"source": []},
    {"source": [1, 2]},
    {"source": [1, 2, "x", 4]},
    {"source": ["1", 2, "x"]},
    {"source": [1, None, "x"]},
    {"source": [1, 2, 3]},
    {"source": 5},
    {"error": {}},
    {"error": {"cosine": 1.0, "relative_l2": 0.0}},
    {"error": {"cosine": 1.0, "relative_l2": 0.0, "max_abs": 0.0, "more": 0.0}},
    {"error": {"cosine": "1", "relative_l2": 0.0, "max_abs": 0.0}},
    {"error": [1.0, 0.0, 0.0]},
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
    assert len(found.header.frames) * found.header.tokens_per_frame == found.header.shape[0]


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
        {"shape": (1 << 30, 1 << 20), "tokens_per_frame": 1 << 29},
        {"frame_indices": bytes(7)},
        {"nframe": 1},
        {"nframe": np.int64(3)},
        {"total_frames": 1 << 70},
        {"fps": None},
        {"codec": "gzip"},
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
        pack(HEADER, bytes(scale), bytes(payload))


def test_a_header_too_long_to_be_read_is_not_packed():
    header = dataclasses.replace(HEADER, video_path="x" * MAX_HEADER_BYTES)
    with pytest.raises(RecordError, match="the header holds"):
        pack(header, bytes(12), bytes(12))


def test_a_payload_beyond_what_lmdb_takes_is_not_packed():
    header = dataclasses.replace(HEADER, codec="lz4")
    with pytest.raises(RecordError, match="4 GiB at most"):
        pack_prefix(header, np.ones(3, "<f4").tobytes(), MAX_PAYLOAD_BYTES + 1)


GOLDEN_RECORDS = {
    "record_v1_int8_channel": (HEADER, VALUES, "raw"),
    "record_v1_bf16": (
        dataclasses.replace(HEADER, quantization="bf16", scale="none"),
        VALUES / 3,
        "raw",
    ),
    "record_v1_int8_tensor_lz4": (
        dataclasses.replace(HEADER, scale="tensor", shape=(4, 60)),
        np.ones((4, 60), np.float32),
        "lz4",
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
    header, x, codec = GOLDEN_RECORDS[name]
    golden = read_golden(name)
    found = read(golden)
    features = Features(found.header, found)
    stored, scale = quantize(x, header.quantization, header.scale)
    header = dataclasses.replace(
        header, codec=codec, payload_xxh3=xxhash.xxh3_64_intdigest(found.payload)
    )
    assert found.header == header
    assert np.array_equal(features.data, stored)
    assert np.array_equal(features.scale, scale)
    assert features.data.dtype == np.dtype(STORED_DTYPES[header.quantization])
    # The compressed bytes are the library's to choose; ours are all around them.
    assert pack(header, scale.tobytes(), bytes(found.payload)) == golden
