"""A file whose container lies about its key frames is left to decord, with a doubt."""

from __future__ import annotations

import av
import make_decoder_corpus as corpus
import numpy as np
import pytest

from featstore.decoding.video_file import decode
from featstore.preprocessing import ShortestEdgeCrop
from featstore.sampling import Sampling

SQUARE = ShortestEdgeCrop(shortest_edge=32, crop_height=32, crop_width=32)
CODECS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9"}
WHOLE, FRAGMENTS = {}, {"movflags": "frag_keyframe+empty_moov"}


def write(path, codec, *, keys=None, muxer=WHOLE):
    """Write 24 frames, a key frame every six; keys: whether the container calls each packet of it one, or none."""
    case = corpus.Case(f"plain{path.suffix}", CODECS[codec], frames=24, gop=6, bframes=0)
    plain = corpus.write(case, path.with_name(case.name))
    with av.open(str(plain)) as source, av.open(str(path), "w", options=muxer) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.dts is not None:
                packet.stream = copy
                packet.is_keyframe = packet.is_keyframe if keys is None else number == 0 or keys
                target.mux(packet)
    return path


def frames_of(path, decoder):
    out = np.zeros((6, *SQUARE.max_frame, 3), np.uint8)
    return decode(str(path), Sampling(6), SQUARE, out, decoder=decoder), out


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("muxer", [WHOLE, FRAGMENTS], ids=["whole", "fragments"])
@pytest.mark.parametrize("codec", CODECS)
def test_an_index_with_other_key_frames_than_the_stream_is_a_doubt(tmp_path, codec, muxer, keys):
    path = write(tmp_path / "lies.mp4", codec, keys=keys, muxer=muxer)
    (clip, frames), (_, expected) = (frames_of(path, decoder) for decoder in ("auto", "decord"))
    assert (clip.decoder, clip.doubt) == ("decord", "false key frames")
    assert np.array_equal(frames, expected)


@pytest.mark.parametrize("muxer", [WHOLE, FRAGMENTS], ids=["whole", "fragments"])
@pytest.mark.parametrize("codec", CODECS)
def test_an_index_that_is_right_is_not_doubted(tmp_path, codec, muxer):
    clip, _ = frames_of(write(tmp_path / "right.mp4", codec, muxer=muxer), "auto")
    assert (clip.decoder, clip.doubt) == ("pyav", "")
