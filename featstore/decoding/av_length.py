"""Whether a file holds as many frames as it states: what was cut short still states the length that it had."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from featstore.decoding.av_file import MATROSKA, MOV, open_file
from featstore.decoding.frame_selection import MISSING, NotValidated

if TYPE_CHECKING:
    import av

    from featstore.decoding.av_packets import PacketTable

# Their heads state how long a file is; of other containers FFmpeg finds it out from what is there.
_STATE_LENGTH = (MATROSKA, "flv", "mxf")
_SLACK = (
    1.0  # seconds that may pass without a frame at the end, beside the longest pause between frames
)
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def check_length(
    path: str, container: av.container.InputContainer, stream: av.VideoStream, table: PacketTable
) -> None:
    """Raise NotValidated if the packets are more or fewer than the file states, or end clearly before its end.

    An edit list that leaves one frame of several is taken for a damaged one.
    """
    found, stated = len(table.flags), stream.frames
    if stated and stated != found:
        if container.format.name == MOV and found > 1 and _is_edited(path, stream, found):
            raise NotValidated("an edit list leaves out frames, or repeats some", "edit list")
        if found > stated:
            raise NotValidated(f"it states {stated} frames and has {found}", "frames not stated")
        raise NotValidated(f"it promises {stated} frames and has {found}", MISSING)
    if container.format.name in _STATE_LENGTH and len(table.order):
        _check_seconds(_stated_seconds(container, stream), stream, table)


def _is_edited(path: str, stream: av.VideoStream, found: int) -> bool:
    """Return whether nothing but its edit list makes an MP4 give another number of packets than it states."""
    if len(stream.index_entries) != found:
        return False
    with open_file(path, ignore_editlist="1") as whole:
        same: av.VideoStream = whole.streams[stream.index]
        return len(same.index_entries) == stream.frames


def _stated_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Return when the stream ends by what the file states; 0 if it does not, or sound may be what lasts so long."""
    if clock := _CLOCK.fullmatch(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = clock.groups()
        return int(hours) * 3_600 + int(minutes) * 60 + float(seconds)
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def _check_seconds(stated: float, stream: av.VideoStream, table: PacketTable) -> None:
    clock = float(stream.time_base or 0)
    last = float(table.shown_at[-1]) * clock
    pause = max((table.shown_at[1:] - table.shown_at[:-1]).tolist(), default=0) * clock
    if stated - last > pause + _SLACK:
        raise NotValidated(
            f"it states {stated:.1f} s and its last frame is at {last:.1f} s", MISSING
        )
