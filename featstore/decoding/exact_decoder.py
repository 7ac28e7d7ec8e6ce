"""Frames as a player shows them: in the order of presentation, edit lists honoured, through PyAV from any container.

Where packets tell which frame is shown when, the wanted ones are sought. Else the whole file is decoded, and a frame's
index is its place in the order in which they come out. Frames are turned and mirrored as the file says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import av

from featstore.decoding.av_file import (
    MATROSKA,
    MOV,
    check_length,
    open_file,
    reason,
    reorder_depth,
    units_of,
    video_stream,
)
from featstore.decoding.av_packets import PacketTable, check_seekable
from featstore.decoding.av_rgb import ToRgb
from featstore.decoding.av_seeking import seek_frames
from featstore.decoding.frame_selection import DAMAGE, UNSETTLED, NotValidated
from featstore.decoding.frame_units import Use
from featstore.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from featstore.decoding.frame_selection import Clip, FrameSelection

# Of these, each packet that is shown gives one frame, and it is known which packets decoding may begin with.
_CODECS = ("h264", "hevc", "vp8", "vp9", "av1")
# These store the times at which frames are shown; for AVI and its like, FFmpeg makes them up.
_CONTAINERS = (MOV, MATROSKA, "mpegts", "flv")


class ExactReader:
    """One file through PyAV."""

    def __init__(self, path: str) -> None:
        """Open nothing yet."""
        self._path = path
        self._rate = 0.0
        self._count = 0
        self._doubt = ""

    def read(self, selection: FrameSelection) -> Clip:
        """Give the wanted frames to `selection`.

        Raises:
            VideoError: if there is no video, it is damaged, or the sampling finds no frame to take.
            MemoryError: if memory runs out.
        """
        try:
            try:
                clip = self._seek(selection)
            except NotValidated as exc:
                self._doubt_if_unsettled(exc)
                clip = self._decode_all(selection)
        except (av.FFmpegError, EOFError, UnicodeDecodeError, MemoryError) as exc:
            raise VideoError(
                f"{self._path} cannot be decoded: {reason(exc)}; copy it again, or leave it out",
                self._path,
            ) from exc
        return replace(clip, doubt=self._doubt)

    def _doubt_if_unsettled(self, why: NotValidated) -> None:
        if why.doubt in UNSETTLED and not self._doubt:
            self._doubt = why.doubt

    def _seek(self, selection: FrameSelection) -> Clip:
        """Take the frames from where packets say that they are; NotValidated if that is not certain."""
        with open_file(self._path) as container:
            stream = video_stream(self._path, container, conceal=False)
            units = units_of(stream)
            table = PacketTable.read(container.demux(stream), units)
            self._rate = float(stream.average_rate or stream.guessed_rate or 0)
            self._count = len(table.order)
            try:
                check_length(self._path, container, stream, table)
            except NotValidated as exc:
                self._doubt_if_unsettled(exc)
            known = units.intra_only or units.codec in _CODECS
            if container.format.name not in _CONTAINERS or not known:
                raise NotValidated("where its frames are is not known from its packets")
            depth = reorder_depth(self._path, stream)
            check_seekable(table, depth)
            clip = selection.choose(self._count, self._rate, "pyav")
            to_rgb = ToRgb(stream)
            entries = table.having(Use.ENTRY)
            try:
                for index, frame in seek_frames(
                    container, stream, table, entries, selection.wanted, depth
                ):
                    if frame.interlaced_frame:
                        raise NotValidated("its packets may hold half a frame")
                    selection.put(index, to_rgb(frame))
            except (av.FFmpegError, EOFError) as exc:
                raise NotValidated(reason(exc), DAMAGE) from exc
            return clip

    def _decode_all(self, selection: FrameSelection) -> Clip:
        """Decode from the beginning; twice if packets did not tell how many frames come out."""
        for _ in range(2):
            clip = selection.choose(self._count, self._rate, "pyav") if self._count else None
            count = self._decode_once(selection)
            if clip is not None and count == self._count:
                return clip
            self._count = count
            if not count:
                raise VideoError(f"{self._path} cannot be decoded: it has no frames", self._path)
        raise VideoError(
            f"{self._path} cannot be decoded: it gives another number of frames each time",
            self._path,
        )

    def _decode_once(self, selection: FrameSelection) -> int:
        """Give `selection` what it wants of the frames as they come out; return how many came."""
        wanted = set(selection.wanted)
        count = 0
        with open_file(self._path) as container:
            stream = video_stream(self._path, container, conceal=True)
            to_rgb = ToRgb(stream)
            for frame in self._frames(container, stream):
                if frame.is_corrupt:
                    self._doubt_if_unsettled(NotValidated("a frame is damaged", DAMAGE))
                if count in wanted:
                    selection.put(count, to_rgb(frame))
                count += 1
        return count

    def _frames(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[av.VideoFrame]:
        shown = False
        for packet in container.demux(stream):
            try:
                for frame in stream.codec_context.decode(packet):
                    shown = True
                    yield frame
            except av.error.InvalidDataError as exc:
                if (
                    shown
                ):  # before that, it is what a stream begins with that was cut out of another
                    raise VideoError(
                        f"{self._path} cannot be decoded: a frame is damaged, or the file was cut short; copy it again",
                        self._path,
                    ) from exc
