"""The strip of a video: its frames if the file is there and still that one, its features always."""

import dataclasses
import shutil

import numpy as np
import pytest
from geometries import grid_by_video, newline_row
from stored_clips import store_clip

import featstore
from featstore.decoding.video_file import decode
from featstore.errors import VideoError
from featstore.preprocessing import frame_bytes
from featstore.report.sampled_frames import decode_again
from featstore.report.strip import _time, draw_strip
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec


@pytest.fixture
def clip(sample_clips, tmp_path):
    return shutil.copy2(sample_clips / "blink.mp4", tmp_path / "blink.mp4")


@pytest.mark.parametrize("kind", [newline_row, grid_by_video])
def test_the_frames_are_those_that_the_encoder_saw(kind, clip, cache):
    encoder = kind()
    spec = store_clip(cache, "demo", "eye", clip, encoder, Sampling(4))
    header = featstore.get(cache, "demo", "eye").header
    out = np.zeros(4 * frame_bytes(encoder.preprocessing), np.uint8)
    size = decode(str(clip), Sampling(4), encoder.preprocessing, out).size
    shown = out[: 4 * size[0] * size[1] * 3].reshape(4, *size, 3)
    assert np.array_equal(decode_again(header, spec, str(clip), [0, 3]), shown[[0, 3]])


def test_another_file_at_the_path_is_not_shown(clip, sample_clips, cache):
    spec = store_clip(cache, "demo", "eye", clip, newline_row(), Sampling(4))
    shutil.copy(sample_clips / "color_bars.mp4", clip)
    features = featstore.get(cache, "demo", "eye")
    with pytest.raises(VideoError, match=r"is another file than the one that the features were"):
        decode_again(features.header, spec, str(clip), [0])
    assert "is another file" in draw_strip(features, spec).notes[0]


def test_other_frames_of_the_same_file_are_not_shown(clip, cache):
    """As an edited record would have them, or another release of the decoder."""
    spec = store_clip(cache, "demo", "eye", clip, newline_row(), Sampling(4))
    header = featstore.get(cache, "demo", "eye").header
    wrong = dataclasses.replace(header, frame_indices=bytes(16))
    with pytest.raises(VideoError, match="another file"):
        decode_again(wrong, spec, str(clip), [0])


def test_without_the_file_the_features_are_shown_and_a_note_says_so(clip, cache):
    spec = store_clip(cache, "demo", "eye", clip, newline_row(), Sampling(4))
    features = featstore.get(cache, "demo", "eye")
    whole = draw_strip(features, spec)
    moved = clip.rename(clip.with_name("moved.mp4"))
    bare = draw_strip(features, spec)
    assert whole.notes == ["not shown: one row that belongs to no frame"]
    assert "cannot be opened: No such file" in bare.notes[0]
    assert bare.image.height < whole.image.height
    assert bare.frames == whole.frames == features.header.frames
    again = draw_strip(features, spec, path=str(moved))
    assert np.array_equal(np.asarray(again.image), np.asarray(whole.image))


def test_columns_are_evenly_spaced_with_both_ends(clip, cache):
    spec = store_clip(cache, "demo", "eye", clip, newline_row(), Sampling(5))
    features = featstore.get(cache, "demo", "eye")
    clip.unlink()
    assert draw_strip(features, spec, columns=3).frames == [0, 2, 4]
    assert draw_strip(features, spec, columns=1).frames == [0]
    assert len(draw_strip(features, spec, columns=64).frames) == 5
    for columns in (0, 65):
        with pytest.raises(ValueError, match="from 1 to 64"):
            draw_strip(features, spec, columns=columns)


def test_imported_features_have_places_and_no_times(clip, cache):
    """Their records have no numbers of frames, and nobody knows how frames were prepared."""
    store_clip(cache, "demo", "eye", clip, newline_row(), Sampling(4))
    features = featstore.get(cache, "demo", "eye")
    spec = FeatureSpec.of_imported(newline_row().identity.geometry, 4, {})
    found = draw_strip(features, spec, columns=2)
    assert (found.captions, found.frames) == (["1 of 4", "4 of 4"], [])
    assert "the features were imported" in found.notes[0]


@pytest.mark.parametrize("name", ["W" * 4000, "a\x1b[2J\u202egpj.exe", "\udcff水/é", " "])
def test_any_id_can_be_drawn(name, clip, cache):
    spec = store_clip(cache, "demo", "eye", clip, newline_row(), Sampling(2))
    features = featstore.get(cache, "demo", "eye")
    clip.unlink()
    header = dataclasses.replace(features.header, video_id=name)
    found = draw_strip(dataclasses.replace(features, header=header), spec)
    assert found.image.width < 800
    assert found.image.height < 800


def test_times_are_those_in_the_video(clip, cache):
    store_clip(cache, "demo", "eye", clip, newline_row(), Sampling(2))
    header = featstore.get(cache, "demo", "eye").header
    assert header.fps == 10
    times = {0: "0:00.0", 612: "1:01.2", 599: "0:59.9", 36_005: "1:00:00.5"}
    assert {frame: _time(header, frame) for frame in times} == times
    for fps in (0.0, float("nan")):
        assert _time(dataclasses.replace(header, fps=fps), 7) == "frame 7"
