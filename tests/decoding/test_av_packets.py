"""The order of packets tells which frames decord would count to, and which ones may be left out."""

from __future__ import annotations

import pytest

from featstore.decoding.av_packets import (
    PacketTable,
    check_close_keys,
    check_counted,
    check_depth,
    check_seekable,
)
from featstore.decoding.frame_selection import NotValidated
from featstore.decoding.frame_units import Units, Use

AVCC, HVCC = b"\x01" + bytes(3) + b"\xff", b"\x01" + bytes(20) + b"\xff"
H264, HEVC = Units.of("h264", AVCC), Units.of("hevc", HVCC)
KEY, P, B, SEI = b"\x65\x88", b"\x41\x9a", b"\x01\x9e", b"\x06\x05"  # nal_ref_idc 3, 2, 0, 0


class Packet(bytes):
    """A packet of units, each two bytes and what follows, as a container holds them."""

    def __new__(cls, pts, *units, key=False, corrupt=False, discard=False):
        self = super().__new__(cls, b"".join(len(u).to_bytes(4, "big") + u for u in units))
        self.pts = self.dts = pts
        self.size = len(self)
        self.is_keyframe, self.is_corrupt, self.is_discard = key, corrupt, discard
        return self


class Bytes(bytes):
    """A packet with a key frame, as it is stored."""

    is_keyframe = True


def stream(*times):
    """A key frame, then frames shown at `times`, in the order of decoding; those shown late are referenced."""
    packets = [Packet(0, KEY, key=True)]
    latest = 0
    for time in times:
        packets.append(Packet(time, P if time > latest else B))
        latest = max(latest, time)
    return packets


def counted(packets, units=H264, depth=9):
    table = PacketTable.read(packets, units)
    check_counted(table)
    check_depth(table, depth)
    return table


def test_frames_are_counted_in_the_order_of_their_times():
    table = counted(stream(30, 10, 20, 60, 40, 50))
    assert table.shown_at.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert table.order.tolist() == [0, 2, 3, 1, 5, 6, 4]
    assert table.reordered == 1
    assert table.pts[table.unreferenced].tolist() == [10, 20, 40, 50]
    assert [table.index_of(time) for time in (0, 20, 60, 25, 61, None)] == [0, 2, 6, -1, -1, -1]


def test_what_an_edit_list_hides_is_not_counted_among_the_shown():
    packets = [*stream(30, 10, 20), Packet(-10, B, discard=True)]
    assert PacketTable.read(packets, H264).order.tolist() == [0, 2, 3, 1]


def test_a_key_frame_behind_frames_that_are_shown_before_it_is_uncertain():
    packets = [*stream(30, 10, 20), Packet(60, KEY, key=True), Packet(40, B), Packet(50, B)]
    with pytest.raises(NotValidated, match="open GOP") as caught:
        counted(packets)
    assert caught.value.doubt == "open GOP"
    check_seekable(PacketTable.read(packets, H264), 9)


@pytest.mark.parametrize(
    ("packet", "doubt"),
    [
        (Packet(None, P), "frames without a time"),
        (Packet(0, P), "two frames at one time"),
        (Packet(10, P, corrupt=True), "damage"),
        (Packet(10, P, discard=True), "edit list"),
    ],
)
def test_an_odd_packet_makes_a_file_uncertain(packet, doubt):
    with pytest.raises(NotValidated) as caught:
        counted([Packet(0, KEY, key=True), packet])
    assert caught.value.doubt == doubt


def test_a_stream_that_begins_within_a_group_is_uncertain():
    packets = [Packet(0, P), Packet(10, KEY, key=True)]
    with pytest.raises(NotValidated, match="key frame"):
        counted(packets)
    with pytest.raises(NotValidated, match="cannot begin"):
        check_seekable(PacketTable.read(packets, H264), 9)


def test_frames_that_are_shown_before_the_first_key_frame_are_not_sought():
    """A decoder leaves them out if they are built on what is not there."""
    packets = [Packet(20, KEY, key=True), Packet(10, B), Packet(30, P)]
    with pytest.raises(NotValidated, match="cannot begin"):
        check_seekable(PacketTable.read(packets, H264), 9)


def test_an_unreferenced_frame_that_is_shown_too_late_is_uncertain():
    """Its time is wrong, or it is decoded in vain: decord's count would pass it at another place."""
    packets = [Packet(0, KEY, key=True), Packet(30, B), Packet(10, P), Packet(20, P)]
    with pytest.raises(NotValidated, match="shown earlier"):
        counted(packets)


def test_frames_that_are_further_out_of_order_than_the_stream_says_are_uncertain():
    """A decoder that holds back too few drops those that come too late."""
    table = PacketTable.read(stream(30, 10, 20), H264)
    for check in (check_depth, check_seekable):
        with pytest.raises(NotValidated, match="1 places out of order"):
            check(table, 0)


def groups_of_two(delay, start=0):
    """A key frame every other packet; frames are shown `delay` after they are decoded."""
    packets = [Packet(delay + 10 * n, KEY if n % 2 == 0 else P, key=n % 2 == 0) for n in range(6)]
    for n, packet in enumerate(packets):
        packet.dts = start + 10 * n
    return PacketTable.read(packets, H264)


def test_decord_misses_a_key_frame_if_the_next_is_decoded_before_it_is_shown():
    check_close_keys(groups_of_two(delay=10))
    with pytest.raises(NotValidated, match="before the one before it is shown"):
        check_close_keys(groups_of_two(delay=20))
    check_close_keys(groups_of_two(delay=0, start=-20))  # an edit list makes up for the delay


def test_units_that_are_no_slices_say_nothing():
    assert H264.use(Packet(0, SEI, B)) == Use.UNREFERENCED
    assert H264.use(Packet(0, SEI)) == Use.UNKNOWN
    assert H264.use(Packet(0, B, P)) == Use.UNKNOWN


def test_nothing_is_left_out_of_hevc_with_temporal_layers():
    key, unreferenced, above = b"\x26\x01", b"\x00\x01", b"\x00\x02"
    plain = [Packet(0, key, key=True), Packet(10, unreferenced)]
    assert PacketTable.read(plain, HEVC).unreferenced.tolist() == [False, True]
    assert not PacketTable.read([*plain, Packet(20, above)], HEVC).unreferenced.any()


def test_decoding_begins_with_what_refers_to_nothing_before_it():
    """FFmpeg also calls an I-frame a key frame, behind which others may refer to what came before it."""
    i_frame = Packet(0, P, key=True)
    assert [H264.use(p) for p in (Packet(0, SEI, KEY, key=True), i_frame)] == [
        Use.ENTRY,
        Use.UNKNOWN,
    ]
    clean, broken, end = b"\x2a\x01", b"\x20\x01", b"\x48\x01"
    assert HEVC.use(Packet(0, clean, key=True)) == Use.ENTRY
    assert HEVC.use(Packet(0, broken, key=True)) == Use.ENTRY | Use.BROKEN
    assert HEVC.use(Packet(0, b"\x02\x01", end)) == Use.BROKEN


def test_entries_are_found_behind_start_codes_too():
    for data, use in (
        (b"\0\0\0\1\x09\x10\0\0\1" + KEY + b"..", Use.ENTRY),
        (b"\0\0\1" + P + b"..", 0),
    ):
        packet = Bytes(data)
        assert Units.of("h264", b"").use(packet) == use


@pytest.mark.parametrize(
    ("codec", "data", "hidden"),
    [
        ("vp8", b"\x10\0", False),
        ("vp8", b"\x01\0", True),
        ("vp9", b"\x86\0", False),
        ("vp9", b"\x84\0", True),
        ("vp9", b"\x88\0", False),  # shows a frame that was decoded before
        ("vp9", b"\x84\xc0", False),  # several frames, the last of which is shown
        ("vp9", b"\xb1\0", False),  # profile 3
        ("vp9", b"\xb2\0", True),
    ],
)
def test_packets_that_show_no_frame_are_known(codec, data, hidden):
    assert bool(Units(codec).use(Bytes(data)) & Use.HIDDEN) == hidden


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4"])
def test_packets_that_cannot_be_read_are_all_referenced(codec):
    units = Units.of(codec, b"\0\0\0\1\x67")
    assert units.length_bytes == 0
    assert units.use(Packet(0, B)) == Use.UNKNOWN
