"""A video file opened through PyAV, its video stream ready to decode, and the length that it states.

What was cut short still states the length that it had.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import av

from featstore.decoding.frame_selection import DAMAGE, MISSING, NotValidated
from featstore.decoding.frame_units import Units
from featstore.errors import VideoError

if TYPE_CHECKING:
    from featstore.decoding.av_packets import PacketTable

# Formats that make FFmpeg open other files than the one that was named.
_PLAYLISTS = {
    "hls",
    "dash",
    "concat",
    "concatf",
    "image2",
    "imf",
    "sdp",
    "rtsp",
    "rtp",
    "lavfi",
    "tty",
}
# The names of containers that are told apart.
MOV, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
# Their heads state how long a file is; of other containers FFmpeg finds it out from what is there.
_STATE_LENGTH = (MATROSKA, "flv", "mxf")
# Seconds that may pass without a frame at the end, beside the longest pause between frames.
_SLACK = 1.0
# Seconds that the head of a file may take to read where many are looked at.
_HEAD_SECONDS = 60.0
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_FORMATS = ",".join(sorted(av.formats_available - _PLAYLISTS))
# What opening a format that is not in the list raises: ArgumentError, which is ValueError before PyAV 17.
_NOT_LISTED: Any = av.error.classes[errno.EINVAL]


class StatedLength(NamedTuple):
    """How long the head of a file says it is; 0 for what it does not say."""

    seconds: float
    frames: int
    fps: float


def stated_length(path: str) -> StatedLength:
    """Return how long a file says it is; VideoError if its head cannot be read.

    No frame is looked for: what was cut short says what it was.
    """
    try:
        with open_file(path, timeout=_HEAD_SECONDS) as container:
            stream = video_stream(path, container, conceal=True)
            fps = float(stream.average_rate or 0)
            seconds = _stated_seconds(container, stream) or (container.duration or 0) / 1e6
            if stream.duration and stream.time_base:
                seconds = float(stream.duration * stream.time_base)
            seconds = max(seconds, 0.0)
            return StatedLength(seconds, stream.frames or round(seconds * fps), fps)
    except (av.FFmpegError, EOFError, UnicodeDecodeError) as exc:
        raise VideoError(f"{path} cannot be decoded: {reason(exc)}", path) from exc


def open_file(
    path: str, timeout: float | None = None, **options: str
) -> av.container.InputContainer:
    """Open the file, with FFmpeg's `options`; what is in it is never taken for the address of another.

    Args:
        path: of the file.
        timeout: seconds that opening and each read may take; None for no limit.
        options: FFmpeg's, for the container.

    Raises:
        VideoError: if its format is one that names other files.
        av.FFmpegError: if it cannot be read.
    """
    try:
        return av.open(
            f"file:{path}",
            container_options={"format_whitelist": _FORMATS, **options},
            timeout=timeout,
        )
    except _NOT_LISTED as exc:
        raise VideoError(
            f"{path} is a playlist, or no video; a video must hold its own frames", path
        ) from exc


def video_stream(
    path: str, container: av.container.InputContainer, *, conceal: bool
) -> av.VideoStream:
    """Return the main video stream, ready to decode on one thread.

    Args:
        path: of the file, for messages.
        container: the open file.
        conceal: whether a damaged frame is patched up, as players do, or ends the decoding.

    Raises:
        VideoError: if there is none, or FFmpeg has no decoder for it.
    """
    found = list(container.streams.video)
    pictures = [s for s in found if s.disposition & av.stream.Disposition.attached_pic]
    if not found:
        raise VideoError(f"{path} cannot be decoded: it has no video stream", path)
    if len(pictures) == len(found):
        raise VideoError(
            f"{path} cannot be decoded: it has no video stream, only a cover picture; leave it out",
            path,
        )
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
        raise VideoError(f"{path} cannot be decoded: its codec is unknown", path)
    for other in container.streams:
        if other is not stream and hasattr(other, "discard"):  # since PyAV 18
            other.discard = av.stream.Discard.all
    stream.codec_context.thread_count = 1
    if not conceal:
        stream.codec_context.options = {"err_detect": "explode"}
    return stream


def reason(exc: BaseException) -> str:
    """Return what an error of PyAV's says of the file, as a clause.

    Raises MemoryError if it says that memory ran out.
    """
    # EAGAIN: a thread finds no place.
    out_of_memory = getattr(exc, "errno", 0) in (errno.ENOMEM, errno.EAGAIN)
    if isinstance(exc, MemoryError) or out_of_memory:
        raise MemoryError from exc
    if isinstance(exc, av.error.InvalidDataError):
        return "it is not a video, or is damaged or cut short"
    if isinstance(exc, UnicodeDecodeError):
        return "its metadata are not UTF-8"
    text = getattr(exc, "strerror", None) or str(exc)
    return text[:1].lower() + text[1:]


def reorder_depth(path: str, stream: av.VideoStream) -> int:
    """Return how many frames the decoder holds back to show all in order; NotValidated if the first are damaged."""
    depth: int | None = getattr(stream.codec_context, "reorder_depth", None)
    if depth is not None:
        return depth
    if not stream.codec_context.has_b_frames:
        return 0
    # Before PyAV 17: what another decoder takes before its first frame comes out, those that are not shown included.
    with open_file(path, ignore_editlist="1") as container:
        same = video_stream(path, container, conceal=False)
        taken = 0
        try:
            for packet in container.demux(same):
                if packet.size == 0 or same.codec_context.decode(packet):
                    break
                taken += 1
        except (av.FFmpegError, EOFError) as exc:
            raise NotValidated("a frame is damaged", DAMAGE) from exc
    return taken


def indexed_keys(path: str, stream: av.VideoStream) -> list[int]:
    """Return when those frames are decoded that an MP4's index calls key frames; NotValidated if PyAV cannot tell."""
    entries = getattr(stream, "index_entries", None)
    if entries is not None:
        return [entry.timestamp for entry in entries if entry.is_keyframe]
    # Before PyAV 17: where no parser looks into packets, their flags are the index's.
    if not stream.frames:  # then nothing tells whether all that it lists is there
        raise NotValidated(
            f"it states no number of frames, and PyAV {av.__version__} does not show its index"
        )
    with open_file(path, fflags="noparse+nofillin") as container:
        packets = container.demux(container.streams[stream.index])
        return [packet.dts for packet in packets if packet.size and packet.is_keyframe]


def units_of(stream: av.VideoStream) -> Units:
    """Return how the packets of the stream are read."""
    context = stream.codec_context
    return Units.of(
        context.codec.canonical_name, context.extradata or b"", intra_only=context.codec.intra_only
    )


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
    if not hasattr(stream, "index_entries"):  # before PyAV 17
        return False
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
