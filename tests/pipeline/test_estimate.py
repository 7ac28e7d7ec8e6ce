"""What an ingest will take, and what one took."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from toys import pack_video, toy_features, toy_spec

import featstore
from featstore.encoders.toy import ToyEncoder
from featstore.geometry import Geometry
from featstore.pipeline.estimate import Clips, Estimate, estimate_ingest, frames_taken, guess_clips
from featstore.pipeline.listing import list_videos
from featstore.pipeline.options import IngestOptions
from featstore.pipeline.plan import Plan, plan_ingest
from featstore.pipeline.room import Room, needed_together, why_not
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store import MAP_BYTES, FeatureWriter

GIB = 1 << 30
LONGVA = Geometry(144, 3584)
FREE = Room("cache", free=100 * GIB, min_free=GIB, max_size=None, taken=0)


def of_7b(videos: int, storage: Storage, frames: int = 128) -> Estimate:
    return Estimate("demo", storage, LONGVA, Clips(Counter({frames: videos}), 60 * videos), videos)


def planned(videos, cache, encoder, sampling, storage=None) -> Estimate:
    spec = FeatureSpec(encoder.identity, sampling, "decord-rgb24", encoder.preprocessing)
    plan = plan_ingest(list_videos([videos]), cache, "demo", spec, IngestOptions(), storage)
    return estimate_ingest(plan, cache, "demo", encoder.identity.geometry, sampling)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "sampling", "storage"),
    [
        (ToyEncoder(grid=4, hidden_dim=1024), Sampling(32), Storage("int8", "channel_token")),
        (ToyEncoder(grid=4, hidden_dim=256), Sampling(100, "fps", 4.0), Storage("fp32")),
        (ToyEncoder(grid=12, hidden_dim=3584, size=336), Sampling(8), Storage("fp16")),
    ],
    ids=["int8", "by time", "LongVA-7B's shape"],
)
def test_a_real_ingest_takes_what_was_estimated(clips, cache, encoder, sampling, storage):
    found = planned(clips, cache, encoder, sampling, storage)
    (clips / "bad.mp4").write_bytes(b"no video")
    work = {"encoder": encoder, "sampling": sampling, "storage": storage}
    for part in ("blink.mp4", ""):  # the second ingest writes into a file that is there
        featstore.ingest(clips / part, cache, "demo", **work, options=IngestOptions(min_free=0))
    (least, most), size = found.needed_bytes(), os.stat(cache / "demo" / "data.mdb").st_size
    assert 0.98 * size <= least <= most <= 1.02 * size
    again = planned(clips, cache, encoder, sampling)
    assert (again.stored, again.clips.count, again.needed_bytes()) == (3, 0, (0, 0))


def test_rows_and_pages_of_many_small_videos_are_counted(tmp_path):
    spec, features = toy_spec(), toy_features(0)
    with FeatureWriter(tmp_path, "demo", min_free=0) as writer:
        writer.add_set(spec, origin="toy")
        for i in range(400):
            writer.put(*pack_video(spec, "demo", f"video{i:05}", features))
    names = 400 * len("video00000" + "/videos/video00000.mp4")
    clips = Clips(Counter({4: 400}), names)
    found = Estimate("demo", Storage("int8", "channel"), spec.encoder.geometry, clips, 400)
    size = os.stat(tmp_path / "demo" / "data.mdb").st_size
    assert found.needed_bytes()[0] == pytest.approx(size, rel=0.02)


def test_files_that_cannot_be_read_are_counted_and_named(clips, tmp_path):
    (clips / "bad.mp4").write_bytes(b"no video")
    (clips / "empty.mp4").touch()
    seen = []
    plan = Plan(Storage(), tuple(list_videos([clips])))
    found = estimate_ingest(plan, tmp_path, "demo", LONGVA, Sampling(4), on_read=seen.append)
    assert (found.clips.count, found.clips.seconds, sum(seen)) == (3, pytest.approx(11.5), 5)
    assert sorted(found.unreadable) == ["bad", "empty"]
    assert "is empty (0 bytes)" in found.unreadable["empty"]
    assert 3 * 4 * 144 * 3584 < found.needed_bytes()[0] < 4 * 4 * 144 * 3584


def test_compressed_floats_are_a_range_and_measured_ones_are_not():
    raw, planes = of_7b(900, Storage("fp16")), of_7b(900, Storage("fp16", codec="planes"))
    least, most = planes.needed_bytes()
    assert (raw.needed_bytes()[0] / most, raw.needed_bytes()[0] / least) == pytest.approx(
        (1.14, 1.19), rel=1e-3
    )
    measured = Estimate(**vars(planes) | {"frame_bytes": 1e6})
    assert measured.needed_bytes() == pytest.approx((900 * 128e6,) * 2, rel=1e-3)
    assert measured.needed_bytes(Storage("fp16")) == raw.needed_bytes()


def test_videos_are_as_long_as_their_frames_by_time():
    by_time = Sampling(128, "fps", 2.0)
    assert [frames_taken(by_time, *length) for length in ((300, 30.0), (9000, 30.0), (0, 0.0))] == [
        20,
        128,
        128,
    ]
    assert guess_clips(10, 100.0, by_time).frames == {20: 10}
    assert guess_clips(10, None, Sampling(64)).frames == {64: 10}


@pytest.mark.parametrize(
    ("estimate", "room", "message"),
    [
        (of_7b(900, Storage("int8", "channel")), FREE, None),
        (of_7b(900, Storage("bf16")), FREE, "110.75 GiB are needed, 100.00 GiB are free in cache"),
        (of_7b(1, Storage("fp32"), 1000), FREE, None),
        (of_7b(1, Storage("fp32"), 4000), FREE, "take more as fp32 than the 3.94 GiB of a record"),
        (
            of_7b(100_000, Storage("int8", "channel")),
            Room("cache", MAP_BYTES * 9, 0, None, 0),
            "demo would fill 2 files of 4.00 TiB",
        ),
        (
            of_7b(10, Storage("int8", "channel")),
            Room("cache", 100 * GIB, 0, GIB, GIB),
            "takes 1.00 GiB already and may take 1.00 GiB (--max-size)",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_a_remedy(estimate, room, message):
    reasons = why_not([estimate], room)
    assert [message in reason for reason in reasons] == [True] * (message is not None)


def test_a_plan_beyond_one_file_fits_in_shards_and_says_in_how_many():
    estimate, room = (
        of_7b(100_000, Storage("int8", "channel")),
        Room("c", MAP_BYTES * 9, 0, None, 0),
    )
    _, most = estimate.needed_bytes()
    (reason,) = why_not([estimate], room)
    assert f"--shard 0/1, which makes some {-(-most // (64 * GIB))} shards of 64.00 GiB" in reason
    assert why_not([estimate], room, sharded=True) == []


def test_several_datasets_are_summed():
    pair = [of_7b(2, Storage("int8", "channel")), of_7b(1, Storage("fp32"), 4000)]
    assert needed_together(pair) is None
    assert needed_together([pair[0]] * 2) == tuple(2 * end for end in pair[0].needed_bytes())
