"""A store beside a plain dict: whatever is put, committed, dropped, failed and reopened, both hold the same."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from quick import examples
from toys import expected, put_video, store_videos, toy_features, toy_spec

from featstore.errors import FeatureNotFound
from featstore.records.storage import Storage
from featstore.store.default_set import set_default
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.remove import remove_dataset, remove_set, remove_videos
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.manifest import Counts
from featstore.store.reader import FeatureStore
from featstore.store.rows import Failure
from featstore.store.writer import FeatureWriter

SPECS = {4: toy_spec(4), 8: toy_spec(8)}
STORAGES = {4: Storage(), 8: Storage("bf16")}
videos = st.sampled_from(["a", "b", "some/folder/c é", "d" * 300])
nframes = st.sampled_from(sorted(SPECS))
seeds = st.integers(0, 9)
codecs = st.sampled_from(["raw", "lz4"])


class Store(RuleBasedStateMachine):
    """`committed` and `pending` map (nframe, video) to the seed of its features, or to None for a failure."""

    def __init__(self):
        super().__init__()
        self.cache = Path(tempfile.mkdtemp(prefix="featstore-"))
        self.committed = {}
        self.pending = {}
        self.held = []

    @initialize()
    def make(self):
        self.open()
        for nframe, spec in SPECS.items():
            self.writer.add_set(spec, STORAGES[nframe], origin="toy")

    def open(self):
        self.writer = FeatureWriter(self.cache, "demo", min_free=0)
        self.store = FeatureStore(self.cache)

    @rule(nframe=nframes, video=videos, seed=seeds, codec=codecs, flat=st.booleans())
    def put(self, nframe, video, seed, codec, flat):
        x = self.features(nframe, seed, flat)
        put_video(self.writer, SPECS[nframe], video, x, replace(STORAGES[nframe], codec=codec))
        self.pending[nframe, video] = (seed, flat)

    @rule(nframe=nframes, video=videos)
    def fail(self, nframe, video):
        if (self.pending | self.committed).get((nframe, video)) is None:
            spec = SPECS[nframe]
            self.writer.fail(Failure(video, "/v", spec.digest, "no frames", 0.0))
            self.pending[nframe, video] = None

    @rule()
    def commit(self):
        rows = {row.video_id for row in self.writer.commit()}
        assert rows == {video for _, video in self.pending}
        self.committed |= self.pending
        self.pending = {}

    @rule()
    def abort(self):
        self.writer.abort()
        self.pending = {}

    @rule(commit=st.booleans())
    def reopen(self, commit):
        if commit:
            self.commit()
        self.writer.abort()
        self.pending = {}
        del self.writer, self.store
        self.open()

    @rule(video=videos, nframe=nframes)
    def drop(self, video, nframe):
        """A failure that takes what is stored with it."""
        failure = Failure(video, "/v", SPECS[nframe].digest, "another file", 0.0)
        self.writer.fail(failure, drop=True)
        self.pending[nframe, video] = None

    @rule(chosen=st.sets(videos), nframe=nframes)
    def remove_some(self, chosen, nframe):
        self.commit()
        remove_videos(self.cache, "demo", chosen, spec=SPECS[nframe])
        for video in chosen:
            self.committed.pop((nframe, video), None)

    @rule(nframe=nframes)
    def remove_one_set(self, nframe):
        """And make it again; the other one becomes the default for a while."""
        self.commit()
        remove_set(self.cache, "demo", SPECS[nframe])
        self.committed = {at: made for at, made in self.committed.items() if at[0] != nframe}
        self.writer.add_set(SPECS[nframe], STORAGES[nframe], origin="toy")
        set_default(self.cache, "demo", SPECS[4].digest)

    @rule(nframe=nframes, video=videos)
    def merge(self, nframe, video):
        """From a cache that has one video."""
        self.commit()
        with tempfile.TemporaryDirectory(prefix="featstore-") as other:
            x = {video: self.features(nframe, 3, False)}
            store_videos(other, "demo", x, spec=SPECS[nframe], storage=STORAGES[nframe])
            merge_dataset(other, self.cache, "demo", min_free=0)
        if self.committed.get((nframe, video)) is None:
            self.committed[nframe, video] = (3, False)

    @rule()
    def repair(self):
        self.commit()
        assert repair_dataset(self.cache, "demo").repaired == []

    @precondition(lambda self: self.committed)
    @rule()
    def remove(self):
        self.writer.abort()
        del self.writer
        remove_dataset(self.cache, "demo")
        self.committed, self.pending = {}, {}
        self.make()

    @rule(nframe=nframes, video=videos, keep=st.booleans())
    def get(self, nframe, video, keep):
        dataset = self.store["demo"]
        made = self.committed.get((nframe, video))
        if made is None:
            with pytest.raises(FeatureNotFound):
                dataset.lookup(video, spec=SPECS[nframe])
            return
        features = dataset.lookup(video, nframe=nframe)
        assert features.header.video_id == video
        self.held.append((features, nframe, made))
        self.look_at(features, nframe, made)
        if not keep:
            self.held.pop()

    @rule()
    def let_go(self):
        self.held.clear()

    @rule()
    def check(self):
        report = check_dataset(self.cache, "demo")
        assert report.problems == []
        assert report.videos == sum(made is not None for made in self.committed.values())
        assert report.failures == sum(made is None for made in self.committed.values())
        for held in self.held:
            self.look_at(*held)

    @invariant()
    def lists_what_is_committed(self):
        stored = {at for at, made in self.committed.items() if made is not None}
        failed = set(self.committed) - stored
        dataset = self.store["demo"]
        default = dataset.feature_set.spec.sampling.nframe
        assert set(dataset) == {video for nframe, video in stored if nframe == default}
        for nframe, spec in SPECS.items():
            there = dataset.sets[spec.digest]
            entries = list(there.entries())
            assert {entry.video_id for entry in entries} == {v for n, v in stored if n == nframe}
            assert len(there) == len(entries)
            assert there.counts == Counts(
                len(entries),
                sum(n == nframe for n, _ in failed),
                sum(entry.frames for entry in entries),
                sum(entry.record_bytes for entry in entries),
            )

    def features(self, nframe, seed, flat):
        x = toy_features(seed, frames=nframe if seed % 2 else 1)
        return np.zeros_like(x) if flat else x

    def look_at(self, features, nframe, made):
        assert np.array_equal(
            features.data, expected(self.features(nframe, *made), STORAGES[nframe])
        )

    def teardown(self):
        if hasattr(self, "writer"):
            self.writer.abort()
            self.check()
            del self.writer, self.store
        self.held.clear()
        shutil.rmtree(self.cache)


TestStore = Store.TestCase
TestStore.settings = examples(30, stateful_step_count=30)
