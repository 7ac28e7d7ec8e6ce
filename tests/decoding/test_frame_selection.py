"""Where the frames that are taken go, whatever their size."""

from __future__ import annotations

import numpy as np
import pytest

from featstore.decoding.frame_selection import FrameSelection
from featstore.errors import VideoError
from featstore.preprocessing import (
    ExactResize,
    PixelBudget,
    Preprocessing,
    ShortestEdgeCrop,
    frame_bytes,
    prepare_frame,
)
from featstore.sampling import Sampling

BUDGET = PixelBudget(multiple=14, min_pixels=196, max_pixels=12 * 196)
FIXED = [
    ExactResize(height=8, width=12),
    ShortestEdgeCrop(shortest_edge=12, crop_height=8, crop_width=8),
]


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def selection(pre: Preprocessing, nframe: int = 4) -> tuple[FrameSelection, np.ndarray]:
    out = np.zeros(nframe * frame_bytes(pre), np.uint8)
    return FrameSelection("clip.mp4", Sampling(nframe), pre, out), out


@pytest.mark.parametrize("pre", [*FIXED, BUDGET], ids=lambda pre: pre.kind)
def test_frames_follow_each_other_in_the_size_they_have(pre):
    chosen, out = selection(pre)
    clip = chosen.choose(2, 1.0, "av")  # too short: frame 0 is taken three times
    assert (clip.indices, chosen.size) == ([0, 0, 0, 1], (0, 0))
    pictures = [picture(30, 40), picture(30, 40)[::-1].copy()]
    for index in (1, 0):
        chosen.put(index, pictures[index])
    expected = [prepare_frame(pictures[index], pre) for index in clip.indices]
    assert chosen.size == expected[0].shape[:2]
    count = 4 * expected[0].size
    np.testing.assert_array_equal(out[:count].reshape(4, *chosen.size, 3), expected)
    assert not out[count:].any()


def test_a_video_that_changes_its_size_is_refused_if_its_features_would_change_theirs():
    chosen, _ = selection(BUDGET)
    chosen.choose(4, 1.0, "av")
    chosen.put(0, picture(30, 60))
    chosen.put(1, picture(31, 60))  # the same after it was prepared
    with pytest.raises(VideoError, match=r"clip.mp4 changes its size: frame 2 is prepared as 28 x"):
        chosen.put(2, picture(60, 30))


@pytest.mark.parametrize("pre", FIXED, ids=lambda pre: pre.kind)
def test_a_video_may_change_its_size_if_its_frames_are_all_made_one(pre):
    chosen, _ = selection(pre)
    chosen.choose(4, 1.0, "av")
    for index, size in enumerate([(30, 60), (60, 30), (24, 24), (100, 20)]):
        chosen.put(index, picture(*size))
    assert chosen.size == pre.max_frame


def test_a_second_decoder_begins_again():
    chosen, _ = selection(BUDGET)
    for size in ((30, 60), (60, 30)):  # the first saw another size, and gave up
        chosen.choose(4, 1.0, "av")
        chosen.put(0, picture(*size))
    assert chosen.size == (56, 28)


def test_a_frame_that_cannot_be_prepared_is_a_fault_of_its_video():
    chosen, _ = selection(BUDGET)
    chosen.choose(4, 1.0, "av")
    with pytest.raises(VideoError, match=r"clip.mp4: a frame of 300 x 1 pixels is more than 200"):
        chosen.put(0, picture(1, 300))
