"""PyAV gives decord's frames byte for byte, or leaves the file to it."""

from __future__ import annotations

import av
import compare_decoders as compare
import make_decoder_corpus as corpus
import numpy as np
import pytest
from decoder_corpus import CASES, write_case

import featstore
from featstore.decoding import av_decoder, av_file
from featstore.decoding.frame_selection import NotValidated
from featstore.decoding.video_file import decode
from featstore.encoders.toy import ToyEncoder
from featstore.errors import VideoError
from featstore.pipeline.ingest import ingest
from featstore.pipeline.options import IngestOptions
from featstore.preprocessing import ShortestEdgeCrop, prepare_frame
from featstore.sampling import Sampling

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]

AV1 = [name for name in CASES if name.startswith("av1")]
SQUARE = ShortestEdgeCrop(shortest_edge=32, crop_height=32, crop_width=32)


@pytest.fixture(scope="module")
def readers():
    both = compare.Reader("av"), compare.Reader("decord")
    yield both
    for reader in both:
        reader.close()


@pytest.mark.parametrize("name", ["h264_flipped.mp4", "h264_one_gop.mp4", "vp8.webm"])
def test_a_file_of_the_corpus_is_the_same_bytes_each_time_it_is_written(name, tmp_path):
    """Or what is damaged would be damaged elsewhere on a busy machine, and read by another decoder."""
    assert len({write_case(name, tmp_path).read_bytes() for _ in range(12)}) == 1


@pytest.mark.parametrize("name", sorted(set(CASES) - set(AV1)))
def test_frames_are_those_of_decord_or_left_to_it(folder, readers, name):
    av, decord = (reader.ask(folder / name, compare.SAMPLINGS) for reader in readers)
    expected = compare.SAME if CASES[name].certain else compare.LEFT
    found = [compare.verdict(a, d) for a, d in zip(av, decord, strict=True)]
    assert found == [expected] * len(compare.SAMPLINGS), av


@pytest.mark.parametrize("name", AV1)
def test_what_decord_cannot_read_is_read_by_av_alone(folder, readers, name):
    av, decord = (reader.ask(folder / name, compare.SAMPLINGS) for reader in readers)
    assert [answer["total"] for answer in av] == [60] * len(compare.SAMPLINGS)
    assert all("no video stream" in answer["error"] for answer in decord)


def frames_of(path, decoder, nframe=8):
    out = np.zeros((nframe, *SQUARE.max_frame, 3), np.uint8)
    return decode(str(path), Sampling(nframe), SQUARE, out, decoder=decoder), out


@pytest.mark.parametrize("nframe", [1, 8])
@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4", "vp9.webm"])
def test_auto_takes_av_where_that_is_certain(folder, name, nframe):
    clip, frames = frames_of(folder / name, "auto", nframe)
    there, expected = frames_of(folder / name, "decord", nframe)
    assert (clip.decoder, there.decoder) == ("pyav", "decord")
    assert clip.indices == there.indices
    assert np.array_equal(frames, expected)


@pytest.mark.parametrize("name", ["h264_open_gop.mp4", "mpeg4.mp4", "h264_flipped.mp4"])
def test_auto_takes_decord_for_the_rest(folder, name):
    """The flipped bit shows halfway, when some frames are taken already."""
    clip, frames = frames_of(folder / name, "auto", 60)
    _, expected = frames_of(folder / name, "decord", 60)
    assert clip.decoder == "decord"
    assert np.array_equal(frames, expected)


def test_av_alone_says_why_it_does_not_read_a_file(folder):
    with pytest.raises(
        VideoError, match=r"vp8.webm is not read by PyAV: its codec is vp8; take --decoder auto"
    ):
        frames_of(folder / "vp8.webm", "av")


def test_frames_of_av1_come_out_as_they_went_in(folder):
    clip, frames = frames_of(folder / "av1.mp4", "auto", 60)
    assert clip.decoder == "pyav"
    drawn = [corpus.draw(index, 96, 64) for index in clip.indices]
    resized = np.stack([prepare_frame(picture, SQUARE).astype(int) for picture in drawn])
    assert np.abs(frames.astype(int) - resized).mean() < 12


def test_other_versions_of_ffmpeg_are_left_to_decord(folder, monkeypatch):
    monkeypatch.setattr(av_decoder, "VALIDATED_FFMPEG", ())
    assert frames_of(folder / "h264.mp4", "auto")[0].decoder == "decord"
    assert frames_of(folder / "av1.mp4", "auto")[0].decoder == "pyav"


def test_features_are_the_same_whichever_decoder_an_ingest_takes(folder, tmp_path):
    names = ["h264.mp4", "hevc_open_gop.mp4"]
    kept, digests = {}, set()
    for decoder, counts in (("auto", {"pyav": 1, "decord": 1}), ("decord", {"decord": 2})):
        summary = ingest(
            [folder / name for name in names],
            tmp_path / decoder,
            "demo",
            encoder=ToyEncoder(),
            sampling=Sampling(8),
            options=IngestOptions(decoder=decoder),
        )
        assert (summary.failures, summary.decoders) == ([], counts)
        digests.add(summary.spec.digest)
        kept[decoder] = featstore.open(tmp_path / decoder)["demo"]
    assert len(digests) == 1
    for name in ("h264", "hevc_open_gop"):
        assert np.array_equal(kept["auto"][name].data, kept["decord"][name].data)


def test_pyav_before_17_finds_by_a_second_look_what_17_tells(folder, monkeypatch):
    """How far frames are out of order, and which of them an MP4's index calls key frames."""

    def told():
        found = {}
        for name in sorted(CASES):
            try:
                with av_file.open_file(str(folder / name)) as container:
                    stream = av_file.video_stream(name, container, conceal=False)
                    depth = av_file.reorder_depth(str(folder / name), stream)
                    found[name] = depth, None
                    if container.format.name == av_file.MOV and stream.frames:
                        complete = len(list(container.demux(stream))) == stream.frames + 1
                        keys = av_file.indexed_keys(str(folder / name), stream)
                        found[name] = depth, keys if complete else None
            except (av.FFmpegError, VideoError, NotValidated):
                continue
        return found

    new = told()
    monkeypatch.setattr(av_file, "getattr", lambda *_: None, raising=False)
    old = told()
    assert len(old) > 50
    assert {name for name in new.keys() - old.keys()} <= {"h264_flipped.mp4"}  # its first frame
    alone = "h264_one_frame.mp4"  # none can be out of order
    assert old.pop(alone)[1] == new[alone][1]
    assert old == {name: new[name] for name in old}


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("h264.mp4", "pyav"), ("vp9.webm", "pyav"), ("h264_fragments.mp4", "decord")],
)
def test_pyav_before_17_gives_decord_s_frames(folder, monkeypatch, name, decoder):
    monkeypatch.setattr(av_file, "getattr", lambda *_: None, raising=False)
    clip, frames = frames_of(folder / name, "auto")
    assert (clip.decoder, clip.doubt) == (decoder, "")
    assert np.array_equal(frames, frames_of(folder / name, "decord")[1])
    assert np.array_equal(frames_of(folder / name, "exact")[1], frames)
