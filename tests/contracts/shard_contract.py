"""What a dataset must do, be it one file, sealed shards or elsewhere. Its tests are a subclass that makes it."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from toys import expected, put_video, store_videos, toy_features, toy_spec

from featstore.errors import DatasetNotFound, FeatureNotFound, StoreMismatch
from featstore.records.storage import Storage
from featstore.store.describe import describe_dataset
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.reader import FeatureStore, get
from featstore.store.rows import Failure, video_key
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from pathlib import Path

SPEC, WIDE = toy_spec(), toy_spec(8)
VIDEOS = {f"v/{i}": toy_features(i) for i in range(7)}
PARTS = (("v/0", "v/3", "v/5"), ("v/1",), ("v/2", "v/4", "v/6"))
FAILED = "v/broken"


def make_parts(folder: Path) -> list[Path]:
    """Make caches whose datasets `demo` are disjoint: two feature sets, a compressed record, a failure."""
    caches = []
    for number, videos in enumerate(PARTS):
        cache = folder / f"part-{number}"
        store_videos(cache, "demo", {video: VIDEOS[video] for video in videos})
        caches.append(cache)
    store_videos(caches[1], "demo", {"v/0": VIDEOS["v/0"]}, spec=WIDE, storage=Storage("bf16"))
    with FeatureWriter(caches[2], "demo", min_free=0) as writer:
        put_video(writer, SPEC, "zeros", np.zeros_like(VIDEOS["v/0"]), Storage(codec="lz4"))
        writer.fail(Failure(FAILED, "/videos/broken.mp4", SPEC.digest, "no frame", 5.0))
    return caches


class ShardContract:
    """serve: makes of caches of parts one cache directory, and returns it."""

    def serve(self, parts: list[Path], folder: Path) -> Path:
        raise NotImplementedError

    _parts: ClassVar[list[Path]] = []

    @pytest.fixture
    def served(self, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
        if "_parts" not in type(self).__dict__:  # made once for all tests of a class
            type(self)._parts = make_parts(tmp_path_factory.mktemp("parts"))
        return self.serve(self._parts, tmp_path)

    def test_all_videos_are_there_with_their_features(self, served):
        demo = FeatureStore(served)["demo"]
        assert set(demo) == {*VIDEOS, "zeros"}
        assert len(demo) == len(VIDEOS) + 1
        assert demo.sets[SPEC.digest].name == "demo"
        for video, x in VIDEOS.items():
            assert video in demo
            np.testing.assert_array_equal(demo[video].data, expected(x))
        assert not demo["zeros"].numpy().any()

    def test_each_feature_set_is_served_by_its_name(self, served):
        demo = FeatureStore(served)["demo"]
        assert set(demo.sets) == {SPEC.digest, WIDE.digest}
        assert list(demo.sets[WIDE.digest]) == ["v/0"]
        assert demo.lookup("v/0", nframe=8).header.spec == WIDE.digest
        assert demo.lookup("v/0").header.spec == SPEC.digest
        with pytest.raises(StoreMismatch, match="no feature set"):
            demo.lookup("v/0", nframe=99)

    def test_many_videos_are_one_array_in_their_order(self, served):
        demo = FeatureStore(served)["demo"]
        videos = ["v/5", "v/1", "zeros", "v/0", "v/1"]
        for _ in range(2):  # records that are new to this process, and known ones
            found = demo.get_many(iter(videos))
            assert (found.dtype, found.shape) == (np.float32, (5, *VIDEOS["v/0"].shape))
            np.testing.assert_array_equal(found, np.stack([demo[v].numpy() for v in videos]))
        found[:] = 0  # it is the caller's
        np.testing.assert_array_equal(demo["v/5"].data, expected(VIDEOS["v/5"]))
        assert demo.get_many([]).shape == (0, 0, 0)
        wide = demo.sets[WIDE.digest]
        np.testing.assert_array_equal(wide.get_many(["v/0"])[0], wide["v/0"].numpy())
        with pytest.raises(FeatureNotFound, match=r"'v/7'.*list what is"):
            demo.get_many(["v/0", "v/7", FAILED])

    def test_counts_and_failures_are_those_of_all_parts(self, served):
        described = describe_dataset(served, "demo")
        assert (described["videos"], described["failures"]) == (len(VIDEOS) + 2, 1)
        demo = FeatureStore(served)["demo"]
        assert [(row.video_id, row.reason) for row in demo.failures()] == [(FAILED, "no frame")]
        assert demo.counts.record_bytes == sum(entry.record_bytes for entry in demo.entries())

    def test_what_is_not_there_is_explained(self, served):
        demo = FeatureStore(served)["demo"]
        assert "v/7" not in demo
        with pytest.raises(FeatureNotFound, match="no frame"):
            demo[FAILED]
        with pytest.raises(FeatureNotFound, match="list what is"):
            demo["v/7"]
        with pytest.raises(DatasetNotFound, match="demo"):
            FeatureStore(served)["other"]

    def test_a_payload_lies_on_a_page_and_is_not_copied(self, served):
        features = get(served, "demo", "v/1")
        address = features.data.__array_interface__["data"][0]
        assert address % 4096 == 0
        assert not features.data.flags.owndata
        assert not features.data.flags.writeable

    def test_views_stay_valid_when_the_store_is_closed(self, served):
        with FeatureStore(served) as store:
            found = {video: store["demo"][video].data for video in VIDEOS}
        del store
        for video, data in found.items():
            np.testing.assert_array_equal(data, get(served, "demo", video).data)

    def test_what_is_known_of_a_record_finds_it_again(self, served):
        demo = FeatureStore(served)["demo"]
        first, second = demo["v/2"], demo["v/2"]
        assert first.header == second.header
        np.testing.assert_array_equal(first.data, second.data)
        snapshot = demo.snapshot()
        view = snapshot.get("records", video_key(SPEC.digest, "v/2"))
        part = view[3:20]
        assert bytes(snapshot.view(snapshot.place(part))) == bytes(part)
        assert snapshot.memory(part).address <= np.frombuffer(part, np.uint8).ctypes.data

    def test_a_pickled_dataset_and_features_come_back(self, served):
        demo = pickle.loads(pickle.dumps(FeatureStore(served)["demo"]))
        features = pickle.loads(pickle.dumps(demo["v/4"]))
        np.testing.assert_array_equal(features.data, expected(VIDEOS["v/4"]))

    def test_keys_and_rows_are_in_order(self, served):
        snapshot = FeatureStore(served)["demo"].snapshot()
        for table in ("specs", "catalog", "failures"):
            rows = list(snapshot.rows(table))
            assert rows == sorted(rows)
            assert [key for key, _ in rows] == list(snapshot.keys(table))
            assert [row for _, row in rows] == list(snapshot.values(table))
            assert [row for _, row in rows] == [snapshot.read(table, key) for key, _ in rows]
            assert snapshot.count(table) == len(rows)
        assert list(snapshot.keys("records")) == list(snapshot.keys("catalog"))
        assert list(snapshot.strays()) == []
        prefix = WIDE.digest.encode()
        assert list(snapshot.keys("catalog", prefix)) == [video_key(WIDE.digest, "v/0")]

    def test_reading_ahead_changes_nothing(self, served):
        demo = FeatureStore(served)["demo"]
        demo.read_ahead("v/6")
        demo.read_ahead("nobody")
        np.testing.assert_array_equal(demo["v/6"].data, expected(VIDEOS["v/6"]))

    def test_a_check_finds_nothing_wrong(self, served):
        report = check_dataset(served, "demo")
        assert report.problems == []
        assert (report.videos, report.failures) == (len(VIDEOS) + 2, 1)

    def test_a_merge_copies_it_whole(self, served, tmp_path):
        done = merge_dataset(served, tmp_path / "merged", "demo", failures=True, min_free=0)
        assert (done.stored, done.failures) == (len(VIDEOS) + 2, [])
        here, there = FeatureStore(tmp_path / "merged")["demo"], FeatureStore(served)["demo"]
        for digest in there.sets:
            one, other = here.sets[digest], there.sets[digest]
            assert {*one.entries()} == {*other.entries()}
            for video in other:
                key = video_key(digest, video)
                records = [d.snapshot().read("records", key) for d in (one, other)]
                assert records[0] == records[1]
        assert [*here.failures()] == [*there.failures()]
