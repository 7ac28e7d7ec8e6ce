"""Files that want to hang, crash or flood a decoder cost their own record and nothing else."""

from __future__ import annotations

import os
import tempfile
from multiprocessing.connection import wait

import av
import make_decoder_corpus as corpus
import make_hostile_videos as hostile
import pytest
from drills.hostile import drill

from featstore.decoding.av_file import open_file
from featstore.decoding.pool import DecoderPool
from featstore.decoding.video_file import Video, check_is_file
from featstore.errors import VideoError
from featstore.preprocessing import ShortestEdgeCrop
from featstore.sampling import Sampling
from featstore.system.processes import Slots

pytestmark = pytest.mark.hostile

SQUARE = ShortestEdgeCrop(shortest_edge=32, crop_height=32, crop_width=32)


def decoded(paths, **options):
    """What a pool of one worker makes of each file, in turn."""
    slots = Slots.create(1, 4 * 32 * 32 * 3)
    with tempfile.TemporaryFile() as log:
        options = {"timeout": 30.0, **options}
        pool = DecoderPool(slots, Sampling(4), SQUARE, workers=1, log=log, **options)
        found = []
        try:
            pool.add([Video(path.name, str(path)) for path in paths])
            while not pool.idle:
                wait(pool.connections, 0.2)
                for done in pool.collect():
                    found.append(done)
                    pool.release(done.slot)
        finally:
            pool.kill()
            slots.close()
    return found


def test_the_drill_finds_nothing_broken(tmp_path):
    found = drill.run(tmp_path, mutants=12, seed=1, memory=1 << 30, timeout=20.0, large=False)
    assert found.broken == []
    assert found.figures["good"] + found.figures["hostile"] >= 30


def test_a_video_that_asks_for_too_much_memory_says_so_and_the_next_is_read(tmp_path):
    bomb = hostile.write_bomb(tmp_path / "bomb.mov", 6_000)
    clip = corpus.write(corpus.Case("clip.mp4", frames=8), tmp_path / "clip.mp4")
    first, second = decoded([bomb, clip], memory=256 << 20)
    assert first.error == (
        f"{bomb} needed more than 0.25 GiB of memory to decode; ingest it with a larger --decode-memory if it is "
        "sound"
    )
    assert (second.error, second.clip.total_frames) == ("", 8)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    """Opening a FIFO would wait for its other end for good."""
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "zeros.mp4").symlink_to("/dev/zero")
    for name in ("fifo", "zeros"):
        with pytest.raises(VideoError, match="is not a regular file; a video must be a file"):
            check_is_file(str(tmp_path / f"{name}.mp4"))


@pytest.mark.parametrize(
    "begin", ["#EXTM3U\n#EXTINF:9,\nother.ts\n", "ffconcat version 1.0\nfile 'a'\n"]
)
def test_a_playlist_is_not_followed(tmp_path, begin):
    path = tmp_path / "clip.mp4"
    path.write_text(begin)
    with pytest.raises(
        VideoError, match=r"clip.mp4 is a playlist; a video must hold its own frames"
    ):
        check_is_file(str(path))
    with pytest.raises((VideoError, av.FFmpegError)):
        open_file(str(path))
