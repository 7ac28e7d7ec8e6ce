"""The packets of a video stream as decord counts frames: one a packet, sorted by the time it is shown.

decord finds a frame by seeking to the key frame before it and counting on. That is right only if every packet gives
one frame, and every key frame has the same place in decoding order and in presentation order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from featstore.system.forks import cached_property

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import av


_H264_SLICES = range(1, 6)
_HEVC_SLICES = range(32)
_HEVC_LAST_UNREFERENCED = 14  # even kinds up to it: TRAIL_N, TSA_N, ..., RSV_VCL_N14


class NotValidated(Exception):
    """What is odd about a file: it was not verified that both decoders read such a file alike."""


class Use(Enum):
    """What other frames do with a frame; LAYERED: it is above the lowest temporal layer of an HEVC stream."""

    REFERENCED = 0
    UNREFERENCED = 1
    LAYERED = 2


@dataclass(frozen=True)
class Units:
    """The NAL units in the packets of an H.264 or HEVC stream: whether other frames are built on a packet's frame.

    A unit is its length, big-endian, and that many bytes, of which the first or the first two tell its kind.
    length_bytes: of that length; 0 if packets cannot be read, and all count as referenced.
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
        """Return what becomes of the packet's frame; REFERENCED if that is not certain."""
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
        """Return what the first two bytes of a unit say; None if it is not a slice."""
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


@dataclass(frozen=True)
class PacketTable:
    """A stream's frames in the order they are shown.

    pts: their times in the stream's clock, ascending. keys: indices of the key frames, ascending, the first one 0.
    reordered: how many frames the decoder must hold back to show all in order. unreferenced: times of the frames that
    no other is built on.
    """

    pts: list[int]
    keys: list[int]
    reordered: int
    unreferenced: frozenset[int]

    @classmethod
    def read(cls, packets: Iterable[av.Packet[Any]], units: Units) -> PacketTable:
        """Run through a stream's packets; NotValidated if counting them may not find the frames."""
        times: list[int] = []
        keys: list[int] = []
        uses: list[Use] = []
        for packet in packets:
            if packet.dts is None and packet.size == 0:
                continue  # not of the stream: PyAV's mark of its end
            if packet.is_keyframe:
                keys.append(len(times))
            times.append(_checked_time(packet))
            uses.append(units.use(packet))
        pts = _ascending(times, keys)
        shown = {time: index for index, time in enumerate(pts)}
        early = [place - shown[time] for place, time in enumerate(times)]
        return cls(pts, keys, max(early), _unreferenced(times, uses, early))

    @cached_property
    def index(self) -> dict[int, int]:
        """Return the indices of the frames by their times."""
        return {time: index for index, time in enumerate(self.pts)}


def _checked_time(packet: av.Packet[Any]) -> int:
    if packet.pts is None:
        raise NotValidated("a frame has no time")
    if packet.is_corrupt:
        raise NotValidated("a frame is cut short")
    if packet.is_discard:
        raise NotValidated("an edit list leaves out frames")
    return packet.pts


def _ascending(times: list[int], keys: list[int]) -> list[int]:
    """Return the times sorted, having checked that every key frame keeps its place."""
    pts = sorted(times)
    if not keys or keys[0] != 0:
        raise NotValidated("it does not begin with a key frame")
    if len(set(pts)) < len(pts):
        raise NotValidated("two frames have one time")
    if any(pts[key] != times[key] for key in keys):
        raise NotValidated("a key frame comes before frames that are shown earlier (open GOP)")
    return pts


def _unreferenced(times: list[int], uses: list[Use], early: list[int]) -> frozenset[int]:
    """Return the times of frames to leave out; early: how much sooner each is shown than decoded, in frames.

    None in HEVC with temporal layers: there the upper ones may be built on a frame that its own layer does without.
    """
    if Use.LAYERED in uses:
        return frozenset()
    found = [place for place, use in enumerate(uses) if use is Use.UNREFERENCED]
    if any(early[place] < 0 for place in found):
        raise NotValidated("a frame that no other needs comes before frames that are shown earlier")
    return frozenset(times[place] for place in found)
