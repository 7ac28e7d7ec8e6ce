"""Frames that may not be those asked for are known by a reason, or refused; others are those that a player shows."""

from __future__ import annotations

import make_decoder_corpus as corpus
import numpy as np
import pytest
from decoder_corpus import CASES

from featstore.decoding.video_file import decode
from featstore.errors import VideoError
from featstore.preprocessing import ShortestEdgeCrop
from featstore.sampling import Sampling

pytestmark = pytest.mark.slow

SQUARE = ShortestEdgeCrop(shortest_edge=32, crop_height=32, crop_width=32)
DOUBTS = {
    "h264_close_keys.mp4": "key frames too close",
    "h264_edit_at_start.mp4": "edit list",
    "h264_false_keys.mkv": "false key frames",
    "h264_flipped.mp4": "damage",
    "h264_intra_refresh.mp4": "open GOP",
    "h264_open_gop.mp4": "open GOP",
    "h264.flv": "flv container",
    "hevc_open_gop.mp4": "open GOP",
    "mpeg2.mp4": "open GOP",
    "mpeg2.mxf": "mxf container",
    "mpeg4.mp4": "open GOP",
    "wmv2.wmv": "asf container",
}
NONE = {
    "h264_10_bit.mp4": "its colors are yuv420p10le, matrix 2",
    "h264_interlaced.mp4": "it is interlaced",
    "h264_no_b.ts": "its container is not MP4, MOV, MKV or WebM",
    "h264_rotated_90.mp4": "it is turned",
    "mjpeg.avi": "its container is not MP4, MOV, MKV or WebM",
    "mpeg4.avi": "its container is not MP4, MOV, MKV or WebM",
    "vp8.webm": "its codec is vp8",
    "vp9_odd_size.webm": "its colors end between two pixels",
}
REFUSED = {
    "h264.ts": "it has B-frames in MPEG-TS",
    "h264_no_b.avi": "it has h264 in AVI",
    "mpeg2.mpg": "it is an MPEG program stream",
    "mpeg4_b.avi": "it has B-frames in AVI",
}
OTHER_COLORS = ("10_bit", "bt2020", "odd_size.webm")


def frames_of(path, decoder, nframe=16):
    out = np.zeros((nframe, *SQUARE.max_frame, 3), np.uint8)
    return decode(str(path), Sampling(nframe), SQUARE, out, decoder=decoder), out


@pytest.mark.parametrize("name", DOUBTS)
def test_a_kind_of_file_that_decord_miscounts_is_read_with_a_doubt(folder, name):
    clip, _ = frames_of(folder / name, "auto")
    assert (clip.decoder, clip.doubt) == ("decord", DOUBTS[name])
    assert clip.fallback


@pytest.mark.parametrize("name", NONE)
def test_what_was_only_not_compared_is_not_doubted(folder, name):
    clip, _ = frames_of(folder / name, "auto")
    assert (clip.decoder, clip.fallback, clip.doubt) == ("decord", NONE[name], "")


@pytest.mark.parametrize("name", REFUSED)
def test_what_decord_does_not_read_alike_twice_is_refused_with_the_remedy(folder, name):
    with pytest.raises(VideoError, match=f"{name}: {REFUSED[name]}, .* use --decoder exact"):
        frames_of(folder / name, "auto")


@pytest.mark.parametrize("name", ["h264_narrow.mp4", "h264_tiny.mp4"])
def test_padding_that_decord_takes_for_colors_is_not_served(folder, name):
    for decoder in ("auto", "decord"):
        with pytest.raises(VideoError, match=r"pixels wide; use --decoder exact"):
            frames_of(folder / name, decoder)


@pytest.mark.parametrize("name", sorted(set(CASES) - set(REFUSED)))
def test_frames_without_a_doubt_are_those_that_a_player_shows(folder, name):
    try:
        clip, frames = frames_of(folder / name, "auto")
    except VideoError:
        return
    if clip.doubt:
        assert clip.doubt == DOUBTS[name]
        return
    exact, shown = frames_of(folder / name, "exact")
    assert (exact.total_frames, exact.indices) == (clip.total_frames, clip.indices)
    far = np.abs(frames.astype(int) - shown).mean((1, 2, 3)).max()
    assert far <= (2 if any(part in name for part in OTHER_COLORS) else 0)


def test_a_doubt_is_told_also_of_files_that_are_read_by_decord_on_request(folder):
    clip, _ = frames_of(folder / "h264_edit_at_start.mp4", "decord")
    assert (clip.decoder, clip.fallback, clip.doubt) == ("decord", "", "edit list")
    clip, _ = frames_of(folder / "h264.mp4", "decord")
    assert (clip.decoder, clip.fallback, clip.doubt) == ("decord", "", "")


@pytest.mark.parametrize(
    ("name", "matrix", "doubt"),
    [
        ("mirrored.mp4", (-1, 0, 0, 1), "mirrored"),  # decord turns it by 180 degrees
        ("mirrored.mkv", (-1, 0, 0, 1), "mirrored"),
        ("turned.mkv", (0, 1, -1, 0), "turned"),  # and leaves this one as it is
        ("turned.mov", (0, 1, -1, 0), ""),
    ],
)
def test_what_decord_does_not_turn_as_the_file_says_is_doubted(tmp_path, name, matrix, doubt):
    case = corpus.Case(name, frames=4, width=128, height=96, matrix_shown=matrix)
    path = corpus.write(case, tmp_path / name)
    clip, frames = frames_of(path, "auto")
    assert clip.doubt == doubt
    assert np.array_equal(frames, frames_of(path, "exact")[1]) == (not doubt)
