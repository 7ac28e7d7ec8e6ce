"""The wanted frames of a stream, found by seeking to the entries before them and decoding on from there.

Each packet is compared with the table that was read before, and each frame with its packet: what does not hold ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featstore.decoding.av_packets import DISCARDED, NO_TIME, PacketTable
from featstore.decoding.frame_selection import DAMAGE, NotValidated
from featstore.decoding.frame_units import Use

if TYPE_CHECKING:
    from collections.abc import Iterator

    import av
    from numpy.typing import NDArray


def seek_frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    table: PacketTable,
    entries: NDArray[np.int64],
    wanted: list[int],
    depth: int,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield the wanted frames with their indices.

    Args:
        container: the open file.
        stream: its video stream, ready to decode.
        table: its packets.
        entries: places of the packets that decoding may begin with, ascending, the first one 0.
        wanted: indices of frames, ascending.
        depth: how many frames the decoder holds back.

    Raises:
        NotValidated: if a packet does not give its frame in turn.
    """
    groups: dict[int, list[int]] = {}
    for index in wanted:
        groups.setdefault(_entry_before(table, entries, index), []).append(index)
    for entry, frames in groups.items():
        aims = _aims(table, entry, int(1 / stream.time_base) if stream.time_base else 0)
        yield from _Group(table, entry, frames, depth).decode(container, stream, aims)


def _aims(table: PacketTable, entry: int, second: int) -> list[int]:
    """Return the times to seek to, one after the other, until the entry is found; second: in the stream's clock.

    MP4 and MKV find it by when it is shown, MPEG-TS the first packet that is decoded after a time.
    """
    decoded = table.pts[entry] if table.dts[entry] == NO_TIME else table.dts[entry]
    return [int(table.pts[entry]), int(decoded) - second, int(table.pts[0]) - 10 * second]


def _entry_before(table: PacketTable, entries: NDArray[np.int64], index: int) -> int:
    """Return the last entry that is decoded before the frame and not shown after it.

    Frames that are shown before an entry and decoded after it may be built on what came before it.
    """
    number = int(np.searchsorted(entries, table.order[index], "right")) - 1
    while table.pts[entries[number]] > table.shown_at[index]:
        number -= 1
    return int(entries[number])


class _Group:
    """The wanted frames that are decoded from one entry."""

    def __init__(self, table: PacketTable, entry: int, wanted: list[int], depth: int) -> None:
        self._table = table
        self._entry = entry
        self._wanted = set(wanted)
        last = int(table.order[: wanted[-1] + 1].max())
        # As far as the stream says that frames are out of order, also if their times are not: then they are wrong, and
        # another frame comes out before the wanted one.
        self._end = min(last + depth + 1, len(table.flags))
        # Around a wanted frame nothing is left out: a frame whose time is wrong would show in the order they come out.
        span = range(-depth, depth + 1)
        self._around = {index + n for index in wanted for n in span}

    def decode(
        self, container: av.container.InputContainer, stream: av.VideoStream, aims: list[int]
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield the wanted frames with their indices; aims: times to seek to until the entry is found."""
        context = stream.codec_context
        due: set[int] = set()
        last = -1
        for place, packet in self._packets(container, stream, aims):
            if packet is not None:
                index = self._index(place)
                skip = bool(self._table.unreferenced[place]) and index not in self._around
                context.skip_frame = "NONREF" if skip else "DEFAULT"
                if not skip and index >= 0:
                    due.add(index)
            for frame in context.decode(packet):
                if frame.is_corrupt:
                    raise NotValidated("a frame is damaged", DAMAGE)
                index = self._table.index_of(frame.pts)
                if index <= last:
                    raise NotValidated(
                        "its frames do not come out in the order of their times",
                        "frames out of order",
                    )
                last = index
                due.discard(index)
                if index in self._wanted:
                    yield index, frame
        if due:
            raise NotValidated(
                f"frame {min(due)} does not come out of its packet", "packets without a frame"
            )

    def _index(self, place: int) -> int:
        """Return which frame the packet must give; -1 if it gives none, or one that is shown before the entry."""
        table = self._table
        if table.flags[place] & (Use.HIDDEN | DISCARDED):
            return -1
        early = table.pts[place] < table.pts[self._entry]
        return -1 if early else table.index_of(int(table.pts[place]))

    def _packets(
        self, container: av.container.InputContainer, stream: av.VideoStream, aims: list[int]
    ) -> Iterator[tuple[int, av.Packet[av.VideoStream] | None]]:
        """Yield the packets to decode, then None, which brings out the frames that the decoder holds back."""
        table = self._table
        place = self._entry
        for packet in self._from_entry(container, stream, aims):
            if packet.pts is None:  # PyAV's mark of the stream's end
                break
            if packet.pts != table.pts[place] or packet.size != table.sizes[place]:
                raise NotValidated("other packets follow a key frame after a seek", "seeking")
            yield place, packet
            place += 1
            if place == self._end:
                break
        yield place, None

    def _from_entry(
        self, container: av.container.InputContainer, stream: av.VideoStream, aims: list[int]
    ) -> Iterator[av.Packet[av.VideoStream]]:
        """Yield the packets from the entry on; containers seek by other clocks, so check where it led."""
        pts, size = self._table.pts[self._entry], self._table.sizes[self._entry]
        for aim in aims:
            try:
                container.seek(aim, stream=stream)
            except PermissionError:  # so FFmpeg says that there is nothing before a time
                continue
            packets = container.demux(stream)
            for packet in packets:
                if packet.pts == pts and packet.size == size:
                    yield packet
                    yield from packets
                    return
                if packet.pts is None or packet.pts > pts:
                    break
        raise NotValidated(f"key frame {self._entry} is not where the container says", "seeking")
