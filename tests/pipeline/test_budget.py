"""An ingest keeps the error budget of its feature set: what misses it is stored losslessly, all the same, or not."""

import math
import shutil

import numpy as np
import pytest
import torch

import featstore
from featstore.decoding.frame_selection import Clip
from featstore.decoding.video_file import Video, fingerprint
from featstore.encoders.toy import ToyEncoder
from featstore.pipeline.ingest import ingest
from featstore.pipeline.on_demand import EncodedVideo, store_features
from featstore.pipeline.options import IngestOptions
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.store.describe import describe_dataset
from featstore.torch import to_tensor

pytestmark = pytest.mark.slow

SIX, TENSOR = Sampling(6), Storage("int8", "tensor")
AGAIN = IngestOptions(replace_storage=True)


class HeavyEncoder(ToyEncoder):
    """Makes features of which the first token is a thousand times larger than the others."""

    def encode(self, frames):
        features = super().encode(frames)
        features[:, 0] *= 1000
        return features


def run(clips, cache, storage=TENSOR, **options):
    options = {"encoder": HeavyEncoder(), "sampling": SIX, "options": IngestOptions(**options)}
    return ingest(clips, cache, "demo", storage=storage, **options)


def stored_as(cache):
    return {name: str(f.header.storage) for name, f in featstore.open(cache)["demo"].items()}


def test_what_misses_the_budget_is_stored_losslessly_and_is_no_work_again(clips, cache):
    run(clips, cache, "lossless")
    exact = {name: f.numpy() for name, f in featstore.open(cache)["demo"].items()}
    assert set(stored_as(cache).values()) <= {"fp32", "fp32 planes"}
    assert featstore.open(cache)["demo"].feature_set.storage == Storage("fp32", codec="planes")
    shutil.rmtree(cache)

    done = run(clips, cache)
    assert (done.stored, done.lossless, done.missed, done.over_budget) == (3, 3, 0, "")
    assert done.lossless_bytes > 0
    facts = done.to_dict()
    assert (facts["max_error"], facts["on_max_error"]) == (0.02, "lossless")
    for name, features in featstore.open(cache)["demo"].items():
        assert features.header.storage.values == "fp32"
        assert features.header.error.token_max == 0
        np.testing.assert_array_equal(features.numpy(), exact[name])
        found = to_tensor(features, dtype=torch.float32)
        np.testing.assert_array_equal(found.numpy(), exact[name])
    (described,) = describe_dataset(cache, "demo")["feature_sets"]
    assert (described["lossless"], described["stored_otherwise"]) == (3, 0)
    assert described["max_error"] == 0.02

    again = run(clips, cache, None)
    assert (again.planned, again.before) == (0, (3, 3))
    assert run(clips, cache, None, max_error=0.5).before == (0, 0), "by another budget"
    assert run(clips, cache, None, max_error=0.02).planned == 0
    assert run(clips, cache, replace_storage=True).planned == 0, "the storage is what it was"
    two = run(clips, cache, Storage("int8", "channel_token"), replace_storage=True)
    assert (two.planned, two.restored, two.lossless) == (3, 3, 0)
    assert set(stored_as(cache).values()) == {"int8/channel_token"}
    back = run(clips, cache, replace_storage=True)
    assert (back.restored, back.lossless) == (3, 3)
    assert run(clips, cache, replace_storage=True).planned == 0, "they were made since"


def test_without_a_budget_all_is_stored_as_asked_for_and_so_is_later_work(clips, cache):
    done = run(clips, cache, max_error=math.inf, limit=1)
    assert (done.lossless, done.missed) == (0, 0)
    assert featstore.open(cache)["demo"].feature_set.max_error is None
    run(clips, cache, None)
    assert set(stored_as(cache).values()) == {"int8/tensor"}


def test_a_budget_changes_for_what_is_made_from_now_on(clips, cache):
    run(clips, cache, max_error=math.inf, limit=1)
    done = run(clips, cache, None, max_error=0.01)
    assert (done.stored, done.lossless) == (2, 2)
    assert featstore.open(cache)["demo"].feature_set.max_error == 0.01
    assert run(clips, cache, None, max_error=0.5).planned == 0
    assert featstore.open(cache)["demo"].feature_set.max_error == 0.5


def test_misses_are_stored_all_the_same_or_fail_if_that_is_asked_for(clips, cache):
    done = run(clips, cache, on_max_error="warn", limit=1)
    assert (done.stored, done.missed, done.lossless) == (1, 1, 0)
    failed = run(clips, cache, on_max_error="fail")
    assert (failed.stored, len(failed.failures)) == (0, 2)
    assert all("the error budget is 2%" in failure.reason for failure in failed.failures)


def test_an_ingest_stops_if_sixteen_of_the_first_miss(clips, cache):
    for i in range(37):
        shutil.copy(clips / "blink.mp4", clips / f"copy{i}.mp4")
    done = run(clips, cache)
    assert "missed the error budget of 2% as int8/tensor" in done.over_budget
    assert 16 <= done.stored == done.lossless < done.planned
    assert not done.failures
    assert run(clips, cache, "lossless", replace_storage=True).over_budget == ""
    assert len(featstore.open(cache)["demo"]) == 40


@pytest.mark.parametrize(("budget", "values"), [(0.02, "fp32"), (None, "int8")])
def test_a_miss_of_a_model_follows_the_budget_of_its_set(clips, cache, budget, values):
    clip = clips / "blink.mp4"
    asked = math.inf if budget is None else budget
    ingest([clip], cache, "demo", encoder=ToyEncoder(), sampling=SIX, storage=TENSOR,
           options=IngestOptions(max_error=asked))  # fmt: skip
    features = featstore.get(cache, "demo", "blink")
    header, spec = features.header, featstore.open(cache)["demo"].feature_set.spec
    x = torch.from_numpy(features.numpy())
    x[::4] *= 1000
    found = Clip(header.total_frames, header.fps, header.frames)
    video = Video("other", str(clip))
    encoded = EncodedVideo(video, found, fingerprint(str(clip)), [x])
    store_features(encoded, cache, "demo", spec, "toy")
    there = featstore.get(cache, "demo", "other")
    assert there.header.storage.values == values
    assert (values == "fp32") == np.array_equal(there.numpy(), x.numpy())
