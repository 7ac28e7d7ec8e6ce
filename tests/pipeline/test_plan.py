"""What is work, and in which order videos are decoded."""

import os
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import put_video, toy_features, toy_spec

from featstore.decoding.video_file import Video, fingerprint
from featstore.errors import ListingError, StoreMismatch
from featstore.pipeline import plan
from featstore.pipeline.listing import list_videos
from featstore.pipeline.make_record import largest_shape
from featstore.pipeline.options import IngestOptions
from featstore.pipeline.plan import LARGEST_EVERY, decode_order, make_plan, plan_ingest
from featstore.records.storage import Storage
from featstore.store.engine.environment import open_environment
from featstore.store.maintenance.merge import merge_dataset
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
    found = make_plan(list_videos([tmp_path]), snapshot, spec)
    assert [video.video_id for video in found.todo] == ["ahead"]
    assert [failure.video_id for failure in found.failed_before] == ["early"]


def failed_on(cache, path: object, reason: str, created: float | None = None) -> None:
    """Record that the video `x` failed, now by default."""
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(toy_spec(), Storage("fp16"), origin="toy")
        created = time.time() if created is None else created
        writer.fail(Failure("x", str(path), toy_spec().digest, reason, created))


def planned_x(cache, path: object, storage: Storage | None = None, **options: bool) -> bool:
    """Return whether the failed video is work."""
    snapshot = open_environment(cache / "demo").snapshot()
    listed, asked = [Video("x", str(path))], IngestOptions(**options)
    return bool(make_plan(listed, snapshot, toy_spec(), asked, storage).todo)


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"x")
    return path


def test_a_failure_is_of_its_file_and_another_path_is_tried(cache, bad):
    """A manifest that named a wrong path was corrected."""
    good = bad.with_name("good.mp4")
    good.write_bytes(b"x")
    failed_on(cache, bad, "no frames")
    assert not planned_x(cache, bad)
    assert planned_x(cache, good)


@pytest.mark.parametrize("path", ["x.mp4", "folder/bad.mp4", "first/bad.mp4"])
def test_a_failed_video_whose_link_leads_elsewhere_is_tried_again(cache, bad, path):
    before, video, link = bad.stat().st_ctime, bad.parent / path, bad.parent / path.split("/")[0]
    if path == "first/bad.mp4":  # a link to a link
        os.symlink("second", link)
        link = bad.with_name("second")
    while not os.path.lexists(link) or os.lstat(link).st_ctime <= before:  # a tick of the clock
        link.unlink(missing_ok=True)
        os.symlink(bad if path == "x.mp4" else bad.parent, link)
    failed_on(cache, video, "no frames")
    assert not planned_x(cache, video)
    failed_on(cache, video, "no frames", before)
    assert planned_x(cache, video), "the link is newer"


@pytest.mark.parametrize(
    "said", ["cannot be opened: No such file or directory", "cannot be read: Input/output error"]
)
def test_a_file_that_was_away_and_came_back_as_it_was_is_tried_again(cache, bad, said):
    failed_on(cache, bad, f"{bad} {said}")
    assert planned_x(cache, bad)
    gone = bad.with_name("gone.mp4")
    failed_on(cache, gone, f"{gone} {said}")
    assert not planned_x(cache, gone)


def test_a_failure_of_another_storage_is_tried_again_once_it_was_replaced(cache, bad):
    """fp16 could not hold the values; so it is if the ingest that stores them again was interrupted."""
    failed_on(cache, bad, "5 of 8 values exceed fp16's 65504")
    assert not planned_x(cache, bad)
    assert planned_x(cache, bad, Storage("bf16"), replace_storage=True)
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(toy_spec(), Storage("bf16"), replace_storage=True)
    assert planned_x(cache, bad)


@pytest.fixture
def mixed(cache, tmp_path):
    """A dataset of stored, failed and replaced videos, some in a second set; a listing of some of them and others."""
    spec, other = toy_spec(), toy_spec(8)
    videos = {}
    for i in range(60):
        path = tmp_path / f"{i}.mp4"
        path.write_bytes(bytes(10))
        videos[str(i)] = Video(str(i), str(path))
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        for one in (spec, other):
            writer.add_set(one, origin="toy")
        for i, video in enumerate(videos.values()):
            source = replace(fingerprint(video.path), size=10 + (i % 7 == 0))  # replaced since
            fields = {"video_path": video.path, "source": source}
            if i % 3:
                put_video(writer, spec, video.video_id, toy_features(i), **fields)
            if i % 5 == 0:
                writer.fail(Failure(video.video_id, video.path, spec.digest, "no", time.time()))
            if i % 2:
                put_video(writer, other, video.video_id, toy_features(i, 8), **fields)
    listed = [video for i, video in enumerate(videos.values()) if i % 4]
    listed += [Video("new", str(tmp_path / "0.mp4")), Video("", "/nowhere")]
    return open_environment(cache / "demo").snapshot(), spec, listed[::-1]


@pytest.mark.parametrize("retry", [False, True])
def test_a_large_listing_is_the_same_work_as_a_small_one(mixed, monkeypatch, retry):
    """A large one is compared with all rows of the set in one walk, a small one looked up."""
    snapshot, spec, listed = mixed
    options = IngestOptions(retry_failed=retry)
    looked_up = make_plan(listed, snapshot, spec, options)
    monkeypatch.setattr(plan, "FEW_VIDEOS", 0)
    read, tables = snapshot.read, []

    def watched(table, key):
        tables.append(table)
        return read(table, key)

    monkeypatch.setattr(snapshot, "read", watched)
    assert make_plan(listed, snapshot, spec, options) == looked_up
    assert set(tables) <= {"specs", "manifest"}
    numbers = {int(video.video_id) for video in looked_up.stored}
    assert numbers == {i for i in range(60) if i % 4 and i % 3 and i % 7}
    failed = {int(failure.video_id) for failure in looked_up.failed_before}
    assert failed == (set() if retry else {i for i in range(0, 60, 5) if i % 4} - numbers)
    assert [video.video_id for video in looked_up.todo[:2]] == ["", "new"]
    kinds = [looked_up.todo, looked_up.stored, looked_up.failed_before]
    assert sum(map(len, kinds)) == len(listed)
    todo = {video.video_id for video in looked_up.todo}
    stored_once = {str(i) for i in range(60) if i % 3}
    assert looked_up.replaced == todo & stored_once


@pytest.mark.parametrize("resume", [True, False])
def test_all_is_made_again_and_what_is_replaced_is_known_whether_it_resumes(mixed, resume):
    """Else what a failed one is stored from, another file, is served on."""
    snapshot, spec, listed = mixed
    found = make_plan(listed, snapshot, spec, IngestOptions(resume=resume, retry_failed=True))
    replaced = {str(i) for i in range(0, 60, 7) if i % 3 and i % 4}
    assert found.replaced == replaced
    if not resume:
        assert (list(found.todo), found.stored, found.failed_before) == (listed, (), ())
    one = IngestOptions(resume=resume, retry_failed=True, limit=1)
    assert make_plan(listed, snapshot, spec, one).replaced == frozenset(), "the first is new"


@pytest.mark.parametrize("resume", [True, False])
def test_an_id_names_one_file_whether_it_resumes(cache, tmp_path, resume):
    path, other = tmp_path / "0.mp4", tmp_path / "other.mp4"
    path.write_bytes(bytes(10))
    other.write_bytes(bytes(11))
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(toy_spec(), origin="toy")
        fields = {"video_path": str(path), "source": fingerprint(str(path))}
        put_video(writer, toy_spec(), "0", toy_features(0), **fields)
    snapshot = open_environment(cache / "demo").snapshot()
    options = IngestOptions(resume=resume, on_clash="error")
    remove = f"remove what is stored: featstore rm --cache-dir {cache} --dataset demo --spec {toy_spec().digest[:8]} "
    with pytest.raises(ListingError, match=f"name other files.*{remove}--video 0\n"):
        make_plan([Video("0", str(other))], snapshot, toy_spec(), options)


@pytest.mark.parametrize("became", ["folder", "other content", "gone"])
def test_an_id_may_name_another_file_once_the_first_is_not_there_as_it_was(cache, tmp_path, became):
    [video] = stored_at(cache, tmp_path, 0.0)
    path, other = tmp_path / "0.mp4", tmp_path / "other.mp4"
    other.write_bytes(bytes(11))
    path.unlink()
    if became == "folder":
        path.mkdir()
    elif became == "other content":
        path.write_bytes(bytes(12))
    asked = Video(video.video_id, str(other))
    snapshot = open_environment(cache / "demo").snapshot()
    assert make_plan([asked], snapshot, toy_spec()).todo == (asked,)


def test_a_plan_heeds_its_options_and_needs_the_bytes_of_its_records(cache):
    videos = [Video(str(i), f"/{i}.mp4") for i in range(5)]
    storage = Storage("fp16", codec="planes")
    found = plan_ingest(videos, cache, "demo", toy_spec(), IngestOptions(limit=3), storage)
    assert len(found.todo) == 3
    bytes_each = storage.record_bytes(largest_shape(toy_spec()), toy_spec().sampling.nframe)
    assert found.needed_bytes(toy_spec()) == round(3 * bytes_each / storage.ratios[0])


def test_a_few_videos_of_many_are_looked_up(mixed, monkeypatch):
    snapshot, spec, listed = mixed
    monkeypatch.setattr(plan, "FEW_VIDEOS", 0)
    monkeypatch.setattr(snapshot, "rows", None)
    (video,) = listed[4:5]
    found = make_plan([video], snapshot, spec)
    assert [*found.todo, *found.stored] == [video]


def stored_at(cache, tmp_path, *times: float, storage: Storage | None = None) -> list[Video]:
    """Videos that were stored at some times, seconds from now."""
    spec, videos = toy_spec(), []
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(spec, storage, origin="toy")
        for i, seconds in enumerate(times):
            path = tmp_path / f"{i}.mp4"
            path.write_bytes(bytes(10))
            videos.append(Video(str(i), str(path)))
            about = {"video_path": str(path), "source": fingerprint(str(path))}
            created = time.time() + seconds
            put_video(writer, spec, str(i), toy_features(i), **about, created=created)
    return videos


def test_a_plan_follows_the_storage_of_the_feature_set(cache, tmp_path):
    spec, none = toy_spec(), Storage("fp16")
    assert make_plan([], None, spec).storage == Storage()
    assert make_plan([], None, spec, storage=none).storage == none
    videos = stored_at(cache, tmp_path, 0.0, storage=Storage("bf16"))
    snapshot = open_environment(cache / "demo").snapshot()
    for asked in (None, Storage("bf16")):
        found = make_plan(videos, snapshot, spec, storage=asked)
        assert (found.storage, found.todo) == (Storage("bf16"), ())
    with pytest.raises(
        StoreMismatch,
        match=r"is stored as bf16, asked for is fp16.*--restore-as .IngestOptions.replace_storage=True",
    ):
        make_plan(videos, snapshot, spec, storage=Storage("fp16"))


def test_all_stored_videos_are_work_if_their_storage_is_replaced_and_none_is_dropped(
    cache, tmp_path
):
    videos = stored_at(cache, tmp_path, -9.0, -5.0)
    options = IngestOptions(replace_storage=True)
    snapshot = open_environment(cache / "demo").snapshot()
    found = make_plan(videos, snapshot, toy_spec(), options, Storage("fp16"))
    assert (found.storage, found.todo) == (Storage("fp16"), tuple(videos))
    assert found.replaced == frozenset()  # what is stored stays if they fail now
    assert (found.restored, found.replaces_storage) == (2, True)
    one = replace(options, limit=1)
    assert make_plan(videos, snapshot, toy_spec(), one, Storage("fp16")).restored == 1
    same = make_plan(videos, snapshot, toy_spec(), options, Storage())
    assert same.todo == ()


def test_videos_stored_before_the_storage_was_replaced_are_work_for_any_ingest(cache, tmp_path):
    """So one that was to store them again and was interrupted goes on."""
    videos = stored_at(cache, tmp_path, -9.0, 9.0)
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(toy_spec(), Storage("fp32"), replace_storage=True)
    snapshot = open_environment(cache / "demo").snapshot()
    found = make_plan(videos, snapshot, toy_spec())
    assert (found.storage, found.todo) == (Storage("fp32"), tuple(videos))
    assert (found.restored, found.replaces_storage) == (2, False)


def test_a_record_whose_codec_did_not_shrink_it_is_stored_if_it_was_made_since(cache, tmp_path):
    videos = stored_at(cache, tmp_path, -9.0, 9.0)
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(toy_spec(), Storage(codec="zstd"), replace_storage=True)
    snapshot = open_environment(cache / "demo").snapshot()
    assert make_plan(videos, snapshot, toy_spec()).todo == (videos[0],)


def test_a_video_that_is_stored_as_the_set_says_is_no_work_whenever_that_was_decided(
    cache, tmp_path
):
    """The clock was ahead when the storage was replaced, or it was replaced and is again what it was."""
    videos = stored_at(cache, tmp_path, -9.0)
    for storage, due in (
        (Storage("fp32"), videos),
        (Storage(codec="zstd"), videos),
        (Storage("int8", "token"), videos),
        (Storage(), []),
    ):
        with FeatureWriter(cache, "demo", min_free=0) as writer:
            writer.add_set(toy_spec(), storage, replace_storage=True)
        snapshot = open_environment(cache / "demo").snapshot()
        assert make_plan(videos, snapshot, toy_spec()).todo == tuple(due)


def test_records_older_than_their_set_are_stored_as_long_as_its_storage_is_its_first(
    cache, tmp_path
):
    """A merge brings records from elsewhere into a set that is made for them."""
    videos = stored_at(cache, tmp_path, -1e6)
    snapshot = open_environment(cache / "demo").snapshot()
    assert make_plan(videos, snapshot, toy_spec()).stored == tuple(videos)


def test_records_that_a_merge_brought_in_another_storage_are_work_once_that_is_asked_for(
    cache, tmp_path
):
    """The set says fp16 already; what is int8 came from another cache."""
    videos = stored_at(tmp_path / "other", tmp_path, -9.0, 9.0)
    put_fp16 = {"source": fingerprint(videos[0].path)}
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        fp16 = writer.add_set(toy_spec(), Storage("fp16"), origin="toy").storage
        put_video(writer, toy_spec(), "0", toy_features(0), fp16, **put_fp16)
    merge_dataset(tmp_path / "other", cache, "demo", min_free=0)
    snapshot = open_environment(cache / "demo").snapshot()
    found = make_plan(videos, snapshot, toy_spec())
    assert (found.storage, found.todo, found.restored) == (fp16, (), 0)
    options = IngestOptions(replace_storage=True)
    found = make_plan(videos, snapshot, toy_spec(), options, fp16)
    assert (found.stored, found.todo, found.restored) == ((videos[0],), (videos[1],), 1)


def test_a_half_done_change_of_storage_goes_on_in_the_cache_it_was_merged_into(cache, tmp_path):
    videos = stored_at(tmp_path / "other", tmp_path, -9.0, -5.0)
    with FeatureWriter(tmp_path / "other", "demo", min_free=0) as writer:
        bf16 = writer.add_set(toy_spec(), Storage("bf16"), replace_storage=True).storage
        fields = {"source": fingerprint(videos[0].path)}
        put_video(writer, toy_spec(), "0", toy_features(0), bf16, **fields)
    merge_dataset(tmp_path / "other", cache, "demo", min_free=0)
    snapshot = open_environment(cache / "demo").snapshot()
    found = make_plan(videos, snapshot, toy_spec())
    assert (found.storage, found.todo, found.restored) == (bf16, (videos[1],), 1)
    back = make_plan(videos, snapshot, toy_spec(), IngestOptions(replace_storage=True), Storage())
    assert (back.stored, back.todo) == ((videos[1],), (videos[0],)), "the other is right as it is"


def test_nothing_is_planned_for_a_dataset_under_another_name(cache, bad):
    failed_on(cache, bad, "no frames")
    videos = list_videos([bad])
    assert len(plan_ingest(videos, cache, "other", toy_spec(), IngestOptions()).todo) == 1
    (cache / "demo").rename(cache / "other")
    with pytest.raises(StoreMismatch, match=f"{cache}/other holds the dataset 'demo'"):
        plan_ingest(videos, cache, "other", toy_spec(), IngestOptions())
    (cache / "other").rename(cache / "demo")


def test_a_path_that_cannot_be_one_is_no_reason_to_try_again(cache):
    failed_on(cache, "/a\ud800.mp4", "no frames")
    assert not planned_x(cache, "/a\ud800.mp4")
    assert planned_x(cache, "/a\ud800.mp4", retry_failed=True)


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
