"""The last value that is taken and the first that is not, and the formulas that say beforehand what a record needs."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest
import zstandard
from sample_records import (
    HEADER,
    changed,
    hostile,
    joined,
    plain_fields,
    read,
    values_of,
    whole_record,
)
from toys import toy_features, toy_header, toy_spec

from featstore.errors import QuantizeError, RecordError
from featstore.geometry import RowLayout
from featstore.records import record
from featstore.records.codecs import compress
from featstore.records.codecs.blocks import Layout
from featstore.records.codecs.zstd_frames import compress_frame, decompress_frame
from featstore.records.header import from_map, to_map
from featstore.records.quantization import (
    BF16_MAX,
    MAX_FLOAT,
    MIN_CHANNEL_SCALE,
    MIN_SCALE,
    MIN_TOKEN_SCALE,
    measure_error,
    quantize,
    refuse_large,
    relative_token_errors,
)
from featstore.records.record import LMDB_VALUE_OFFSET, pack_prefix, pack_record, parse
from featstore.records.storage import (
    GRANULARITIES,
    MAX_HEADER_BYTES,
    MAX_ID_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_PREFIX_BYTES,
    PAGE,
    Storage,
)

STORAGES = [Storage("int8", name) for name in GRANULARITIES] + [
    Storage(values) for values in ("bf16", "fp16", "fp32")
]


def test_the_bounds_are_those_of_the_format():
    assert MAX_ID_BYTES == 4096
    assert MAX_HEADER_BYTES == 2**20
    assert MAX_PREFIX_BYTES == 2**26
    assert MAX_PAYLOAD_BYTES + MAX_PREFIX_BYTES == 2**32 - 1
    assert MIN_CHANNEL_SCALE == 2.0**-40
    assert MIN_TOKEN_SCALE == 2.0**-80
    assert (
        np.array([BF16_MAX], np.float32).view(np.uint32)[0] == 0x7F7F0000
    )  # one step below infinity


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 2)])
def test_what_a_record_needs_is_known_before_it_is_made(storage, shape):
    x = np.ones(shape, np.float32)
    stored, scales = quantize(x, storage)
    assert storage.payload_bytes(shape) == stored.nbytes
    assert storage.scale_bytes(shape) == sum(scale.nbytes for scale in scales)
    parts = stored.nbytes + storage.scale_bytes(shape)
    assert storage.record_bytes(shape, 0) == PAGE + parts
    assert storage.record_bytes(shape, 9) == PAGE + parts + 4 * 9
    assert storage.record_room(shape, 9) == (
        65_536 + 4 * 9 + storage.scale_bytes(shape),
        stored.nbytes,
    )


def test_a_header_of_the_longest_names_fits_the_room_that_is_kept_for_it():
    header = dataclasses.replace(
        HEADER, video_id="v" * MAX_ID_BYTES, video_path="p" * 4096, doubt="d" * 4096
    )
    room, _ = header.storage.record_room(header.shape, header.nframe)
    assert len(pack_prefix(header, struct.pack("<3f", 1, 1, 1), 12)) <= room


def sized(rows: int, width: int, **changes: object) -> dict[str, object]:
    layout = vars(RowLayout(units=1, tokens_per_unit=rows))
    return plain_fields(shape=[rows, width], layout=dict(layout), nframe=3, **changes)


@pytest.mark.parametrize(
    ("rows", "width", "holds"),
    [
        (2**24, 1, True),
        (1, 2**24 - 1, True),
        (1, 2**24, False),
        (256, 2**24 - 2**18 - 1, True),
        (256, 2**24 - 1, False),  # 4 GiB in all
    ],
)
def test_a_shape_is_taken_up_to_its_bounds(rows, width, holds):
    fields = sized(rows, width)
    if holds:
        assert from_map(fields).shape == (rows, width)
    else:
        with pytest.raises(RecordError, match="shape ="):
            from_map(fields)


@pytest.mark.parametrize(
    ("nframe", "frames", "holds"),
    [(65_536, 65_536, True), (65_537, 2, False), (2, 2, True), (1, 2, False), (2, 0, False)],
)
def test_frames_are_taken_up_to_their_bounds(nframe, frames, holds):
    fields = plain_fields(nframe=nframe, frame_indices=bytes(4 * frames))
    fields["layout"] = vars(RowLayout(units=1, tokens_per_unit=4))
    if holds:
        assert len(from_map(fields).frames) == frames
    else:
        with pytest.raises(RecordError, match=r"nframe|frame_indices"):
            from_map(fields)


@pytest.mark.parametrize(("units", "stride", "holds"), [(2, 1, True), (2, 2, False), (4, 1, False)])
def test_each_unit_begins_with_a_frame_that_was_taken(units, stride, holds):
    layout = RowLayout(
        units=units, tokens_per_unit=4 // units, frames_per_unit=stride, stride=stride
    )
    header = dataclasses.replace(HEADER, layout=layout)
    if holds:
        assert from_map(to_map(header)) == header
    else:
        with pytest.raises(RecordError, match="layout"):
            to_map(header)


def test_a_prefix_may_fill_all_that_precedes_the_payload():
    stored, scales = quantize(values_of(HEADER), HEADER.storage)
    needed = len(pack_prefix(HEADER, joined(scales), stored.nbytes))
    assert (needed + LMDB_VALUE_OFFSET) % PAGE == 0
    for room in (needed, needed - 1):
        buffer = memoryview(bytearray(room) + stored.tobytes())
        if room == needed:
            _, record = pack_record(HEADER, joined(scales), buffer, slice(room, len(buffer)))
            assert np.array_equal(
                np.frombuffer(read(bytes(record)).payload, np.int8), stored.ravel()
            )
        else:
            with pytest.raises(ValueError, match=f"{room} bytes precede the payload"):
                pack_record(HEADER, joined(scales), buffer, slice(room, len(buffer)))


def test_a_prefix_that_is_longer_than_a_reader_takes_is_not_packed(monkeypatch):
    scales = struct.pack("<3f", 1, 1, 1)
    length = len(pack_prefix(HEADER, scales, 12))
    monkeypatch.setattr(record, "MAX_PREFIX_BYTES", length)
    assert len(pack_prefix(HEADER, scales, 12)) == length
    monkeypatch.setattr(record, "MAX_PREFIX_BYTES", length - 1)
    with pytest.raises(RecordError, match=f"and {length - 1} together fit"):
        pack_prefix(HEADER, scales, 12)


@pytest.mark.parametrize("missing", range(1, 12))
def test_a_record_that_lacks_its_last_bytes_says_how_many_are_there(missing):
    _, record = whole_record()
    with pytest.raises(RecordError, match=f"claims 12 bytes, {12 - missing} are there"):
        parse(memoryview(record)[:-missing])


def test_a_header_whose_frames_no_set_takes_says_why_it_does_not_belong():
    spec = toy_spec()
    header = toy_header(spec, "demo", "a", toy_features(1))
    assert header.misfit(spec, "demo") == ""
    large = RowLayout(units=4, tokens_per_unit=8, grid=(4, 4, 2))
    assert dataclasses.replace(header, layout=large).misfit(spec, "demo") == (
        "the tokens of a unit are a grid of (4, 2); it is (2, 2) for all"
    )


def test_a_header_has_text_for_names_and_few_fields():
    for fields in (plain_fields() | {7: 1}, plain_fields() | {str(n): n for n in range(64)}):
        with pytest.raises(RecordError, match="header cannot be read"):
            parse(memoryview(hostile(fields)))


@pytest.mark.parametrize(
    ("token", "channel", "holds"),
    [
        (2.0**-63, 2.0**-63, True),  # the smallest normal float32
        (2.0**-64, 2.0**-63, False),
        (0.0, 1.0, False),
        (float("nan"), 1.0, False),
    ],
)
def test_two_scales_are_taken_if_their_product_is_a_normal_number(token, channel, holds):
    assert MIN_SCALE == 2.0**-126
    storage = changed("storage", granularity="channel_token")
    scales = struct.pack("<7f", *[token] * 4, *[channel] * 3)
    record = memoryview(hostile(plain_fields(**storage), scales))
    if holds:
        parse(record)
    else:
        with pytest.raises(RecordError, match="not above zero"):
            parse(record)


def test_scales_are_refused_if_a_value_of_theirs_is_beyond_float32():
    largest = np.float32(MAX_FLOAT / 127)
    below, above = np.nextafter(largest, np.float32(0)), np.nextafter(largest, np.float32(np.inf))
    refuse_large([np.array([below])])
    refuse_large([np.empty((0, 1), np.float32)])
    for scales in ([np.array([above])], [np.array([2.0**60]), np.array([1.0, 2.0**62])]):
        with pytest.raises(QuantizeError, match="beyond float32"):
            refuse_large(scales)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_error_of_many_rows_is_that_of_all_of_them(granularity):
    """More rows than are processed at once."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(301, 6)).astype(np.float32) * rng.exponential(size=(301, 1)).astype(
        np.float32
    )
    storage = Storage("int8", granularity)
    stored, scales = quantize(x, storage)
    found = measure_error(x, stored, scales, "int8")
    product = scales[0].astype(np.float64)
    for scale in scales[1:]:
        product = product * scale
    before, after = x.astype(np.float64), stored * product
    gap = before - after
    norms = np.linalg.norm(before, axis=1)
    median = np.sort(norms)[150]
    errors = np.sort(np.linalg.norm(gap, axis=1) / np.maximum(norms, 0.05 * median))
    assert found.relative_l2 == pytest.approx(
        np.linalg.norm(gap) / np.linalg.norm(before), rel=1e-4
    )
    cosine = (before * after).sum() / np.linalg.norm(before) / np.linalg.norm(after)
    assert found.cosine == pytest.approx(cosine, abs=1e-9)
    assert found.max_abs == pytest.approx(np.abs(gap).max(), rel=1e-4)
    assert found.token_p99 == pytest.approx(errors[297], rel=1e-4)  # the 298th of 301
    assert found.token_max == pytest.approx(errors[-1], rel=1e-4)


def test_the_norm_floor_is_a_share_of_the_lower_median():
    norms, gaps = np.array([4.0, 0.0, 2.0, 8.0]), np.ones(4)
    assert relative_token_errors(norms, gaps).tolist() == [1 / 4, 1 / 0.1, 1 / 2, 1 / 8]
    assert relative_token_errors(np.zeros(2), np.array([0.0, 0.5])).tolist() == [0, 1]


def test_a_payload_that_does_not_shrink_is_kept_as_it_is():
    layout = Layout("x", alignment=1, max_ratio=1)
    payload = memoryview(bytes(range(256)))
    assert len(layout.pack([payload[:252]])) == len(payload)
    kept, stored = compress(payload, Storage("int8", "channel", "zstd"))
    assert (kept.codec, stored) == ("raw", payload)


def test_a_frame_with_more_after_it_is_refused():
    frame = compress_frame(bytes(1000))
    assert zstandard.get_frame_parameters(frame).content_size == 1000
    assert not zstandard.get_frame_parameters(frame).has_checksum  # the record has its own
    assert decompress_frame(memoryview(frame), 1000, "it") == bytes(1000)
    for wrong, size in ((frame + b"x", 1000), (frame, 999), (frame[:-1], 1000)):
        with pytest.raises(RecordError, match=r"^it "):
            decompress_frame(memoryview(wrong), size, "it")


def test_a_table_may_claim_no_more_than_the_largest_ratio():
    layout = Layout("x", alignment=1, max_ratio=4)
    stored = memoryview(layout.pack([bytes(16)]))
    assert layout.spans(stored, 4 * len(stored), 1) == [(4, 16)]
    with pytest.raises(RecordError, match="cannot expand"):
        layout.spans(stored, 4 * len(stored) + 1, 1)
    assert layout.spans(memoryview(b""), 0, 0) == []
