"""What a message says of a file that is not read is true, and what it advises reads the file."""

from __future__ import annotations

import make_decoder_corpus as corpus
import pytest
from odd_clips import SQUARE, frames_of, patched, write_clip

from featstore.decoding import decord_decoder, worker
from featstore.decoding.worker import DecodeSetup, DecodeTask
from featstore.errors import VideoError
from featstore.sampling import Sampling
from featstore.system.processes import Slots

EXACT = "; use --decoder exact, which takes the frames that a player shows"
COPY = "; copy it again, or leave it out"


def said_of(path, decoder):
    with pytest.raises(VideoError) as caught:
        frames_of(path, decoder)
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.gif", "gif", "rgb8"),
        ("raw.h264", "libx264", "yuv420p"),
        ("raw.hevc", "libx265", "yuv420p"),
    ],
)
def test_what_only_exact_reads_is_sent_to_it(tmp_path, name, codec, pix_fmt):
    path = write_clip(tmp_path / name, codec, pix_fmt=pix_fmt)
    for decoder in ("auto", "decord"):
        assert said_of(path, decoder) == f" cannot be opened as a video: it states no length{EXACT}"
    assert said_of(path, "av") == f" is not read by PyAV: its container is {path.suffix[1:]}{EXACT}"
    assert frames_of(path, "exact")[0].total_frames == 24


def test_what_decord_reads_is_sent_to_auto(tmp_path):
    path = write_clip(tmp_path / "odd.mov", "mjpeg", pix_fmt="yuvj420p")
    assert said_of(path, "av") == " is not read by PyAV: its codec is mjpeg; take --decoder auto"
    assert frames_of(path, "auto")[0].doubt == ""


def test_decord_is_not_said_to_see_no_video_in_av1(tmp_path):
    path = write_clip(tmp_path / "av1.mp4", "libsvtav1")
    said = " cannot be decoded: decord cannot read AV1; take --decoder auto"
    assert said_of(path, "decord") == said
    assert frames_of(path, "auto")[0].total_frames == 24


@pytest.mark.parametrize("decoder", ["auto", "av", "decord"])
@pytest.mark.parametrize("codec", ["libsvtav1", "libx264"])
def test_what_is_damaged_is_not_sent_to_another_decoder(tmp_path, codec, decoder):
    path = write_clip(
        tmp_path / "cut.mp4", codec, muxer={"movflags": "faststart"}, patch=corpus.cut(0.7)
    )
    assert said_of(path, decoder).endswith(COPY)


def test_a_file_without_a_frame_to_show_is_not_sent_to_another_decoder(tmp_path):
    path = write_clip(tmp_path / "past.mp4")
    patched(path, b"elst", 16, (1 << 20).to_bytes(4, "big"))
    for decoder in ("auto", "av"):
        assert said_of(path, decoder).endswith(COPY)


def test_no_line_of_source_is_shown():
    inner = "[01:02:03] /build/src/threaded_decoder.cc:159: Check failed: graph->Pop(&p) It broke."
    for text in (inner, f"[01:02:03] /build/src/video_reader.cc:309: {inner}\nStack trace: ..."):
        assert decord_decoder._reason(RuntimeError(text)) == "It broke."


def test_a_decoder_that_a_damaged_frame_ended_is_told_in_words():
    text = "[01:02:03] /build/src/threaded_decoder.cc:187: Check failed: run_.load()"
    assert decord_decoder._reason(RuntimeError(text)) == "a frame is damaged"


def test_what_fails_where_memory_is_scarce_may_be_sound(tmp_path):
    path = tmp_path / "damaged.mp4"
    path.write_bytes(b"no video")
    slots = Slots.create(1, 4 * 32 * 32 * 3)
    try:
        for limit, told in ((64 << 20, True), (1 << 40, False)):
            setup = DecodeSetup(slots, Sampling(4), SQUARE, limit, "auto")
            error = worker.answer(DecodeTask(1, str(path), 0), setup).error
            assert (
                "needs more memory than 0.0625 GiB: then ingest it with a larger --decode-memory"
                in error
            ) == told
    finally:
        slots.close()
