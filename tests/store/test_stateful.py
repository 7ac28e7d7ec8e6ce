"""A store beside a plain dict: whatever is put, committed, dropped, failed and reopened, both hold the same."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from toys import expected, put_video, toy_features, toy_spec

from featstore.errors import FeatureNotFound
from featstore.store.catalog import Failure
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.remove import remove_dataset
from featstore.store.reader import FeatureStore
from featstore.store.writer import FeatureWriter

SPECS = {4: toy_spec(4), 8: toy_spec(8, "bf16")}
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
        for spec in SPECS.values():
            self.writer.add_set(spec, "toy")

    def open(self):
        self.writer = FeatureWriter(self.cache, "demo", min_free=0)
        self.store = FeatureStore(self.cache)

    @rule(nframe=nframes, video=videos, seed=seeds, codec=codecs, flat=st.booleans())
    def put(self, nframe, video, seed, codec, flat):
        x = self.features(nframe, seed, flat)
        put_video(self.writer, SPECS[nframe], video, x, codec=codec)
        self.pending[nframe, video] = (seed, flat)

    @rule(nframe=nframes, video=videos)
    def fail(self, nframe, video):
        if (self.pending | self.committed).get((nframe, video)) is None:
            spec = SPECS[nframe]
            self.writer.fail(spec, Failure(video, "/v", spec.digest, "no frames", 0.0))
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
        dataset = self.store["demo"]
        assert set(dataset) == {video for _, video in stored}
        assert len(dataset) == len({video for _, video in stored})
        for nframe, spec in SPECS.items():
            entries = {entry.video_id for entry in dataset.entries(spec)}
            assert entries == {video for n, video in stored if n == nframe}

    def features(self, nframe, seed, flat):
        x = toy_features(seed, frames=nframe if seed % 2 else 1)
        return np.zeros_like(x) if flat else x

    def look_at(self, features, nframe, made):
        assert np.array_equal(features.data, expected(self.features(nframe, *made), SPECS[nframe]))

    def teardown(self):
        if hasattr(self, "writer"):
            self.writer.abort()
            self.check()
            del self.writer, self.store
        self.held.clear()
        shutil.rmtree(self.cache)


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
