"""A file that holds fewer frames than it states is doubted, whichever decoder reads it."""

from __future__ import annotations

import av
import make_decoder_corpus as corpus
import numpy as np
import pytest
from odd_clips import frames_of, patched, write_clip

BOTH = pytest.mark.parametrize("decoder", ["auto", "exact"])


@BOTH
@pytest.mark.parametrize(("name", "codec"), [("cut.mkv", "libx264"), ("cut.webm", "libvpx-vp9")])
def test_a_file_that_was_cut_short_of_its_stated_length_lacks_frames(
    tmp_path, name, codec, decoder
):
    path = write_clip(tmp_path / name, codec, frames=90, patch=corpus.cut(0.5))
    clip, _ = frames_of(path, decoder)
    assert 0 < clip.total_frames < 60
    assert clip.doubt == "frames missing"


@BOTH
def test_a_pause_and_sound_that_goes_on_longer_are_no_lack(tmp_path, decoder):
    slow = write_clip(tmp_path / "pauses.mkv", ticks=lambda index: index * 270_000)
    assert frames_of(slow, decoder)[0].doubt == ""
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        video, sound = (
            container.add_stream("libx264", rate=25),
            container.add_stream("aac", rate=8_000),
        )
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for index in range(12):
            picture = corpus.draw(index, 96, 64)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in range(0, 40_960, 1_024):
            silence = np.zeros((1, 1_024), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8_000, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert frames_of(path, decoder)[0].doubt == ""


def test_what_an_edit_list_hides_is_not_missing(tmp_path):
    path = write_clip(tmp_path / "short.mp4", frames=60)
    head = path.read_bytes()
    clock = head.index(b"mvhd") + 16  # of the edit list: 1000, and the stream's since FFmpeg 8.1
    ticks = int.from_bytes(head[clock : clock + 4], "big") * 2 // 5
    patched(path, b"elst", 12, ticks.to_bytes(4, "big"))
    assert frames_of(path, "auto")[0].doubt == "edit list"
    clip, _ = frames_of(path, "exact")
    assert (clip.total_frames, clip.doubt) == (10, "")


@BOTH
def test_a_head_that_leaves_one_frame_of_many_is_damaged(tmp_path, decoder):
    path = write_clip(tmp_path / "clock.mp4", frames=60)
    patched(path, b"mvhd", 16, b"\1")  # the clock of the edit list, ticks a second
    clip, _ = frames_of(path, decoder)
    assert (clip.total_frames, clip.doubt) == (1, "frames missing")
