"""What a packet says about its frame without being decoded: is it shown, is it needed, can decoding begin with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import av

_H264_SLICES = range(1, 6)
_H264_IDR = 5
_HEVC_SLICES = range(32)
_HEVC_LAST_UNREFERENCED = 14  # even kinds up to it: TRAIL_N, TSA_N, ..., RSV_VCL_N14
_HEVC_ENTRIES = range(16, 22)  # BLA, IDR and CRA
_HEVC_BROKEN = (16, 17, 18, 36)  # BLA and the end of a sequence: frames behind them may be left out
_VP9_SUPERFRAME = 0b110


class Use(IntFlag):
    """What is known of a packet's frame.

    UNREFERENCED: no other frame is built on it. LAYERED: it is above the lowest temporal layer of an HEVC stream.
    ENTRY: decoding may begin with it, and gives all frames that are shown after it. HIDDEN: it is not shown.
    BROKEN: frames near it may be left out.
    """

    UNKNOWN = 0
    UNREFERENCED = 1
    LAYERED = 2
    ENTRY = 4
    HIDDEN = 8
    BROKEN = 16


@dataclass(frozen=True)
class Units:
    """How the packets of a stream are read.

    Those of H.264 and HEVC hold units, of which the first or the first two bytes tell the kind. Each is behind its
    length, big-endian, or behind a start code.
    codec: its canonical name. length_bytes: of that length; 0 with start codes: then only entries are found.
    intra_only: each frame is built on no other.
    """

    codec: str
    length_bytes: int = 0
    intra_only: bool = False

    @classmethod
    def of(cls, codec: str, record: bytes, *, intra_only: bool = False) -> Units:
        """Read the decoder's configuration record, `avcC` or `hvcC`."""
        place = {"h264": 4, "hevc": 21}.get(codec, len(record))
        readable = len(record) > place and record[0] == 1
        return cls(codec, (record[place] & 3) + 1 if readable else 0, intra_only)

    def use(self, packet: av.Packet[Any]) -> Use:
        """Return what the packet says of its frame; UNKNOWN if nothing is certain."""
        if self.codec in ("h264", "hevc"):
            return self._use_of_units(packet)
        if self.codec in ("vp8", "vp9"):
            return self._use_of_vp(memoryview(packet), packet.is_keyframe)
        if self.intra_only or (self.codec == "av1" and packet.is_keyframe):
            return Use.ENTRY
        return Use.UNKNOWN

    def _use_of_vp(self, data: memoryview, key: bool) -> Use:
        if not len(data):
            return Use.BROKEN
        if self.codec == "vp8":
            hidden = not data[0] & 0x10
        else:  # the last frame of a superframe is shown; a frame of its own says so behind its profile
            profile_3 = data[0] & 0x30 == 0x30
            shown = data[0] >> (0 if profile_3 else 1) & 0b101  # show_existing_frame, show_frame
            hidden = data[-1] >> 5 != _VP9_SUPERFRAME and not shown
        return (Use.HIDDEN if hidden else Use.UNKNOWN) | (Use.ENTRY if key else Use.UNKNOWN)

    def _use_of_units(self, packet: av.Packet[Any]) -> Use:
        if self.length_bytes:
            uses = set(self._each(memoryview(packet)))
        else:
            uses = set(self._each_behind_start_code(bytes(packet))) if packet.is_keyframe else set()
        found = Use.UNKNOWN
        for use in uses:
            found |= use & (Use.LAYERED | Use.BROKEN | Use.ENTRY)
        slices = uses - {Use.BROKEN}
        return found | Use.UNREFERENCED if slices == {Use.UNREFERENCED} else found

    def _each(self, data: memoryview) -> Iterator[Use]:
        place = 0
        while place + self.length_bytes + 2 <= len(data):
            begin = place + self.length_bytes
            if (use := self._use(data[begin], data[begin + 1])) is not None:
                yield use
            place = begin + int.from_bytes(data[place:begin], "big")

    def _each_behind_start_code(self, data: bytes) -> Iterator[Use]:
        place = data.find(b"\0\0\1")
        while 0 <= place < len(data) - 4:
            use = self._use(data[place + 3], data[place + 4])
            if use is not None:
                yield use & ~Use.UNREFERENCED
            place = data.find(b"\0\0\1", place + 3)

    def _use(self, first: int, second: int) -> Use | None:
        """Return what the first two bytes of a unit say; None if it says nothing."""
        if self.codec == "h264":
            kind = first & 31
            if kind not in _H264_SLICES:
                return None
            if kind == _H264_IDR:
                return Use.ENTRY
            return Use.UNKNOWN if first & 0x60 else Use.UNREFERENCED  # nal_ref_idc
        kind = first >> 1 & 63
        broken = Use.BROKEN if kind in _HEVC_BROKEN else Use.UNKNOWN
        if kind not in _HEVC_SLICES:
            return broken or None
        if second & 7 != 1:  # nuh_temporal_id_plus1
            return Use.LAYERED
        if kind in _HEVC_ENTRIES:
            return Use.ENTRY | broken
        unreferenced = kind <= _HEVC_LAST_UNREFERENCED and kind % 2 == 0
        return Use.UNREFERENCED if unreferenced else Use.UNKNOWN
