"""The packets of a video stream, read without decoding them: when each frame is shown, and where decoding can begin.

decord counts frames as packets, one each, sorted by the time they are shown, and finds one by seeking to the key frame
before it and counting on. `check_counted` says whether that is right. `check_seekable` says whether seeking finds the
frames at all: whether the order in which they are shown is known from the packets.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.decoding.frame_selection import DAMAGE, NO_FRAMES, NotRepeatable, NotValidated
from featstore.decoding.frame_units import Units, Use
from featstore.system.forks import cached_property

if TYPE_CHECKING:
    from collections.abc import Iterable

    import av
    from numpy.typing import NDArray

NO_TIME = -(1 << 63)
# Beside the bits of `Use`.
KEY, DISCARDED, CUT_SHORT = 32, 64, 128


@dataclass(frozen=True)
class PacketTable:
    """A stream's packets in the order they are stored and decoded, in arrays: an hour has a hundred thousand.

    pts, dts: when the frame is shown and decoded, in the stream's clock; NO_TIME if nothing says. sizes: in bytes.
    flags: of `Use`, KEY, DISCARDED (an edit list hides the frame) and CUT_SHORT.
    """

    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    sizes: NDArray[np.int32]
    flags: NDArray[np.uint8]

    @classmethod
    def read(cls, packets: Iterable[av.Packet[Any]], units: Units) -> PacketTable:
        """Run through a stream's packets."""
        pts, dts, sizes, flags = array("q"), array("q"), array("i"), array("B")
        for packet in packets:
            if packet.dts is None and packet.size == 0:
                continue  # not of the stream: PyAV's mark of its end
            pts.append(NO_TIME if packet.pts is None else packet.pts)
            dts.append(NO_TIME if packet.dts is None else packet.dts)
            sizes.append(packet.size)
            flags.append(
                units.use(packet)
                | KEY * packet.is_keyframe
                | DISCARDED * packet.is_discard
                | CUT_SHORT * packet.is_corrupt
            )
        return cls(
            np.frombuffer(pts, np.int64) if pts else np.zeros(0, np.int64),
            np.frombuffer(dts, np.int64) if dts else np.zeros(0, np.int64),
            np.frombuffer(sizes, np.int32) if sizes else np.zeros(0, np.int32),
            np.frombuffer(flags, np.uint8) if flags else np.zeros(0, np.uint8),
        )

    def having(self, bits: int) -> NDArray[np.int64]:
        """Return the places of the packets that have one of the flags."""
        return np.flatnonzero(self.flags & bits)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Return the places of the packets whose frames are shown, in the order they are shown."""
        shown = np.flatnonzero(self.flags & (Use.HIDDEN | DISCARDED) == 0)
        return shown[np.argsort(self.pts[shown], kind="stable")]

    @cached_property
    def shown_at(self) -> NDArray[np.int64]:
        """Return the times at which frames are shown, ascending."""
        return self.pts[self.order]

    @cached_property
    def early(self) -> NDArray[np.int64]:
        """Return how much sooner each shown frame is shown than decoded, in frames, in the order they are shown."""
        rank = np.empty(len(self.order), np.int64)
        rank[np.argsort(self.order)] = np.arange(len(self.order))
        return rank - np.arange(len(self.order))

    @property
    def reordered(self) -> int:
        """Return how many frames the decoder must hold back to show all in order."""
        return int(self.early.max(initial=0))

    @cached_property
    def unreferenced(self) -> NDArray[np.bool_]:
        """Return for each packet whether its frame may be left out.

        None in HEVC with temporal layers: there the upper ones may be built on a frame that its own layer does without.
        """
        if len(self.having(Use.LAYERED)):
            return np.zeros(len(self.flags), np.bool_)
        return (self.flags & Use.UNREFERENCED).astype(np.bool_)

    def index_of(self, pts: int | None) -> int:
        """Return which frame is shown at that time; -1 if none is."""
        if pts is None:
            return -1
        place = int(np.searchsorted(self.shown_at, pts))
        return place if place < len(self.shown_at) and self.shown_at[place] == pts else -1


def check_timed(table: PacketTable) -> None:
    """Raise NotValidated unless each shown frame has a time of its own and is whole."""
    _check_any(table)
    if np.any(table.pts == NO_TIME):
        raise NotRepeatable("a frame has no time", "frames without a time")
    if np.any(np.diff(table.shown_at) == 0):
        raise NotValidated("two frames have one time", "two frames at one time")
    # After that: FFmpeg also says so of where two MPEG-TS were joined.
    if len(table.having(CUT_SHORT)):
        raise NotValidated("a frame is cut short", DAMAGE)


def check_counted(table: PacketTable) -> None:
    """Raise NotValidated unless counting packets on from a key frame finds the frames."""
    _check_any(table)
    if len(table.having(DISCARDED)):
        raise NotValidated("an edit list leaves out frames", "edit list")
    if len(table.having(Use.HIDDEN)):
        raise NotValidated("some of its packets hold no frame that is shown", "alt-ref frames")
    check_timed(table)
    keys = table.having(KEY)
    if not len(keys) or keys[0] != 0:
        raise NotValidated("it does not begin with a key frame", "no key frame at the start")
    if np.any(table.shown_at[keys] != table.pts[keys]):
        raise NotValidated(
            "a key frame comes before frames that are shown earlier (open GOP)", "open GOP"
        )
    if np.any(table.early[table.unreferenced[table.order]] < 0):
        raise NotValidated(
            "a frame that no other needs comes before frames that are shown earlier",
            "frames out of order",
        )


def check_close_keys(table: PacketTable) -> None:
    """Raise NotValidated if decord's seek misses key frames in a container whose index has the times of decoding.

    It finds the last key frame that is decoded by the time at which the wanted one is shown. The index starts at 0,
    also if an edit list moves what is decoded before that.
    """
    keys = table.having(KEY)
    decoded = table.dts[keys] - min(int(table.dts[0]), 0)
    if np.any(decoded[1:] <= table.pts[keys[:-1]]):
        raise NotValidated(
            "a key frame is decoded before the one before it is shown", "key frames too close"
        )


def check_seekable(table: PacketTable, reorder_depth: int) -> None:
    """Raise NotValidated unless decoding from an entry gives the frames that decoding it all would give there."""
    check_timed(table)
    if not table.flags[0] & Use.ENTRY or np.any(table.shown_at < table.pts[0]):
        raise NotValidated("decoding cannot begin with its first frame")
    if len(table.having(Use.BROKEN)) or np.any(table.sizes == 0):
        raise NotValidated("it was joined of several streams")
    check_depth(table, reorder_depth)


def _check_any(table: PacketTable) -> None:
    if not len(table.order):
        raise NotValidated("it has no frames", NO_FRAMES)


def check_depth(table: PacketTable, reorder_depth: int) -> None:
    """Raise NotValidated if frames are further out of order than the stream says."""
    if table.reordered > reorder_depth:
        raise NotValidated(
            f"its frames are {table.reordered} places out of order, and it says less",
            "frames out of order",
        )
