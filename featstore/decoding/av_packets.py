"""The packets of a video stream as decord counts frames: one a packet, sorted by the time it is shown.

decord finds a frame by jumping to the key frame before it and counting on. That comes out right only where every
packet gives one frame, and every key frame has one and the same place in the orders of decoding and of showing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featstore.decoding.nal_units import Units, Use

if TYPE_CHECKING:
    from collections.abc import Iterable

    import av


class Uncertain(Exception):
    """What is odd about a file: nobody has proved that both decoders read such a file alike."""


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
        """Run through a stream's packets; Uncertain where counting them may not find the frames."""
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
        raise Uncertain("a frame has no time")
    if packet.is_corrupt:
        raise Uncertain("a frame is cut short")
    if packet.is_discard:
        raise Uncertain("an edit list leaves out frames")
    return packet.pts


def _ascending(times: list[int], keys: list[int]) -> list[int]:
    """Return the times sorted, having checked that every key frame keeps its place."""
    pts = sorted(times)
    if not keys or keys[0] != 0:
        raise Uncertain("it does not begin with a key frame")
    if len(set(pts)) < len(pts):
        raise Uncertain("two frames have one time")
    if any(pts[key] != times[key] for key in keys):
        raise Uncertain("a key frame comes before frames that are shown earlier (open GOP)")
    return pts


def _unreferenced(times: list[int], uses: list[Use], early: list[int]) -> frozenset[int]:
    """Return the times of frames to leave out; early: how much sooner each is shown than decoded, in frames.

    None in HEVC with temporal layers: there the upper ones may be built on a frame that its own layer does without.
    """
    if Use.LAYERED in uses:
        return frozenset()
    found = [place for place, use in enumerate(uses) if use is Use.UNREFERENCED]
    if any(early[place] < 0 for place in found):
        raise Uncertain("a frame that no other needs comes before frames that are shown earlier")
    return frozenset(times[place] for place in found)
