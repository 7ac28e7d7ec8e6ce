"""Small clips whose container or data are not as they should be, written anew by tests that want one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av
import make_decoder_corpus as corpus
import numpy as np

from featstore.decoding.video_file import decode
from featstore.preprocessing import ShortestEdgeCrop
from featstore.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from featstore.decoding.frame_selection import Clip

SQUARE = ShortestEdgeCrop(shortest_edge=32, crop_height=32, crop_width=32)


def write_clip(path: Path, codec: str = "libx264", **options: object) -> Path:
    """Write 24 frames, a key frame every six, no B-frames unless options of `corpus.Case` say otherwise."""
    chosen = {"frames": 24, "gop": 6, "bframes": 0, **options}
    written: Path = corpus.write(corpus.Case(path.name, codec, **chosen), path)
    return written


def remux(source: Path, path: Path, **muxer: str) -> Iterator[av.Packet]:
    """Copy the packets of a clip to `path`; each is yielded to be changed, and left out if its size becomes 0."""
    with av.open(str(source)) as read, av.open(str(path), "w", options=muxer) as written:
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                yield packet
                written.mux(packet)


def frames_of(path: Path, decoder: str, nframe: int = 6) -> tuple[Clip, NDArray[np.uint8]]:
    """Return what a decoder says of a clip, and the frames it takes."""
    out = np.zeros((nframe, *SQUARE.max_frame, 3), np.uint8)
    return decode(str(path), Sampling(nframe), SQUARE, out, decoder=decoder), out


def patched(path: Path, old: bytes, offset: int, new: bytes) -> Path:
    """Overwrite bytes of a file, `offset` behind the first place of `old`."""
    data = bytearray(path.read_bytes())
    place = data.index(old) + offset
    data[place : place + len(new)] = new
    path.write_bytes(data)
    return path
