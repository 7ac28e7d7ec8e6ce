"""Frames through PyAV: byte for byte as decord gives them, in about half the time, one at a time.

Seeks to the key frame before the wanted ones, leaves out frames that no other is built on, and converts only the wanted
ones. A file is read only if everything that was validated holds for it; else NotValidated is raised, at whatever frame
shows it. Reasons to doubt decord's own frames come first.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from featstore.decoding.av_file import (
    MATROSKA,
    MOV,
    check_length,
    indexed_keys,
    open_file,
    reason,
    reorder_depth,
    units_of,
    video_stream,
)
from featstore.decoding.av_packets import (
    KEY,
    PacketTable,
    check_close_keys,
    check_counted,
    check_depth,
)
from featstore.decoding.av_rgb import ToRgb, check_look, look_of
from featstore.decoding.av_seeking import seek_frames
from featstore.decoding.frame_selection import DAMAGE, NotRepeatable, NotValidated
from featstore.decoding.frame_units import Use

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.decoding.frame_selection import Clip, FrameSelection

# Major versions of FFmpeg's libavcodec and libswscale whose frames were compared with decord's, on x86-64.
VALIDATED_FFMPEG = ((61, 8), (62, 9), (63, 10))
# Their standards fix every bit of a frame; those of MPEG-4 and before leave the decoder some rounding.
CODECS = ("h264", "hevc", "vp9")
# What decord has no decoder for: there is nothing to be identical to.
PYAV_ONLY = ("av1",)
# Of streams without B-frames, decord finds the right frames in these too.
_OTHER_CONTAINERS = {"avi": "AVI", "mpegts": "MPEG-TS"}
# Their frames have no times in AVI, so that decord takes whichever comes out first.
_REORDERING = ("h264", "hevc", "mpeg1video", "mpeg2video")


class AvReader:
    """One file through PyAV; `codec` and `frames`, how many are shown, are known once it was examined."""

    def __init__(self, path: str) -> None:
        """Open nothing yet."""
        self._path = path
        self.codec = ""
        self.frames = 0

    def read(self, selection: FrameSelection) -> Clip:
        """Give the wanted frames to `selection`.

        Raises:
            NotValidated: if decord might give other frames.
            VideoError: if there is no video, or the sampling finds no frame to take.
            MemoryError: if memory runs out.
        """
        return self._open(selection)  # type: ignore[return-value]  # it has a selection

    def examine(self) -> None:
        """Look at the packets only; raises as `read` does."""
        self._open(None)

    def _open(self, selection: FrameSelection | None) -> Clip | None:
        try:
            with open_file(self._path) as container:
                return self._read(container, selection)
        except (AttributeError, TypeError) as exc:  # the API differs between major versions
            raise NotValidated(
                f"PyAV {av.__version__} is not as expected: {exc}", "unknown version of PyAV"
            ) from exc
        except (av.FFmpegError, EOFError, UnicodeDecodeError, MemoryError) as exc:
            found = reason(exc)
            raise NotValidated("a frame is damaged" if self.frames else found, DAMAGE) from exc

    def _read(
        self, container: av.container.InputContainer, selection: FrameSelection | None
    ) -> Clip | None:
        stream = video_stream(self._path, container, conceal=False)
        self.codec = stream.codec_context.codec.canonical_name
        units = units_of(stream)
        _check_container(container, stream, self.codec)
        table = PacketTable.read(container.demux(stream), units)
        self.frames = len(table.order)
        _check_repeatable(self._path, container, stream, table)
        check_counted(table)
        if container.format.name != MATROSKA:  # its index has the times at which frames are shown
            check_close_keys(table)
        # After what makes decord's own frames doubtful, which any PyAV tells.
        depth = reorder_depth(self._path, stream)
        check_depth(table, depth)
        entries = _entries(self._path, container, stream, table)
        check_length(self._path, container, stream, table)
        if not stream.average_rate:
            raise NotValidated("it states no frames a second", "no frame rate")
        exact = self.codec not in PYAV_ONLY
        if exact:
            _check_kind(container, self.codec)
        if selection is None:
            return None
        clip = selection.choose(self.frames, float(stream.average_rate or 0), "pyav")
        size = stream.codec_context.width, stream.codec_context.height
        to_rgb, look = ToRgb(stream), None
        wanted = selection.wanted
        for index, frame in seek_frames(container, stream, table, entries, wanted, depth):
            if look is None and exact:
                check_look(frame, size, turns_too=container.format.name == MOV)
            if look not in (None, look_of(frame)):
                raise NotValidated("its frames change their size or colors", "size")
            look = look_of(frame)
            selection.put(index, to_rgb(frame))
        return clip


def _check_container(
    container: av.container.InputContainer, stream: av.VideoStream, codec: str
) -> None:
    """Raise NotValidated if decord does not find the frames in such a container."""
    name, context = container.format.name, stream.codec_context
    others = [
        s
        for s in container.streams.video
        if not s.disposition & av.stream.Disposition.attached_pic and s is not stream
    ]
    if others:
        raise NotValidated(f"it has {len(others) + 1} video streams", "several video streams")
    if name in ("avi", "mpegts") and (
        context.has_b_frames or (name == "avi" and codec in _REORDERING)
    ):
        what = "B-frames" if context.has_b_frames else codec
        where = f"{what} in {_OTHER_CONTAINERS[name]}"
        raise NotRepeatable(f"it has {where}", where)
    if name == "mpeg":
        raise NotRepeatable("it is an MPEG program stream", "MPEG program stream")
    if name not in (MOV, MATROSKA, *_OTHER_CONTAINERS):
        raise NotValidated(f"its container is {name}", f"{name} container")


def _check_repeatable(
    path: str, container: av.container.InputContainer, stream: av.VideoStream, table: PacketTable
) -> None:
    """Raise NotRepeatable if the container calls frames of HEVC key frames that are none.

    decord begins to decode at them, and what its threads make of the frames that those are built on is left to chance:
    of 150 runs on one such clip 29 gave other frames than the rest. H.264's gave others in one run of 150 or none.
    """
    entries = table.dts[table.having(Use.ENTRY)]
    if stream.codec_context.codec.canonical_name != "hevc" or not len(entries):
        return
    keys: Any = table.dts[table.having(KEY)]
    if container.format.name == MOV:
        try:
            keys = indexed_keys(path, stream)
        except NotValidated:  # told later, if nothing else is odd
            return
    if not np.isin(keys, entries).all():
        raise NotRepeatable("it calls frames of HEVC key frames that are none", "false key frames")


def _entries(
    path: str, container: av.container.InputContainer, stream: av.VideoStream, table: PacketTable
) -> NDArray[np.int64]:
    """Return the places of the key frames; NotValidated if decord takes other frames for key frames.

    FFmpeg reads from the stream which frames are, and decord seeks by what the container says: an MP4's index may list
    others, and an MKV calls an I-frame of a stream with one reference frame a key frame.
    """
    keys = table.having(KEY)
    codec = stream.codec_context.codec.canonical_name
    if codec in PYAV_ONLY:
        return keys
    entries = table.having(Use.ENTRY) if codec in ("h264", "hevc") else keys
    if container.format.name == MOV:
        if not np.array_equal(indexed_keys(path, stream), table.dts[entries]):
            raise NotValidated("its index lists other key frames than it has", "false key frames")
    elif len(keys) > len(entries):
        raise NotValidated("decoding cannot begin with all its key frames", "false key frames")
    return entries


def _check_kind(container: av.container.InputContainer, codec: str) -> None:
    """Raise NotValidated if nobody compared PyAV's frames with decord's, which are right."""
    if not is_validated_here():
        raise NotValidated("this processor, or PyAV's FFmpeg, was not compared with decord's")
    if container.format.name not in (MOV, MATROSKA):
        raise NotValidated("its container is not MP4, MOV, MKV or WebM")
    if codec not in CODECS:
        raise NotValidated(f"its codec is {codec}")


def is_validated_here() -> bool:
    """Return whether frames were compared with decord's on this kind of processor with this FFmpeg."""
    majors = tuple(av.library_versions[name][0] for name in ("libavcodec", "libswscale"))
    return platform.machine() in ("x86_64", "AMD64") and majors in VALIDATED_FFMPEG
