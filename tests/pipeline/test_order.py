"""In which order videos are decoded."""

from hypothesis import given
from hypothesis import strategies as st

from featstore.decoding.video_file import Video
from featstore.pipeline.order import LARGEST_EVERY, decode_order


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
