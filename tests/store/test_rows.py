"""Rows of the catalog and their bytes: what was packed comes back, and nothing else is taken for a row."""

import msgpack
import pytest
import xxhash
from sample_records import HEADER
from toys import toy_spec

from featstore.errors import StoreDamaged
from featstore.records.storage import Storage
from featstore.store.engine.settings import MAX_ROW_BYTES
from featstore.store.rows import (
    Entry,
    FeatureSet,
    entries_of,
    entry_of,
    pack_row,
    unpack_entry,
    video_key,
)

DIGEST = "0123456789abcdef" * 2
ENTRY = Entry(
    spec=DIGEST,
    video_id="v",
    video_path="/v.mp4",
    rows=16,
    width=8,
    frames=4,
    values="int8",
    granularity="channel",
    codec="raw",
    record_bytes=4224,
    raw_bytes=128,
    decoder="pyav",
    doubt="",
    size=1000,
    mtime_ns=1_700_000_000_000_000_000,
    xxh3_128="0" * 32,
    cosine=1.0,
    relative_l2=0.0,
    max_abs=0.5,
    token_p99=0.01,
    token_max=0.02,
    created=1.7e9,
)
KEY = video_key(DIGEST, "v")
OTHERS = {str: (b"v", 1, None), int: (True, 1.0, "1"), float: (1, False, None)}


def row_of(values: object) -> bytes:
    """Pack any values as a row whose checksum is right."""
    packed = msgpack.packb(values)
    return b"\x92\xc4\x08" + xxhash.xxh3_64_digest(packed) + packed


def test_a_video_comes_back_as_it_was():
    found = unpack_entry(KEY, pack_row(ENTRY))
    assert found == ENTRY
    assert type(found) is Entry
    assert [type(value) for value in found] == [type(value) for value in ENTRY]


@pytest.mark.parametrize("field", Entry._fields[1:])
def test_a_video_with_a_value_of_another_type_is_refused(field):
    for value in OTHERS[type(getattr(ENTRY, field))]:
        with pytest.raises(StoreDamaged, match="its values are not those of a video"):
            unpack_entry(KEY, pack_row(ENTRY._replace(**{field: value})))


@pytest.mark.parametrize(
    "values", [list(ENTRY), list(ENTRY)[2:], [], {}, 7, None, dict.fromkeys(range(21), 0)]
)
def test_what_is_no_list_of_a_video_is_refused(values):
    with pytest.raises(StoreDamaged, match="cannot be read"):
        unpack_entry(KEY, row_of(values))


@pytest.mark.parametrize(
    "other", [{"values": "int4"}, {"granularity": "none"}, {"codec": "later"}, {"values": "bf16"}]
)
def test_a_video_that_is_stored_in_an_unknown_way_says_so_when_asked(other):
    entry = unpack_entry(KEY, pack_row(ENTRY._replace(**other)))
    with pytest.raises(StoreDamaged, match="another version"):
        _ = entry.storage


def test_a_whole_row_that_is_not_understood_is_of_another_version():
    with pytest.raises(StoreDamaged, match=r"another version of featstore .*; update featstore$"):
        unpack_entry(KEY, row_of([]))


@pytest.mark.parametrize("at", [0, 2, 3, 10, 11, 40, -1])
def test_a_flipped_byte_of_a_row_is_refused(at):
    data = bytearray(pack_row(ENTRY))
    data[at] ^= 1
    with pytest.raises(StoreDamaged, match="its checksum is not that of what it holds"):
        unpack_entry(KEY, bytes(data))


VIDEOS = [pack_row(ENTRY._replace(video_id=f"v\udcff{number}")) for number in range(130)]


def test_many_rows_are_those_that_each_is_on_its_own():
    found = [*entries_of(DIGEST, iter(VIDEOS))]
    assert found == [entry_of(DIGEST, data) for data in VIDEOS]
    assert {type(entry) for entry in found} == {Entry}


@pytest.mark.parametrize(
    "wrong",
    [
        row_of([]),
        row_of(7),
        row_of(dict.fromkeys(range(21), 0)),
        row_of([*ENTRY[1:], 1.0]),
        pack_row(ENTRY._replace(created=1)),
        VIDEOS[0][:-1] + b"\1",
        VIDEOS[0] + VIDEOS[0],
        VIDEOS[0][:11],
        b"",
    ],
)
def test_of_many_rows_one_that_is_not_right_is_refused_and_those_before_it_come(wrong):
    with pytest.raises(StoreDamaged) as alone:
        entry_of(DIGEST, wrong)
    rows = entries_of(DIGEST, [*VIDEOS[:70], wrong, *VIDEOS[70:]])
    assert [next(rows).video_id for _ in range(70)] == [f"v\udcff{number}" for number in range(70)]
    with pytest.raises(StoreDamaged) as among:
        next(rows)
    assert str(among.value) == str(alone.value)


def test_a_key_that_is_no_digest_is_told_as_far_as_it_can_be():
    assert unpack_entry(b"\xff" * 64, pack_row(ENTRY)).spec == "\ufffd" * 32


def test_a_row_is_packed_up_to_what_a_reader_takes():
    room = MAX_ROW_BYTES - len(pack_row(ENTRY._replace(doubt="x" * (1 << 16)))) + (1 << 16)
    assert len(pack_row(ENTRY._replace(doubt="x" * room))) == MAX_ROW_BYTES
    with pytest.raises(ValueError, match=f"too long for a catalog, which takes {MAX_ROW_BYTES}"):
        pack_row(ENTRY._replace(doubt="x" * (room + 1)))


@pytest.mark.parametrize(("created", "differs"), [(7.0, True), (8.0, False), (9.0, False)])
def test_a_record_of_another_codec_is_due_if_it_was_made_before_the_storage_was_replaced(
    created, differs
):
    row = FeatureSet(toy_spec(), Storage("int8", "channel", "zstd"), None, "toy", {}, 1.0, 8.0)
    assert row.differs(ENTRY._replace(created=created)) is differs


def test_a_row_names_the_file_and_the_error_of_its_record():
    entry = Entry.of(HEADER, 4224)
    assert entry.source == HEADER.source
    assert entry.error == HEADER.error
    assert len(set(vars(HEADER.error).values())) == 5  # or two of them could be exchanged unseen
