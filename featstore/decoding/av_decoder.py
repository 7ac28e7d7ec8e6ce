"""Frames through PyAV: byte for byte as decord gives them, in about half the time, one at a time.

Seeks to the key frame before the wanted ones, leaves out frames that no other is built on, and converts only the wanted
ones. A file is read only if everything that was validated holds for it; else NotValidated is raised, at whatever frame
shows it.
"""

from __future__ import annotations

import errno
import platform
from bisect import bisect_right
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import av

from featstore.decoding.av_packets import NotValidated, PacketTable, Units

if TYPE_CHECKING:
    from collections.abc import Iterator
    from fractions import Fraction

    import numpy as np
    from numpy.typing import NDArray

    from featstore.decoding.frame_selection import Clip, FrameSelection

# Major versions of FFmpeg's libavcodec and libswscale whose frames were compared with decord's, on x86-64.
VALIDATED_FFMPEG = ((62, 9), (63, 10))
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Their standards fix every bit of a frame; those of MPEG-4 and before leave the decoder some rounding.
CODECS = ("h264", "hevc", "vp9")
# What decord has no decoder for: there is nothing to be identical to.
PYAV_ONLY = ("av1",)
# decord's FFmpeg rounds 10-bit chroma, and the last line of an odd height, in its own way.
PIXEL_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p")
MATRICES = (1, 2, 5, 6, 7, 9)  # BT.709, unstated, BT.601 twice, SMPTE 240M, BT.2020
# In narrower frames decord takes the padding of FFmpeg's lines for pixels.
MIN_WIDTH = 64


class AvReader:
    """One file through PyAV; `codec` is known once it is open."""

    def __init__(self, path: str) -> None:
        """Open nothing yet."""
        self._path = path
        self.codec = ""

    def read(self, selection: FrameSelection) -> Clip:
        """Give the wanted frames to `selection`.

        Raises:
            NotValidated: if decord might give other frames.
            VideoError: if the sampling finds no frame to take.
            MemoryError: if memory runs out.
        """
        try:
            with av.open(
                f"file:{self._path}",
                options={"format_whitelist": ",".join(CONTAINERS)},
            ) as container:
                return self._read(container, selection)
        except av.error.InvalidDataError as exc:
            raise NotValidated("it is damaged") from exc
        except av.error.ArgumentError as exc:  # the whitelist refused it
            raise NotValidated("its container is not MP4, MOV, MKV or WebM") from exc
        except UnicodeDecodeError as exc:
            raise NotValidated("its metadata are not UTF-8") from exc
        except (AttributeError, TypeError) as exc:  # the API differs between major versions
            raise NotValidated(f"PyAV {av.__version__} is not as expected: {exc}") from exc
        except (av.FFmpegError, EOFError) as exc:
            if getattr(exc, "errno", 0) == errno.ENOMEM:
                raise MemoryError from exc
            raise NotValidated(_reason(exc)) from exc

    def _read(self, container: av.container.InputContainer, selection: FrameSelection) -> Clip:
        stream = self._stream(container)
        units = Units.of(self.codec, stream.codec_context.extradata or b"")
        table = PacketTable.read(container.demux(stream), units)
        _check_table(table, stream)
        clip = selection.choose(len(table.pts), float(stream.average_rate or 0), "av")
        to_rgb = _ToRgb(stream, exact=self.codec not in PYAV_ONLY)
        for key, wanted in _by_key_frame(table, selection.wanted).items():
            for index, frame in _Group(table, key, wanted).decode(container, stream):
                selection.put(index, to_rgb(frame))
        return clip

    def _stream(self, container: av.container.InputContainer) -> av.VideoStream:
        """Return the only video stream, ready to decode; NotValidated if it is of a kind that was not validated."""
        if len(container.streams.video) != 1:
            raise NotValidated(f"it has {len(container.streams.video)} video streams")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:  # PyAV's stubs do not say so
            raise NotValidated("its codec is unknown")
        self.codec = context.codec.canonical_name
        _check_kind(stream, self.codec)
        for other in container.streams:
            if other is not stream and hasattr(other, "discard"):  # since PyAV 18
                other.discard = av.stream.Discard.all
        context.thread_count = 1
        context.options = {"err_detect": "explode"}  # an error ends it; decord may conceal it
        return stream


def _check_kind(stream: av.VideoStream, codec: str) -> None:
    context = stream.codec_context
    if codec in PYAV_ONLY:
        return
    if not is_validated_here():
        raise NotValidated("this processor, or PyAV's FFmpeg, was not compared with decord's")
    if codec not in CODECS:
        raise NotValidated(f"its codec is {codec}")
    if context.width < MIN_WIDTH:
        raise NotValidated(f"it is {context.width} pixels wide")
    if any(name.lower() == "rotate" for name in stream.metadata):
        raise NotValidated("it is turned")


def is_validated_here() -> bool:
    """Return whether frames were compared with decord's on this kind of processor with this FFmpeg."""
    majors = tuple(av.library_versions[name][0] for name in ("libavcodec", "libswscale"))
    return platform.machine() in ("x86_64", "AMD64") and majors in VALIDATED_FFMPEG


def _check_table(table: PacketTable, stream: av.VideoStream) -> None:
    count = len(table.pts)
    if stream.frames and stream.frames != count:
        raise NotValidated(f"it promises {stream.frames} frames and has {count}")
    if not stream.average_rate:
        raise NotValidated("it states no frames a second")
    if table.reordered > stream.codec_context.reorder_depth:
        raise NotValidated(
            f"its frames are {table.reordered} places out of order, and it says less"
        )


def _by_key_frame(table: PacketTable, wanted: list[int]) -> dict[int, list[int]]:
    """Return the wanted indices by the index of the key frame they are decoded from."""
    groups: dict[int, list[int]] = {}
    for index in wanted:
        groups.setdefault(table.keys[bisect_right(table.keys, index) - 1], []).append(index)
    return groups


class _Group:
    """The wanted frames that are decoded from one key frame."""

    def __init__(self, table: PacketTable, key: int, wanted: list[int]) -> None:
        self._wanted = set(wanted)
        self._table = table
        self._key = key
        self._count = (
            wanted[-1] + table.reordered + 1 - key
        )  # packets that may hold frames up to the last wanted
        # Around a wanted frame nothing is left out: a frame whose time is wrong would show in the order they come out.
        span = range(-table.reordered, table.reordered + 1)
        self._around = {
            table.pts[i + n] for i in wanted for n in span if 0 <= i + n < len(table.pts)
        }

    def decode(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield the wanted frames with their indices; NotValidated if a packet does not give its frame in turn."""
        context = stream.codec_context
        due: set[int] = set()
        last = -1
        for packet in self._packets(container, stream):
            if packet is not None:
                skip = packet.pts in self._table.unreferenced and packet.pts not in self._around
                context.skip_frame = "NONREF" if skip else "DEFAULT"
                if not skip:
                    due.add(self._table.index[packet.pts])  # type: ignore[index]  # see _packets
            for frame in context.decode(packet):
                if frame.is_corrupt:
                    raise NotValidated("a frame is damaged")
                index = self._table.index.get(frame.pts, -1)  # type: ignore[arg-type]  # None is no time
                if index <= last:
                    raise NotValidated("its frames do not come out in the order of their times")
                last = index
                due.discard(index)
                if index in self._wanted:
                    yield index, frame
        if due:
            raise NotValidated(f"frame {min(due)} does not come out of its packet")

    def _packets(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[av.Packet[av.VideoStream] | None]:
        """Yield the packets to decode, then None, which brings out the frames that the decoder holds back."""
        packets = _from_key_frame(container, stream, self._table, self._key)
        for packet in islice(packets, self._count):
            if packet.pts is not None:  # else PyAV's mark of the stream's end
                yield packet
        yield None


def _from_key_frame(
    container: av.container.InputContainer, stream: av.VideoStream, table: PacketTable, key: int
) -> Iterator[av.Packet[av.VideoStream]]:
    """Yield the packets from a key frame on; containers seek by other clocks, so check where it led."""
    for aim in (table.pts[key], table.pts[0]):
        container.seek(aim, stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            if packet.pts == table.pts[key] and packet.is_keyframe:
                yield packet
                yield from packets
                return
            if packet.pts is None or packet.pts > table.pts[key]:
                break
    raise NotValidated(f"key frame {key} is not where the container says")


class _ToRgb:
    """Turns frames into (H, W, 3) uint8 RGB, as long as all have one size and format."""

    def __init__(self, stream: av.VideoStream, *, exact: bool) -> None:
        context = stream.codec_context
        self._size = context.width, context.height
        self._time_base = stream.time_base
        self._exact = exact
        self._look: tuple[object, ...] = ()
        self._graph: av.filter.Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        look = (
            frame.format.name,
            frame.width,
            frame.height,
            int(frame.colorspace),
            int(frame.color_range),
        )
        if self._graph is None:
            self._check(frame)
            self._look, self._graph = look, _rgb_graph(frame, self._time_base)
        if look != self._look:
            raise NotValidated("its frames change their size or colors")
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()  # type: ignore[return-value]  # rgb24

    def _check(self, frame: av.VideoFrame) -> None:
        """Raise NotValidated if decord's conversion may give other pixels."""
        if (frame.width, frame.height) != self._size:
            raise NotValidated("its container states another size than its frames have")
        if frame.rotation or frame.side_data.get("DISPLAYMATRIX"):
            raise NotValidated("it is turned")
        if not self._exact:
            return
        if "420" in frame.format.name and (frame.width % 2 or frame.height % 2):
            raise NotValidated("its colors end between two pixels")
        if frame.interlaced_frame:
            raise NotValidated("it is interlaced")
        if frame.format.name not in PIXEL_FORMATS or int(frame.colorspace) not in MATRICES:
            raise NotValidated(
                f"its colors are {frame.format.name}, matrix {int(frame.colorspace)}"
            )


def _rgb_graph(frame: av.VideoFrame, time_base: Fraction | None) -> av.filter.Graph:
    """Return decord's own chain of filters: scale to the size it has, in RGB.

    time_base: of the stream, as frames that the decoder held back have none.
    """
    graph = av.filter.Graph()
    nodes = [
        graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=time_base,
        ),
        graph.add("scale", f"{frame.width}:{frame.height}:flags=bicubic"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]
    for one, next_one in pairwise(nodes):
        one.link_to(next_one)
    graph.configure()
    return graph


def _reason(exc: BaseException) -> str:
    text = getattr(exc, "strerror", None) or str(exc)
    return text[:1].lower() + text[1:]
