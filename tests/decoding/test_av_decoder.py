"""A file whose container lies about its key frames is left to decord, with a doubt."""

from __future__ import annotations

import decord
import numpy as np
import pytest
from odd_clips import SQUARE, frames_of, remux, write_clip

from featstore.errors import VideoError
from featstore.preprocessing import prepare_frame

CODECS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9"}
MUXERS = {"whole": {}, "fragments": {"movflags": "frag_keyframe+empty_moov"}}


@pytest.fixture
def given(monkeypatch):
    """The frames that decord gives, by their indices."""
    frames = {}

    class Kept(decord.VideoReader):
        def get_batch(self, indices):
            batch = super().get_batch(indices)
            frames.update(zip(indices, batch.asnumpy(), strict=True))
            return batch

    monkeypatch.setattr(decord, "VideoReader", Kept)
    return frames


@pytest.mark.parametrize(
    ("codec", "keys"),
    [("h264", True), ("h264", False), ("hevc", False), ("vp9", True), ("vp9", False)],
)
@pytest.mark.parametrize("muxer", MUXERS)
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


@pytest.mark.parametrize(
    ("name", "muxer"), [("a.mp4", "whole"), ("a.mp4", "fragments"), ("a.mkv", "whole")]
)
@pytest.mark.parametrize("bframes", [0, 2])
def test_frames_of_hevc_that_are_called_key_frames_are_refused(tmp_path, name, muxer, bframes):
    """They were left to decord with a doubt: its frames differed in 29 of 150 runs on one clip."""
    plain, path = write_clip(tmp_path / "plain.mp4", "libx265", bframes=bframes), tmp_path / name
    for number, packet in enumerate(remux(plain, path, **MUXERS[muxer])):
        packet.is_keyframe = packet.is_keyframe or number % 4 == 0
    with pytest.raises(VideoError, match=r"calls frames of HEVC key frames .*use --decoder exact"):
        frames_of(path, "auto")
    assert frames_of(path, "exact")[0].total_frames == 24
    assert frames_of(path, "decord")[0].decoder == "decord"  # who asks for decord alone gets it


@pytest.mark.parametrize("muxer", MUXERS)
@pytest.mark.parametrize("codec", CODECS)
def test_an_index_that_is_right_is_not_doubted(tmp_path, codec, muxer):
    path = write_clip(tmp_path / "right.mp4", CODECS[codec], muxer=MUXERS[muxer])
    clip, _ = frames_of(path, "auto")
    assert (clip.decoder, clip.doubt) == ("pyav", "")
