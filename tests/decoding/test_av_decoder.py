"""A file whose container lies about its key frames is left to decord, with a doubt."""

from __future__ import annotations

import decord
import numpy as np
import pytest
from odd_clips import SQUARE, frames_of, remux, write_clip

from featstore.preprocessing import prepare_frame

CODECS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9"}
MUXERS = {"whole": {}, "fragments": {"movflags": "frag_keyframe+empty_moov"}}


@pytest.fixture
def given(monkeypatch):
    """The frames that decord gives, by their indices: of HEVC now and then others than in its last run."""
    frames = {}

    class Kept(decord.VideoReader):
        def get_batch(self, indices):
            batch = super().get_batch(indices)
            frames.update(zip(indices, batch.asnumpy(), strict=True))
            return batch

    monkeypatch.setattr(decord, "VideoReader", Kept)
    return frames


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("muxer", MUXERS)
@pytest.mark.parametrize("codec", CODECS)
def test_an_index_with_other_key_frames_than_the_stream_is_a_doubt(
    tmp_path, given, codec, muxer, keys
):
    plain, path = write_clip(tmp_path / "plain.mp4", CODECS[codec]), tmp_path / "lies.mp4"
    for number, packet in enumerate(remux(plain, path, **MUXERS[muxer])):
        packet.is_keyframe = number == 0 or keys
    clip, frames = frames_of(path, "auto")
    assert (clip.decoder, clip.doubt) == ("decord", "false key frames")
    expected = [prepare_frame(given[index], SQUARE, len(clip.indices)) for index in clip.indices]
    assert np.array_equal(frames, expected)


@pytest.mark.parametrize("muxer", MUXERS)
@pytest.mark.parametrize("codec", CODECS)
def test_an_index_that_is_right_is_not_doubted(tmp_path, codec, muxer):
    path = write_clip(tmp_path / "right.mp4", CODECS[codec], muxer=MUXERS[muxer])
    clip, _ = frames_of(path, "auto")
    assert (clip.decoder, clip.doubt) == ("pyav", "")
