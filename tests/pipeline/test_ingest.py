import json
import math
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore.decoding.video_file import Video, decode
from featstore.encoders.registry import EncoderRecipe
from featstore.encoders.toy import ToyEncoder
from featstore.errors import (
    FeatureNotFound,
    ListingError,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreMismatch,
)
from featstore.pipeline import ingest as ingest_module
from featstore.pipeline.ingest import ingest
from featstore.pipeline.options import IngestOptions
from featstore.records.quantization import quantize
from featstore.records.storage import GRANULARITIES, Storage
from featstore.sampling import Sampling
from featstore.store.engine.locks import ingest_lock
from featstore.store.maintenance.seal import seal_dataset
from featstore.store.paths import stored_bytes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]

SIX = Sampling(6)
PLAN = IngestOptions(dry_run=True)


def toy_features(path: Path, encoder: ToyEncoder, sampling: Sampling) -> np.ndarray:
    pre = encoder.preprocessing
    frames = np.zeros((sampling.nframe, *pre.max_frame, 3), np.uint8)
    count = len(decode(str(path), sampling, pre, frames).indices)
    return encoder.encode(frames[:count]).reshape(-1, encoder.identity.geometry.row_width)


def test_what_was_ingested_is_what_the_encoder_gives(clips, cache):
    encoder = ToyEncoder()
    summary = ingest(clips, cache, "demo", encoder=encoder, sampling=SIX, storage=Storage("fp32"))
    assert (summary.stored, summary.skipped, summary.failures) == (3, 0, [])
    for path in clips.iterdir():
        features = featstore.get(cache, "demo", path.stem, nframe=6)
        np.testing.assert_array_equal(features.data, toy_features(path, encoder, SIX))
        assert features.header.frames == SIX.indices(features.header.total_frames, 1.0)
        assert features.header.source.size == path.stat().st_size


@pytest.mark.parametrize("kind", [iter, tuple, dict.fromkeys])
def test_videos_may_come_from_anything_that_can_be_walked_once(clips, cache, kind):
    """A glob is walked once; to look through it twice would find nothing the second time."""
    mixed = [clips / "blink.mp4", str(clips / "color_bars.mp4")]
    mixed.append(Video("ball", str(clips / "bouncing_ball.mp4")))
    summary = ingest(kind(mixed), cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    assert (summary.planned, summary.stored) == (3, 3)
    assert sorted(featstore.open(cache)["demo"]) == ["ball", "blink", "color_bars"]


def test_relative_paths_mean_the_same_after_a_chdir(clips, cache, monkeypatch):
    monkeypatch.chdir(clips.parent)
    videos = ["clips/color_bars.mp4", Video("blink", "clips/blink.mp4")]
    encoder, leave = ToyEncoder(), lambda plan: os.chdir("/")
    ingest(videos, cache.name, "demo", encoder=encoder, sampling=SIX, on_plan=leave)
    dataset = featstore.open(cache)["demo"]
    for video in ("blink", "color_bars"):
        assert dataset[video].header.video_path == str(clips / f"{video}.mp4")


@pytest.mark.parametrize("place", [str, Path])
def test_a_single_place_needs_no_list(clips, cache, place):
    summary = ingest(place(clips), cache, "demo", encoder=ToyEncoder(), sampling=SIX, options=PLAN)
    assert summary.planned == 3


@pytest.mark.parametrize(
    ("granularity", "codec"), [*zip(GRANULARITIES, ("raw", "lz4", "zstd", "raw"), strict=True)]
)
def test_int8_is_within_half_a_step_of_the_encoder(clips, cache, granularity, codec):
    encoder, storage = ToyEncoder(), Storage("int8", granularity, codec)
    any_error = IngestOptions(max_error=math.inf)
    ingest(clips, cache, "demo", encoder=encoder, sampling=SIX, storage=storage, options=any_error)
    features = featstore.get(cache, "demo", "color_bars")
    expected = toy_features(clips / "color_bars.mp4", encoder, SIX)
    step = math.prod(features.scales)
    assert (np.abs(features.dequantize() - expected) <= step * 0.5001).all()
    assert features.header.error.max_abs <= step.max() * 0.5001
    np.testing.assert_array_equal(features.data, quantize(expected, storage)[0])


def test_a_second_ingest_decodes_nothing(clips, cache, monkeypatch):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    monkeypatch.setattr(ingest_module, "Scheduler", None)
    summary = ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    assert (summary.stored, summary.skipped) == (0, 3)


def test_another_encoder_makes_a_second_set_and_disturbs_none(clips, cache):
    ingest(clips, cache, "demo", encoder=ToyEncoder(seed=0), sampling=SIX)
    before = featstore.get(cache, "demo", "blink")
    ingest(clips, cache, "demo", encoder=ToyEncoder(seed=1), sampling=SIX)
    dataset = featstore.open(cache)["demo"]
    assert len(dataset.sets) == 2
    assert len(dataset) == 3
    assert sorted(dataset) == ["blink", "bouncing_ball", "color_bars"]
    np.testing.assert_array_equal(dataset["blink"].data, before.data)
    first, second = dataset.sets.values()
    assert first["blink"].header.spec == before.header.spec
    assert not np.array_equal(second["blink"].data, before.data)


def test_a_replaced_video_is_noticed_and_ingested_again(clips, cache):
    encoder = ToyEncoder()
    ingest(clips, cache, "demo", encoder=encoder, sampling=SIX, storage=Storage("fp32"))
    old = featstore.get(cache, "demo", "blink").data
    kept = old.copy()
    shutil.copy(clips / "color_bars.mp4", clips / "blink.mp4")
    summary = ingest(clips, cache, "demo", encoder=encoder, sampling=SIX, storage=Storage("fp32"))
    assert (summary.stored, summary.skipped, summary.replaced) == (1, 2, 1)
    new = featstore.get(cache, "demo", "blink").data
    np.testing.assert_array_equal(new, toy_features(clips / "color_bars.mp4", encoder, SIX))
    np.testing.assert_array_equal(old, kept)


@pytest.mark.parametrize("resume", [True, False])
def test_features_of_a_replaced_video_go_where_the_new_one_fails(clips, cache, resume):
    """They were served on for the new file, and a sound one put there later was not tried."""
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    whole = (clips / "color_bars.mp4").read_bytes()
    (clips / "blink.mp4").write_bytes(b"junk")
    options = IngestOptions(resume=resume)
    summary = ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX, options=options)
    assert (summary.stored, summary.replaced, len(summary.failures)) == (2 * (not resume), 1, 1)
    with pytest.raises(FeatureNotFound, match="failed"):
        featstore.get(cache, "demo", "blink")
    assert ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX).planned == 0
    (clips / "blink.mp4").write_bytes(whole)
    again = ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    assert (again.stored, again.failures) == (1, [])
    assert featstore.get(cache, "demo", "blink").header.total_frames == (
        featstore.get(cache, "demo", "color_bars").header.total_frames
    )


def test_another_folders_video_of_the_same_id_takes_no_ones_place(clips, cache, tmp_path):
    """Two folders of one dataset with a 0001.mp4 each: the second took the first one's place unseen."""
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(clips / "color_bars.mp4", other / "blink.mp4")
    strict = IngestOptions(on_clash="error")
    with pytest.raises(ListingError, match="name other files that are stored already") as said:
        ingest(other, cache, "demo", encoder=ToyEncoder(), sampling=SIX, options=strict)
    assert f"'blink': {clips / 'blink.mp4'} and {other / 'blink.mp4'}" in str(said.value)
    (clips / "blink.mp4").unlink()  # then it was moved, or is no more
    assert ingest(other, cache, "demo", encoder=ToyEncoder(), sampling=SIX).stored == 1


def test_a_clash_of_ids_is_left_out_and_the_others_are_ingested(clips, cache, tmp_path):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    before = featstore.get(cache, "demo", "blink").header
    other = tmp_path / "other"
    other.mkdir()
    for name in ("blink.mp4", "new.mp4"):
        shutil.copy(clips / "color_bars.mp4", other / name)
    for stored in (1, 0):  # and it is no failure that a later run must retry
        done = ingest(other, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
        assert (done.stored, done.failures, done.replaced) == (stored, [], 0)
        (clash,) = done.to_dict()["clashes"]
        assert (clash["video_id"], clash["video_path"]) == ("blink", str(other / "blink.mp4"))
        assert f"is that of {clips / 'blink.mp4'}, which is stored" in clash["reason"]
    assert featstore.get(cache, "demo", "blink").header == before
    assert list(featstore.open(cache)["demo"].failures()) == []


def test_a_touched_video_of_the_same_content_is_left_alone(clips, cache):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    os.utime(clips / "blink.mp4", (1, 1))
    assert ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX).skipped == 3


def test_a_video_whose_file_is_gone_stays_stored(clips, cache):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    videos = [Video("blink", str(clips / "gone.mp4"))]
    assert ingest(videos, cache, "demo", encoder=ToyEncoder(), sampling=SIX).skipped == 1


def test_bad_videos_are_recorded_with_their_reason_and_the_rest_is_stored(clips, cache):
    (clips / "empty.mp4").touch()
    (clips / "text.mp4").write_text("no video")
    (clips / "folder.mp4").mkdir()
    os.mkfifo(clips / "fifo.mp4")
    whole = (clips / "color_bars.mp4").read_bytes()
    (clips / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    summary = ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    assert summary.stored == 3
    reasons = {failure.video_id: failure.reason for failure in summary.failures}
    expected = {
        "empty": "0 bytes",
        "text": "not a video",
        "folder": "is a folder",
        "fifo": "not a regular file",
        "cut": "cut short",
    }
    assert reasons.keys() == expected.keys()
    for name, part in expected.items():
        assert part in reasons[name]
    dataset = featstore.open(cache)["demo"]
    assert {failure.video_id: failure.reason for failure in dataset.failures()} == reasons
    with pytest.raises(featstore.FeatureNotFound, match=r"failed to be ingested.*0 bytes"):
        dataset["empty"]


def test_failed_videos_are_tried_again_when_asked_or_when_their_file_changed(clips, cache):
    (clips / "late.mp4").touch()
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    left = ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    assert [failure.video_id for failure in left.failed_before] == ["late"]
    asked = ingest(
        clips,
        cache,
        "demo",
        encoder=ToyEncoder(),
        sampling=SIX,
        options=IngestOptions(retry_failed=True),
    )
    assert [failure.video_id for failure in asked.failures] == ["late"]
    shutil.copy2(clips / "blink.mp4", clips / "late.mp4")  # with its old modification time
    done = ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    assert (done.stored, done.failures, done.failed_before) == (1, [], [])
    assert list(featstore.open(cache)["demo"].failures()) == []


def test_a_video_that_takes_too_long_is_killed_and_the_run_goes_on(clips, cache):
    summary = ingest(
        clips,
        cache,
        "demo",
        encoder=ToyEncoder(),
        sampling=SIX,
        options=IngestOptions(decode_timeout=0.001, workers=2),
    )
    assert [
        failure.reason
        for failure in summary.failures
        if "ingest it with a larger --decode-timeout, or give a model" not in failure.reason
    ] == []
    assert len(summary.failures) == 3


def test_odd_names_and_ids_come_back(clips, cache, tmp_path):
    odd = tmp_path / "sü b" / "水 日.mp4"
    odd.parent.mkdir()
    shutil.copy(clips / "blink.mp4", odd)
    latin = os.fsdecode(os.path.join(os.fsencode(odd.parent), b"l\xe9.mp4"))
    shutil.copy(clips / "blink.mp4", latin)
    ingest([odd.parent], cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    dataset = featstore.open(cache)["demo"]
    assert sorted(dataset) == sorted(["水 日", "l\udce9"])
    assert dataset["l\udce9"].header.video_path == latin


def test_features_that_are_not_finite_fail_their_video_alone(clips, cache):
    pre = ToyEncoder().preprocessing
    blink = np.zeros((9, *pre.max_frame, 3), np.uint8)
    decode(str(clips / "blink.mp4"), Sampling(9), pre, blink)

    class Overflowing(ToyEncoder):
        def encode(self, frames):
            features = super().encode(frames)
            features[(frames == blink[0]).all(axis=(1, 2, 3))] = np.inf  # it shares a batch
            return features

    summary = ingest(clips, cache, "demo", encoder=Overflowing(), sampling=Sampling(9, "fps", 2.0))
    assert [failure.video_id for failure in summary.failures] == ["blink"]
    assert "NaN or infinite" in summary.failures[0].reason
    assert "computed in fp32" in summary.failures[0].reason
    assert "--dtype" not in summary.failures[0].reason  # there is no wider one
    assert summary.failures[0].reason.endswith("correct the encoder 'toy', or its weights")
    assert summary.stored == 2
    assert {len(video.header.frames) for video in featstore.open(cache)["demo"].values()} != {1}


def test_the_summary_tells_how_busy_each_stage_was_and_which_limits(clips, cache):
    summary = ingest(
        clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX, options=IngestOptions(workers=1)
    )
    assert 0 < summary.working_seconds <= summary.seconds
    assert all(0 < share <= 1 for share in summary.shares.values())
    assert summary.bottleneck == max(summary.shares, key=summary.shares.get)
    told = json.loads(json.dumps(summary.to_dict()))
    assert told["bottleneck"] == summary.bottleneck
    assert told["shared_bytes"] >= 3 * 6 * 28 * 28 * 3


def test_sampling_by_rate_stores_as_many_frames_as_the_clip_has_seconds(clips, cache):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=Sampling(128, "fps", 2.0))
    features = featstore.get(cache, "demo", "bouncing_ball")
    assert len(features.header.frames) == 16
    assert features.shape == (16 * 4, 8)


def test_limit_and_dry_run_do_what_they_say(clips, cache):
    plan = ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX, options=PLAN)
    assert (plan.planned, plan.stored) == (3, 0)
    assert not cache.exists()
    assert (
        ingest(
            clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX, options=IngestOptions(limit=2)
        ).stored
        == 2
    )
    assert ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX).stored == 1


@pytest.mark.parametrize(
    ("limits", "remedy"),
    [
        ({"min_free": 1 << 60}, "make room, or lower --min-free"),
        ({"max_size": 1000}, "; raise --max-size"),
        ({"max_size": 10_000}, "take fewer with --limit, or raise --max-size"),
    ],
)
def test_what_cannot_fit_is_refused_before_any_work(clips, cache, limits, remedy, monkeypatch):
    """And fewer videos are only advised where one would fit."""
    monkeypatch.setattr(ingest_module, "Scheduler", None)
    with pytest.raises(StoreFull, match=f"the videos need .*{remedy}$"):
        ingest(
            clips,
            cache,
            "demo",
            encoder=ToyEncoder(),
            sampling=SIX,
            options=IngestOptions(**limits),
        )


def test_a_limit_reached_on_the_way_stops_cleanly_and_the_next_run_goes_on(
    clips, cache, monkeypatch
):
    monkeypatch.setattr(
        ingest_module, "_check_space", lambda *args: None
    )  # as if the disk filled up since
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX, options=IngestOptions(limit=1))
    taken = stored_bytes(cache)
    full = ingest(
        clips,
        cache,
        "demo",
        encoder=ToyEncoder(),
        sampling=SIX,
        options=IngestOptions(max_size=taken),
    )
    assert "raise --max-size" in full.full
    assert (full.stored, full.skipped, full.failures) == (0, 1, [])
    assert ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX).stored == 2


def test_a_stop_keeps_what_was_encoded_and_the_next_run_goes_on(clips, cache):
    stop = threading.Event()

    class Stopping(ToyEncoder):
        def encode(self, frames):
            stop.set()
            return super().encode(frames)

    first = ingest(clips, cache, "demo", encoder=Stopping(), sampling=SIX, stop=stop)
    assert first.interrupted
    assert first.stored < 3
    second = ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    assert first.stored + second.stored == 3


def test_a_second_ingest_at_the_same_time_is_refused_by_name(clips, cache):
    (cache / "demo").mkdir(parents=True)
    with ingest_lock(cache / "demo"), pytest.raises(StoreLocked, match=f"process {os.getpid()} "):
        ingest(
            clips,
            cache,
            "demo",
            encoder=ToyEncoder(),
            sampling=SIX,
            options=IngestOptions(lock_wait=0.1),
        )


def test_a_cache_directory_that_cannot_be_is_refused(clips, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be made"):
        ingest(clips, tmp_path / "file", "demo", encoder=ToyEncoder(), sampling=SIX)


def test_duplicate_ids_are_refused_before_any_work(clips, cache):
    videos = [Video("x", str(clips / name)) for name in ("blink.mp4", "color_bars.mp4")]
    with pytest.raises(ListingError, match="more than one file"):
        ingest(videos, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    assert not cache.exists()


def test_an_ingest_follows_the_storage_of_the_feature_set(clips, cache):
    bf16 = Storage("bf16")
    first = ingest(
        clips,
        cache,
        "demo",
        encoder=ToyEncoder(),
        sampling=SIX,
        storage=bf16,
        options=IngestOptions(limit=1),
    )
    rest = ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    assert (first.stored, rest.stored, rest.storage) == (1, 2, bf16)
    dataset = featstore.open(cache)["demo"]
    assert {features.header.storage for features in dataset.values()} == {bf16}
    row = dataset.feature_set
    assert (row.storage, row.origin, row.names, row.max_error) == (bf16, "toy", {}, 0.02)


def test_another_storage_is_refused_before_the_encoder_is_loaded(clips, cache):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)

    class Unloadable(ToyEncoder):
        def load(self):
            raise AssertionError("its weights are not needed")

    for options in (IngestOptions(), PLAN):
        with pytest.raises(StoreMismatch, match=r"stored as int8/channel_token, asked for is fp16"):
            ingest(
                clips,
                cache,
                "demo",
                encoder=Unloadable(),
                sampling=SIX,
                storage=Storage("fp16"),
                options=options,
            )
    assert featstore.open(cache)["demo"].feature_set.storage == Storage()


def test_a_sealed_dataset_is_refused_before_an_encoder_is_built(clips, cache):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    seal_dataset(cache, "demo")
    nobody = [EncoderRecipe("nobody")]
    with pytest.raises(StoreError, match=r"demo is sealed: .* featstore seal --undo"):
        ingest(clips, cache, "demo", encoder=nobody, sampling=SIX)
    plan = ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX, options=PLAN)
    assert (plan.planned, plan.skipped) == (0, 3)


def test_a_set_is_stored_again_and_goes_on_after_an_interrupt(clips, cache):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    before = {name: f.numpy() for name, f in featstore.open(cache)["demo"].items()}
    (clips / "blink.mp4").write_bytes((clips / "blink.mp4").read_bytes())  # touched
    fp32 = Storage("fp32")
    words = {"encoder": ToyEncoder(), "sampling": SIX}
    limited = IngestOptions(replace_storage=True, limit=1)
    first = ingest(clips, cache, "demo", storage=fp32, options=limited, **words)
    assert (first.stored, first.skipped, first.storage) == (1, 0, fp32)
    dataset = featstore.open(cache)["demo"]
    stored_as = sorted(str(features.header.storage) for features in dataset.values())
    assert stored_as == ["fp32", "int8/channel_token", "int8/channel_token"]  # each says its own
    assert dataset.feature_set.storage == fp32
    rest = ingest(clips, cache, "demo", **words)  # a plain one goes on
    assert (rest.stored, rest.skipped, rest.restored, rest.to_dict()["stored_otherwise"]) == (
        2,
        1,
        2,
        2,
    )
    for path in clips.iterdir():
        features = dataset[path.stem]
        np.testing.assert_array_equal(features.data, toy_features(path, ToyEncoder(), SIX))
        np.testing.assert_allclose(features.numpy(), before[path.stem], atol=0.1)
    again = IngestOptions(replace_storage=True)
    assert ingest(clips, cache, "demo", storage=fp32, options=again, **words).planned == 0
    assert len(dataset.sets) == 1


def test_a_video_that_fails_when_it_is_stored_again_keeps_what_is_stored(clips, cache):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    kept = featstore.get(cache, "demo", "blink").data.copy()
    options = IngestOptions(replace_storage=True, decode_timeout=0.001)
    done = ingest(
        clips,
        cache,
        "demo",
        encoder=ToyEncoder(),
        sampling=SIX,
        storage=Storage("fp32"),
        options=options,
    )
    assert len(done.failures) == 3
    np.testing.assert_array_equal(featstore.get(cache, "demo", "blink").data, kept)


def test_no_storage_is_replaced_if_none_is_asked_for(clips, cache):
    words = {"encoder": ToyEncoder(), "sampling": SIX}
    ingest(clips, cache, "demo", options=IngestOptions(limit=1), **words)
    before = featstore.open(cache)["demo"].feature_set
    done = ingest(clips, cache, "demo", options=IngestOptions(replace_storage=True), **words)
    assert done.stored == 2
    assert featstore.open(cache)["demo"].feature_set == before


def test_a_storage_is_replaced_though_no_video_is_to_be_made_again(clips, cache):
    """None is listed; the next ingest is to store as this one said, and tries again what failed."""
    words = {"encoder": ToyEncoder(), "sampling": SIX}
    slow = IngestOptions(decode_timeout=0.001)
    assert len(ingest(clips, cache, "demo", options=slow, **words).failures) == 3
    dataset = featstore.open(cache)["demo"]
    plan = IngestOptions(replace_storage=True, dry_run=True)
    done = ingest([], cache, "demo", storage=Storage("fp32"), options=plan, **words)
    assert (done.planned, done.storage) == (0, Storage("fp32"))
    assert dataset.feature_set.storage == Storage()
    again = IngestOptions(replace_storage=True, lock_wait=0)
    with ingest_lock(cache / "demo"), pytest.raises(StoreLocked):
        ingest([], cache, "demo", storage=Storage("fp32"), options=again, **words)
    done = ingest([], cache, "demo", storage=Storage("fp32"), options=again, **words)
    assert (done.planned, done.storage) == (0, Storage("fp32"))
    assert dataset.feature_set.storage == Storage("fp32")
    meta = json.loads((cache / "cache_meta.json").read_text())
    assert meta["datasets"]["demo"]["feature_sets"][0]["storage"]["values"] == "fp32"
    done = ingest(clips, cache, "demo", options=PLAN, **words)
    assert (done.planned, done.failed_before) == (3, []), "values may fit another storage"


def test_the_record_says_what_decoded_it(clips, cache):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    header = featstore.get(cache, "demo", "blink").header
    assert (header.decoder, header.doubt, header.nframe) == ("pyav", "", 6)
    entry = featstore.open(cache)["demo"].entry("blink")
    assert (entry.decoder, entry.doubt) == ("pyav", "")


def test_cache_meta_counts_what_was_stored(clips, cache):
    ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=SIX)
    meta = json.loads((cache / "cache_meta.json").read_text())
    found = meta["datasets"]["demo"]["feature_sets"][0]
    assert found["videos"] == meta["videos"] == 3
