"""The units inside H.264 and HEVC packets: whether any other frame is built on a packet's frame.

A unit is its length, big-endian, and that many bytes, of which the first or the first two tell its kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import av

_H264_SLICES = range(1, 6)
_HEVC_SLICES = range(32)
_HEVC_LAST_UNREFERENCED = 14  # even kinds up to it: TRAIL_N, TSA_N, ..., RSV_VCL_N14


class Use(Enum):
    """What other frames do with a frame; LAYERED: it is above the lowest temporal layer of an HEVC stream."""

    REFERENCED = 0
    UNREFERENCED = 1
    LAYERED = 2


@dataclass(frozen=True)
class Units:
    """How to read a stream's packets.

    length_bytes: of the number before each unit; 0 where packets cannot be read, and all count as referenced.
    """

    codec: str
    length_bytes: int

    @classmethod
    def of(cls, codec: str, record: bytes) -> Units:
        """Read the decoder's configuration record, `avcC` or `hvcC`."""
        place = {"h264": 4, "hevc": 21}.get(codec, len(record))
        readable = len(record) > place and record[0] == 1
        return cls(codec, (record[place] & 3) + 1 if readable else 0)

    def use(self, packet: av.Packet[Any]) -> Use:
        """Return what becomes of the packet's frame; REFERENCED where that is not plain."""
        slices = set(self._slices(packet))
        if Use.LAYERED in slices:
            return Use.LAYERED
        return Use.UNREFERENCED if slices == {Use.UNREFERENCED} else Use.REFERENCED

    def _slices(self, packet: av.Packet[Any]) -> Iterator[Use]:
        if not self.length_bytes:
            return
        data, place = memoryview(packet), 0
        while place + self.length_bytes + 2 <= len(data):
            begin = place + self.length_bytes
            if use := self._use(data[begin], data[begin + 1]):
                yield use
            place = begin + int.from_bytes(data[place:begin], "big")

    def _use(self, first: int, second: int) -> Use | None:
        """Return what the first two bytes of a unit say; None where it is no slice."""
        if self.codec == "h264":
            if first & 31 not in _H264_SLICES:
                return None
            return Use.REFERENCED if first & 0x60 else Use.UNREFERENCED  # nal_ref_idc
        kind = first >> 1 & 63
        if kind not in _HEVC_SLICES:
            return None
        if second & 7 != 1:  # nuh_temporal_id_plus1
            return Use.LAYERED
        unreferenced = kind <= _HEVC_LAST_UNREFERENCED and kind % 2 == 0
        return Use.UNREFERENCED if unreferenced else Use.REFERENCED
