"""Units of several videos in batches: each unit once, in order, and no batch larger than asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.encoders.toy import ToyEncoder
from featstore.errors import FeatstoreError
from featstore.geometry import Geometry
from featstore.pipeline.encode.batches import Batches, EncodeTask, VideoParts, cut_units

SIZES = ((2, 3), (3, 2), (4, 4))


def task(video: int, units: int, size: tuple[int, int] = SIZES[0]) -> EncodeTask:
    return EncodeTask(video, frames=video, count=units, units=units, size=size, record=video)


def drain(batches: Batches, *, short: bool) -> list[list]:
    found = []
    while batch := batches.take(short=short):
        found.append(batch)
    return found


@given(st.integers(1, 9), st.lists(st.integers(1, 40), max_size=12), st.data())
def test_every_unit_comes_out_once_and_a_videos_in_their_order(size, counts, data):
    batches = Batches(size)
    found = []
    for video, count in enumerate(counts):
        batches.add(task(video, count, data.draw(st.sampled_from(SIZES))))
        if data.draw(st.booleans()):
            found += drain(batches, short=data.draw(st.booleans()))
    found += drain(batches, short=True)
    assert not batches.ready(short=True)
    assert all(sum(chunk.count for chunk in batch) <= size for batch in found)
    assert all(len({chunk.task.size for chunk in batch}) == 1 for batch in found)
    for video, count in enumerate(counts):
        chunks = [chunk for batch in found for chunk in batch if chunk.task.video == video]
        units = [i for chunk in chunks for i in range(chunk.start, chunk.stop)]
        assert units == list(range(count))
        assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@given(st.integers(1, 9), st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_all_batches_but_the_last_are_full(size, counts):
    batches = Batches(size)
    for video, count in enumerate(counts):
        batches.add(task(video, count))
    sizes = [sum(chunk.count for chunk in batch) for batch in drain(batches, short=True)]
    assert sizes[:-1] == [size] * (len(sizes) - 1)


def test_a_video_that_fills_batches_shares_none():
    """So a run whose videos have as many frames as a batch encodes the same batches every time."""
    batches = Batches(4)
    for video, count in enumerate([3, 8, 2, 4]):
        batches.add(task(video, count))
    found = [[chunk.task.video for chunk in batch] for batch in drain(batches, short=True)]
    assert found == [[1], [1], [0, 2], [3], [2]]


def test_a_short_batch_comes_only_when_asked_for():
    batches = Batches(4)
    batches.add(task(0, 3))
    assert batches.ready(short=True)
    assert not batches.ready(short=False)
    assert batches.take(short=False) == []
    assert len(batches.take(short=True)) == 1
    assert batches.take(short=True) == []


def test_frames_of_other_sizes_share_no_batch_and_the_oldest_short_one_comes_first():
    batches = Batches(4)
    for video, size in enumerate([SIZES[0], SIZES[1], SIZES[0], SIZES[1]]):
        batches.add(task(video, 1, size))
    found = [[chunk.task.video for chunk in batch] for batch in drain(batches, short=True)]
    assert found == [[0, 2], [1, 3]]


@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_a_units_frames_are_those_that_its_number_says(count, frames_per_unit, data):
    stride = data.draw(st.integers(1, frames_per_unit))
    geometry = Geometry(1, 1, frames_per_unit=frames_per_unit, stride=stride)
    frames = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    units = geometry.units(count)
    start = data.draw(st.integers(0, units - 1))
    stop = data.draw(st.integers(start + 1, units))
    found = cut_units(frames, geometry, start, stop).reshape(stop - start, -1)
    expected = [
        [min(unit * stride + i, count - 1) for i in range(frames_per_unit)]
        for unit in range(start, stop)
    ]
    assert found.tolist() == expected


@pytest.mark.parametrize("start", [0, 3])
def test_frames_that_are_units_are_not_copied(start):
    frames = np.zeros((8, 2, 2, 3), np.uint8)
    assert np.shares_memory(cut_units(frames, Geometry(1, 1), start, 5), frames)


class ReusedBuffer:
    """Returns the same array for each batch."""

    identity = ToyEncoder(hidden_dim=1, grid=1).identity

    def __init__(self, dtype: str = "float32") -> None:
        self._out = np.zeros((2, 1, 1), dtype)

    def encode(self, first: float) -> np.ndarray:
        self._out[:, 0, 0] = first, first + 1
        return self._out


def test_features_are_kept_though_the_encoder_overwrites_what_it_returned():
    encoder, batches, ended = ReusedBuffer(), Batches(2), []
    parts = VideoParts(encoder)
    batches.add(task(0, 6))
    for first in (0, 2, 4):
        ended += parts.add(encoder.encode(first), batches.take(short=True))
    (video,) = ended
    assert np.concatenate(video.parts).ravel().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", ["float64", "complex64", "float16"])
def test_features_of_another_dtype_than_the_identitys_are_refused(dtype):
    encoder, batches = ReusedBuffer(dtype), Batches(2)
    batches.add(task(0, 2))
    with pytest.raises(FeatstoreError, match=f"dtype {dtype}; its identity says fp32, float32"):
        VideoParts(encoder).add(encoder.encode(0), batches.take(short=True))
