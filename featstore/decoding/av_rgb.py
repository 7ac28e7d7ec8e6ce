"""Frames of PyAV as RGB, 8 bit, upright, through decord's own chain of filters."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import av
import numpy as np

from featstore.decoding.frame_selection import NotValidated

if TYPE_CHECKING:
    from fractions import Fraction

    from numpy.typing import NDArray

# decord's FFmpeg rounds 10-bit chroma, and the last line of an odd height, in its own way.
PIXEL_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p")
MATRICES = (1, 2, 5, 6, 7, 9)  # BT.709, unstated, BT.601 twice, SMPTE 240M, BT.2020
PADDED = 32  # pixels: FFmpeg makes lines a multiple of it
# By the angle that a display matrix turns by, counterclockwise: the filter, and the one if it mirrors as well.
_TURNS = {90: ("cclock", "clock_flip"), -90: ("clock", "cclock_flip")}


class ToRgb:
    """Turns frames into (H, W, 3) uint8 RGB; the size, the colors and the turn of a stream may change."""

    def __init__(self, stream: av.VideoStream) -> None:
        """Set nothing up yet: the first frame tells its size and format."""
        self._time_base = stream.time_base
        self._look: tuple[object, ...] = ()
        self._graph: av.filter.Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """Convert one frame."""
        look = look_of(frame)
        if self._graph is None or look != self._look:
            self._look, self._graph = look, _rgb_graph(frame, self._time_base)
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()  # type: ignore[return-value]  # rgb24


def look_of(frame: av.VideoFrame) -> tuple[object, ...]:
    """Return what the conversion depends on."""
    return (
        frame.format.name,
        frame.width,
        frame.height,
        int(frame.colorspace),
        int(frame.color_range),
        _display_matrix(frame),
    )


def turn(frame: av.VideoFrame) -> list[tuple[str, str]]:
    """Return the filters that turn and mirror a frame as its display matrix says, as ffplay does.

    Other angles than quarter turns are left as they are.
    """
    data = _display_matrix(frame)
    if not data:
        return []
    a, b, _, c, d = np.frombuffer(data, "<i4")[:5].tolist()  # a point is (ax + cy, bx + dy)
    if a == d == 0 and b and c:
        plain, mirrored = _TURNS[90 if b < 0 else -90]
        return [("transpose", plain if (b < 0) != (c < 0) else mirrored)]
    if b == c == 0:
        return [(name, "") for name, scale in (("hflip", a), ("vflip", d)) if scale < 0]
    return []


def _display_matrix(frame: av.VideoFrame) -> bytes:
    return bytes(frame.side_data.get("DISPLAYMATRIX") or b"")  # type: ignore[no-any-return,call-overload]


def _on_side(turns: list[tuple[str, str]]) -> bool:
    return any(name == "transpose" for name, _ in turns)


def _mirrors(turns: list[tuple[str, str]]) -> bool:
    mirrors = sum(name in ("hflip", "vflip") for name, _ in turns)
    return mirrors == 1 or any(argument.endswith("flip") for _, argument in turns)


def _is_misread(width: int) -> bool:
    """Return whether decord takes the padding of lines for more colors; so it does if they would come out even."""
    padded = -(-width // PADDED) * PADDED
    return padded != width and padded * 3 % width == 0


def check_look(frame: av.VideoFrame, size: tuple[int, int], *, turns_too: bool) -> None:
    """Raise NotValidated if decord may give other pixels.

    Args:
        frame: the first one.
        size: width and height that the container states.
        turns_too: whether decord knows how this kind of container says that a video is turned.
    """
    if (frame.width, frame.height) != size:
        raise NotValidated("its container states another size than its frames have", "size")
    turns = turn(frame)
    width = frame.height if _on_side(turns) else frame.width
    if _is_misread(width):
        raise NotValidated(f"it is {width} pixels wide", "narrow frames")
    if _mirrors(turns):
        raise NotValidated("it is mirrored", "mirrored")
    if _display_matrix(frame):
        raise NotValidated("it is turned", "" if turns_too else "turned")
    if "420" in frame.format.name and (frame.width % 2 or frame.height % 2):
        raise NotValidated("its colors end between two pixels")
    if frame.interlaced_frame:
        raise NotValidated("it is interlaced")
    if frame.format.name not in PIXEL_FORMATS or int(frame.colorspace) not in MATRICES:
        raise NotValidated(f"its colors are {frame.format.name}, matrix {int(frame.colorspace)}")


def _rgb_graph(frame: av.VideoFrame, time_base: Fraction | None) -> av.filter.Graph:
    """Return decord's chain: turn it, and scale to the size it then has, in RGB.

    time_base: of the stream, as frames that the decoder held back have none.
    """
    graph = av.filter.Graph()
    turns = turn(frame)
    width, height = frame.width, frame.height
    if _on_side(turns):
        width, height = height, width
    nodes = [
        graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=time_base,
        ),
        *(graph.add(name, argument or None) for name, argument in turns),
        graph.add("scale", f"{width}:{height}:flags=bicubic"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]
    for one, next_one in pairwise(nodes):
        one.link_to(next_one)
    graph.configure()
    return graph
