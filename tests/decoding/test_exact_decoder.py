"""`exact` keeps a doubt of what it cannot settle: frames that are not in the file."""

from __future__ import annotations

import make_decoder_corpus as corpus
import numpy as np
import pytest
from odd_clips import frames_of, patched, write_clip

from featstore.cli.ingest import _print_doubts


@pytest.mark.parametrize("name", ["flipped.mkv", "flipped.mp4"])
def test_damage_that_the_decoder_conceals_is_told(tmp_path, name):
    path = write_clip(tmp_path / name, bframes=2, frames=60)
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 4, len(data) * 3 // 4, len(data) // 16):
        data[place] ^= 0x40
    path.write_bytes(data)
    clip, _ = frames_of(path, "exact", 30)
    assert (clip.total_frames, clip.doubt) == (60, "damage")


@pytest.mark.parametrize("gop", ["open-gop=0", "open-gop=1"])
def test_frames_whose_times_are_wrong_are_the_same_however_many_are_wanted(tmp_path, gop):
    """Without the table of times of presentation, frames are shown when they are decoded, and come out otherwise."""
    path = write_clip(
        tmp_path / "times.mp4", "libx265", bframes=3, gop=12, options={"x265-params": gop}
    )
    patched(path, b"ctts", 0, b"free")
    whole, every = frames_of(path, "exact", 24)
    for nframe in (1, 2, 3):
        clip, frames = frames_of(path, "exact", nframe)
        for index, frame in zip(clip.indices, frames, strict=True):
            assert np.array_equal(frame, every[whole.indices.index(index)])


def test_a_joined_transport_stream_is_not_damaged(tmp_path):
    path = write_clip(tmp_path / "joined.ts", bframes=2, patch=corpus.twice)
    clip, _ = frames_of(path, "exact")
    assert (clip.total_frames, clip.doubt) == (48, "")


def test_the_summary_advises_exact_only_for_what_it_settles(capsys):
    _print_doubts({"damage": 2, "open GOP": 1, "frames missing": 1})
    settled, lost = capsys.readouterr().out.splitlines()
    assert settled.endswith("asked for: open GOP 1; see --decoder exact")
    assert "3 videos damaged or cut short" in lost
    assert "damage 2, frames missing 1" in lost
    assert lost.endswith("ingest another copy of the file")
    assert "exact" not in lost
