"""The decoder `exact` gives the frames that a player shows, and decord's wherever decord gives those."""

from __future__ import annotations

import json
import os
from pathlib import Path

import compare_decoders as compare
import make_decoder_corpus as corpus
import numpy as np
import pytest
from decoder_corpus import CASES
from toys import REPOSITORY

from featstore.decoding import exact_decoder
from featstore.decoding.exact_decoder import ExactReader
from featstore.decoding.frame_selection import FrameSelection, NotValidated
from featstore.decoding.video_file import DECODERS, decode, identity_of
from featstore.encoders.toy import ToyEncoder
from featstore.errors import VideoError
from featstore.pipeline.ingest import ingest
from featstore.pipeline.options import IngestOptions
from featstore.preprocessing import ShortestEdgeCrop
from featstore.sampling import Sampling

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]

EVERY = Sampling(512)
SOME = Sampling(7)
CLIPS = (
    "audio_shorter.ts",
    "c_avi_h264.avi",
    "cut_5s_g250.mp4",
    "cut_short_g250.mp4",
    "g100.ts",
    "long_mpeg4.avi",
    "n_3.flv",
    "rot_hflip.mp4",
    "small.gif",
    "vp8_altref.webm",
)
# decord's FFmpeg is older: it computes these colors in another way.
OTHER_COLORS = ("h264_10_bit.mp4", "h264_bt2020.mp4", "hevc_10_bit.mkv", "vp9_odd_size.webm")
# decord gives other frames than those asked for, or none.
DECORD_IS_WRONG = (
    "h264.ts",
    "h264_close_keys.mp4",
    "h264_edit_at_start.mp4",
    "h264_false_keys.mkv",
    "h264_intra_refresh.mp4",
    "h264_narrow.mp4",
    "h264_no_b.avi",
    "h264_open_gop.mp4",
    "h264_tiny.mp4",
    "h264_twice.ts",
    "hevc_open_gop.mp4",
    "mpeg2.mp4",
    "mpeg2.mpg",
    "mpeg2.mxf",
    "mpeg4.mp4",
    "mpeg4_b.avi",
    "wmv2.wmv",
)
CUT_SHORT = {
    "h264_cut.mp4": "a frame is damaged, or the file was cut short; copy it again",
    "h264_cut_in_header.mp4": "it has no video stream",
    "h264_no_index.mp4": "it is not a video, or is damaged or cut short",
}
COMPARED = sorted(
    name for name in CASES if not name.startswith("av1") and name not in DECORD_IS_WRONG
)
# Their packets tell which frame is shown when.
SOUGHT = (
    "av1.mp4",
    "h264.flv",
    "h264.mkv",
    "h264.mp4",
    "h264.ts",
    "h264_close_keys.mp4",
    "h264_edit_at_start.mp4",
    "h264_fragments.mp4",
    "h264_open_gop.mp4",
    "hevc_open_gop.mp4",
    "vp8.webm",
    "vp9.webm",
)


class Frames(FrameSelection):
    """Keeps whole frames."""

    def __init__(self, path, sampling):
        super().__init__(
            str(path),
            sampling,
            ShortestEdgeCrop(shortest_edge=0, crop_height=1, crop_width=1),
            np.empty(0, np.uint8),
        )
        self.kept = {}

    def put(self, index, frame):
        self.kept[index] = frame


def frames_of(path, sampling=EVERY):
    frames = Frames(path, sampling)
    clip = ExactReader(str(path)).read(frames)
    assert sorted(frames.kept) == sorted(set(clip.indices))
    return clip, frames.kept


def same(some, others):
    return some.keys() <= others.keys() and all(
        np.array_equal(frame, others[index]) for index, frame in some.items()
    )


def number_of(frame):
    """The number that a frame of the clips shows; a frame that was mirrored has its red corner on the right."""
    height, width = frame.shape[:2]
    rows = frame[height // 2 - 3 : height // 2 + 3]
    white = [rows[:, (2 * i + 1) * width // 16 - 2 :][:, :4].mean() > 126 for i in range(8)]
    left, right = (frame[1:4, at].reshape(-1, 3).mean(0) for at in (slice(1, 4), slice(-4, -1)))
    if right[0] - right[1] - right[2] > left[0] - left[1] - left[2]:
        white.reverse()
    return sum(bit << (7 - i) for i, bit in enumerate(white))


@pytest.fixture(scope="module")
def readers():
    both = compare.Reader("exact"), compare.Reader("decord")
    yield both
    for reader in both:
        reader.close()


@pytest.fixture(scope="module")
def cases():
    folder = Path(os.environ.get("FEATSTORE_CASES", REPOSITORY.parent / "shared" / "cases"))
    if not (folder / "shown_frames.json").exists():
        pytest.skip(f"no clips in {folder}; name their folder in FEATSTORE_CASES")
    return folder


def test_no_clip_is_left_out(cases):
    assert sorted(json.loads((cases / "shown_frames.json").read_text())) == sorted(CLIPS)


@pytest.mark.parametrize("nframe", [512, 7, 1])
@pytest.mark.parametrize("name", CLIPS)
def test_the_frames_are_those_that_a_player_shows(cases, name, nframe):
    shown = json.loads((cases / "shown_frames.json").read_text())[name]
    clip, frames = frames_of(cases / "videos" / name, Sampling(nframe))
    assert clip.total_frames == len(shown)
    assert {index: number_of(frame) for index, frame in frames.items()} == {
        index: shown[index] for index in frames
    }
    assert (clip.decoder, clip.doubt) == ("pyav", "")


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_gives_the_same_frames_each_time(cases, name):
    path = cases / "videos" / name
    clip, frames = frames_of(path)
    for _ in range(3):
        again, others = frames_of(path)
        assert again == clip
        assert same(frames, others)


@pytest.mark.parametrize("name", COMPARED)
def test_frames_are_those_of_decord_if_decord_is_right(folder, readers, name):
    found, decord = (reader.ask(folder / name, compare.SAMPLINGS) for reader in readers)
    if name in OTHER_COLORS:
        found, decord = ([(a["total"], a["fps"]) for a in answers] for answers in (found, decord))
        assert found == decord
    else:
        verdicts = {compare.verdict(a, d) for a, d in zip(found, decord, strict=True)}
        assert verdicts == {compare.SAME}, (found, decord)


@pytest.mark.parametrize("name", sorted(set(CASES) - set(CUT_SHORT)))
def test_what_is_sought_is_what_decoding_everything_gives(folder, monkeypatch, name):
    path = folder / name
    clip, frames = frames_of(path)
    some, few = frames_of(path, SOME)
    monkeypatch.setattr(exact_decoder, "check_seekable", refuse)
    everything, others = frames_of(path)
    assert (everything, some.total_frames) == (clip, clip.total_frames)
    assert same(frames, others)
    assert same(few, frames)


def refuse(*_):
    raise NotValidated("nothing is certain")


@pytest.mark.parametrize("name", SOUGHT)
def test_frames_are_sought_if_packets_tell_where_they_are(folder, monkeypatch, name):
    """Or 128 frames of a long video would cost the decoding of all."""
    monkeypatch.delattr(ExactReader, "_decode_all")
    frames_of(folder / name, SOME)


def test_a_count_that_packets_state_wrongly_is_found_by_decoding(folder, monkeypatch):
    """Each frame of this clip is told of twice."""
    path = folder / "mjpeg.avi"
    clip, frames = frames_of(path)
    read = exact_decoder.PacketTable.read

    def read_twice(packets, units):
        return read([packet for packet in packets for _ in range(2)], units)

    monkeypatch.setattr(exact_decoder.PacketTable, "read", read_twice)
    again, others = frames_of(path)
    assert again == clip
    assert same(frames, others)


def test_a_video_without_a_key_frame_at_the_start_begins_with_the_first_that_can_be_shown(
    folder, tmp_path
):
    """So a stream is recorded from the middle of a broadcast."""
    data = (folder / "h264_no_b.ts").read_bytes()
    path = tmp_path / "middle.ts"
    path.write_bytes(data[188 * (len(data) // 188 // 2) :])
    _, whole = frames_of(folder / "h264_no_b.ts")
    clip, frames = frames_of(path)
    assert 0 < clip.total_frames < len(whole)
    last = len(whole) - 1
    assert np.array_equal(frames[clip.total_frames - 1], whole[last])


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda frame: frame.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda frame: np.rot90(frame, 2).transpose(1, 0, 2)),
    ],
)
def test_frames_are_turned_and_mirrored_as_the_file_says(tmp_path, matrix, turned):
    plain = corpus.write(corpus.Case("plain.mp4", frames=2, pix_fmt="yuv444p"), tmp_path / "a.mp4")
    case = corpus.Case("turned.mp4", frames=2, pix_fmt="yuv444p", matrix_shown=matrix)
    path = corpus.write(case, tmp_path / "b.mp4")
    assert np.array_equal(frames_of(path)[1][0], turned(frames_of(plain)[1][0]))


def test_a_cover_picture_is_not_a_video(tmp_path):
    path = corpus.write_song(tmp_path / "song.mp3")
    for decoder in DECODERS:
        with pytest.raises(VideoError, match="it has no video stream, only a cover picture"):
            take(path, decoder)


@pytest.mark.parametrize("name", CUT_SHORT)
def test_a_file_that_was_cut_short_is_refused(folder, name):
    with pytest.raises(VideoError, match=f"{name} cannot be decoded: {CUT_SHORT[name]}"):
        take(folder / name, "exact")


def test_decoders_with_the_same_frames_share_an_identity():
    assert {identity_of(decoder) for decoder in ("auto", "av", "decord")} == {"decord-rgb24"}
    assert identity_of("exact") == "pyav-presentation"


def test_an_ingest_of_exact_frames_is_a_feature_set_of_its_own(folder, tmp_path):
    made = [
        ingest(
            [folder / name],
            tmp_path / "cache",
            "demo",
            encoder=ToyEncoder(),
            sampling=Sampling(4),
            options=IngestOptions(decoder=decoder),
        )
        for name, decoder in (("h264.mp4", "auto"), ("h264.ts", "exact"))
    ]
    assert [summary.failures for summary in made] == [[], []]
    assert [summary.decoders for summary in made] == [{"pyav": 1}, {"pyav": 1}]
    assert [summary.spec.decoder for summary in made] == ["decord-rgb24", "pyav-presentation"]


def take(path, decoder):
    square = ShortestEdgeCrop(shortest_edge=32, crop_height=32, crop_width=32)
    out = np.zeros((4, *square.max_frame, 3), np.uint8)
    return decode(str(path), Sampling(4), square, out, decoder=decoder)
