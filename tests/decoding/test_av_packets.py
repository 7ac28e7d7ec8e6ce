"""The order of packets tells which frames decord would count to, and which ones may be left out."""

from __future__ import annotations

import pytest

from featstore.decoding.av_packets import NotValidated, PacketTable, Units, Use

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


def stream(*times):
    """A key frame, then frames shown at `times`, in the order of decoding; those shown late are referenced."""
    packets = [Packet(0, KEY, key=True)]
    latest = 0
    for time in times:
        packets.append(Packet(time, P if time > latest else B))
        latest = max(latest, time)
    return packets


def test_frames_are_counted_in_the_order_of_their_times():
    table = PacketTable.read(stream(30, 10, 20, 60, 40, 50), H264)
    assert table.pts == [0, 10, 20, 30, 40, 50, 60]
    assert (table.keys, table.reordered) == ([0], 1)
    assert table.unreferenced == {10, 20, 40, 50}


def test_a_key_frame_behind_frames_that_are_shown_before_it_is_uncertain():
    packets = [*stream(30, 10, 20), Packet(60, KEY, key=True), Packet(40, B), Packet(50, B)]
    with pytest.raises(NotValidated, match="open GOP"):
        PacketTable.read(packets, H264)


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (Packet(None, P), "no time"),
        (Packet(0, P), "two frames have one time"),
        (Packet(10, P, corrupt=True), "cut short"),
        (Packet(10, P, discard=True), "edit list"),
    ],
)
def test_an_odd_packet_makes_a_file_uncertain(packet, why):
    with pytest.raises(NotValidated, match=why):
        PacketTable.read([Packet(0, KEY, key=True), packet], H264)


def test_a_stream_that_begins_within_a_group_is_uncertain():
    with pytest.raises(NotValidated, match="key frame"):
        PacketTable.read([Packet(0, P), Packet(10, KEY, key=True)], H264)


def test_an_unreferenced_frame_that_is_shown_too_late_is_uncertain():
    """Its time is wrong, or it is decoded in vain: decord's count would pass it at another place."""
    packets = [Packet(0, KEY, key=True), Packet(30, B), Packet(10, P), Packet(20, P)]
    with pytest.raises(NotValidated, match="shown earlier"):
        PacketTable.read(packets, H264)


def test_units_that_are_no_slices_say_nothing():
    assert H264.use(Packet(0, SEI, B)) is Use.UNREFERENCED
    assert H264.use(Packet(0, SEI)) is Use.REFERENCED
    assert H264.use(Packet(0, B, P)) is Use.REFERENCED


def test_nothing_is_left_out_of_hevc_with_temporal_layers():
    key, unreferenced, above = b"\x26\x01", b"\x00\x01", b"\x00\x02"
    plain = [Packet(0, key, key=True), Packet(10, unreferenced)]
    assert PacketTable.read(plain, HEVC).unreferenced == {10}
    assert PacketTable.read([*plain, Packet(20, above)], HEVC).unreferenced == set()


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9"])
def test_packets_that_cannot_be_read_are_all_referenced(codec):
    units = Units.of(codec, b"\0\0\0\1\x67")
    assert units.length_bytes == 0
    assert units.use(Packet(0, B)) is Use.REFERENCED
