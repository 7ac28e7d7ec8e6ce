"""What is work, and in which order videos are decoded."""

import os
import time

from hypothesis import given
from hypothesis import strategies as st
from toys import toy_spec

from featstore.decoding.video_file import Video
from featstore.pipeline.listing import list_videos
from featstore.pipeline.plan import LARGEST_EVERY, decode_order, make_plan
from featstore.store.engine.environment import open_environment
from featstore.store.rows import Failure
from featstore.store.writer import FeatureWriter


def test_a_failure_of_a_clock_that_was_ahead_is_tried_again(cache, tmp_path):
    """A file that is mended now would seem older than its failure."""
    for name in ("early.mp4", "ahead.mp4"):
        (tmp_path / name).write_bytes(b"x")
    spec = toy_spec()
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(spec, origin="toy")
        for video, seconds in (("early", -1.0), ("ahead", 3600.0)):
            path = str(tmp_path / f"{video}.mp4")
            created = time.time() + seconds if seconds > 0 else os.stat(path).st_ctime
            writer.fail(Failure(video, path, spec.digest, "no frames", created))
    snapshot = open_environment(cache / "demo").snapshot()
    plan = make_plan(list_videos([tmp_path]), snapshot, spec)
    assert [video.video_id for video in plan.todo] == ["ahead"]
    assert [failure.video_id for failure in plan.failed_before] == ["early"]


def test_long_videos_are_decoded_early_and_the_rest_as_listed(tmp_path):
    videos = []
    for i, size in enumerate([1, 2, 3, 900, 4, 5, 6, 7, 8, 800]):
        path = tmp_path / f"{i}.mp4"
        path.write_bytes(bytes(size))
        videos.append(Video(str(i), str(path)))
    order = [int(video.video_id) for video in decode_order(videos)]
    assert LARGEST_EVERY == 4
    assert order == [3, 0, 1, 2, 9, 4, 5, 6, 8, 7]


@given(st.lists(st.integers(0, 5), max_size=30))
def test_the_order_leaves_out_none_and_files_that_are_gone_do_no_harm(numbers):
    videos = [Video(str(i), f"/nowhere/{number}") for i, number in enumerate(numbers)]
    order = decode_order(videos)
    assert sorted(order, key=lambda video: int(video.video_id)) == videos
