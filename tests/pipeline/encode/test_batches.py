"""Frames of several videos in batches: each frame once, in order, and no batch larger than asked for."""

from hypothesis import given
from hypothesis import strategies as st

from featstore.pipeline.encode.batches import Batches, EncodeTask


def drain(batches: Batches, *, short: bool) -> list[list]:
    found = []
    while batch := batches.take(short=short):
        found.append(batch)
    return found


@given(st.integers(1, 9), st.lists(st.integers(1, 40), max_size=12), st.data())
def test_every_frame_comes_out_once_and_a_videos_in_their_order(size, counts, data):
    batches = Batches(size)
    found = []
    for video, count in enumerate(counts):
        batches.add(EncodeTask(video, frames=video, count=count, record=video))
        if data.draw(st.booleans()):
            found += drain(batches, short=data.draw(st.booleans()))
    found += drain(batches, short=True)
    assert not batches.ready(short=True)
    assert all(sum(chunk.count for chunk in batch) <= size for batch in found)
    for video, count in enumerate(counts):
        chunks = [chunk for batch in found for chunk in batch if chunk.task.video == video]
        frames = [i for chunk in chunks for i in range(chunk.start, chunk.stop)]
        assert frames == list(range(count))
        assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@given(st.integers(1, 9), st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_all_batches_but_the_last_are_full(size, counts):
    batches = Batches(size)
    for video, count in enumerate(counts):
        batches.add(EncodeTask(video, video, count, video))
    sizes = [sum(chunk.count for chunk in batch) for batch in drain(batches, short=True)]
    assert sizes[:-1] == [size] * (len(sizes) - 1)


def test_a_video_that_fills_batches_shares_none():
    """So a run whose videos have as many frames as a batch encodes the same batches every time."""
    batches = Batches(4)
    for video, count in enumerate([3, 8, 2, 4]):
        batches.add(EncodeTask(video, video, count, video))
    found = [[chunk.task.video for chunk in batch] for batch in drain(batches, short=True)]
    assert found == [[1], [1], [0, 2], [3], [2]]


def test_a_short_batch_comes_only_when_asked_for():
    batches = Batches(4)
    batches.add(EncodeTask(0, 0, 3, 0))
    assert batches.ready(short=True)
    assert not batches.ready(short=False)
    assert batches.take(short=False) == []
    assert len(batches.take(short=True)) == 1
    assert batches.take(short=True) == []
