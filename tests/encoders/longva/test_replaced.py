"""Weights that are replaced between hashing and loading: no features are made under the digest of other weights."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import featstore
from featstore.encoders import LongVAEncoder
from featstore.errors import CheckpointError
from featstore.models import CachedLongVA
from featstore.sampling import Sampling

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = "model.safetensors"
PROJECTOR = "model.mm_projector.2.bias"
FRAMES = np.full((1, 336, 336, 3), 90, np.uint8)
ASK = "What color is the ball?"
NEW = {"max_new_tokens": 2}
SAYS = r"were replaced since this encoder hashed them .*put the old files back, or start again"


@pytest.fixture(scope="module")
def other(make_checkpoint, tmp_path_factory):
    """A checkpoint that sees otherwise."""
    return make_checkpoint(tmp_path_factory.mktemp("other") / "other", seed=1)


def rename_over(ours, theirs):
    shutil.copy(theirs, ours.with_suffix(".new"))
    os.replace(ours.with_suffix(".new"), ours)


def write_over(ours, theirs):
    before = ours.stat()
    with ours.open("r+b") as file:  # in place: one inode, one size
        file.write(theirs.read_bytes())
    os.utime(ours, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_short(ours, _):
    content = ours.read_bytes()
    ours.unlink()
    ours.write_bytes(content[:5000])


def take_away(ours, _):
    ours.unlink()


def widen(ours, _):
    tensors = load_file(ours)
    tensors[PROJECTOR] = torch.zeros(256)
    ours.unlink()
    save_file(tensors, ours)


def leave_out(ours, _):
    tensors = load_file(ours)
    del tensors[PROJECTOR]
    ours.unlink()
    save_file(tensors, ours)


@pytest.mark.parametrize(
    "replace", [rename_over, write_over, cut_short, take_away, widen, leave_out]
)
def test_an_encoder_makes_no_features_of_weights_that_it_did_not_hash(altered, other, replace):
    checkpoint = altered()
    encoder = LongVAEncoder(checkpoint, device="cpu")
    kept = checkpoint.parent / "kept"
    shutil.copy(checkpoint / WEIGHTS, kept)
    replace(checkpoint / WEIGHTS, other / WEIGHTS)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=SAYS):
            encoder.encode(FRAMES)
    os.replace(kept, checkpoint / WEIGHTS)
    expected = LongVAEncoder(checkpoint, device="cpu").encode(FRAMES)
    assert encoder.encode(FRAMES).equal(expected)


def test_a_link_that_is_switched_to_another_checkpoint_is_noticed(altered, other):
    checkpoint = altered()
    latest = checkpoint.parent / "latest"
    latest.symlink_to(checkpoint)
    encoder = LongVAEncoder(latest, device="cpu")
    latest.unlink()
    latest.symlink_to(other)
    with pytest.raises(CheckpointError, match=SAYS):
        encoder.encode(FRAMES)


def test_a_shard_that_is_replaced_is_noticed(make_checkpoint, tmp_path):
    ours, theirs = (make_checkpoint(tmp_path / str(n), seed=n, shards=4) for n in (0, 1))
    encoder = LongVAEncoder(ours, device="cpu")
    last = "model-00004-of-00004.safetensors"
    rename_over(ours / last, theirs / last)
    with pytest.raises(CheckpointError, match=SAYS):
        encoder.encode(FRAMES)


def test_files_of_the_same_values_may_take_the_old_ones_place(altered):
    checkpoint = altered()
    encoder = LongVAEncoder(checkpoint, device="cpu")
    tensors = {name: tensor.float() for name, tensor in load_file(checkpoint / WEIGHTS).items()}
    (checkpoint / WEIGHTS).unlink()
    save_file(tensors, checkpoint / WEIGHTS)
    assert encoder.encode(FRAMES).equal(LongVAEncoder(checkpoint, device="cpu").encode(FRAMES))


def test_weights_that_are_loaded_may_be_replaced(altered, other):
    checkpoint = altered()
    encoder = LongVAEncoder(checkpoint, device="cpu")
    before = encoder.encode(FRAMES)
    rename_over(checkpoint / WEIGHTS, other / WEIGHTS)
    assert encoder.encode(FRAMES).equal(before)


@pytest.mark.slow
def test_a_models_miss_stores_nothing_under_the_digest_of_other_weights(
    altered, other, sample_clips, cache
):
    checkpoint = altered()
    options = {"dataset": "demo", "sampling": Sampling(2), "device": "cpu"}
    with CachedLongVA(checkpoint, cache, **options) as asked:
        asked.generate(ASK, "blink", path=sample_clips / "blink.mp4", **NEW)
    with CachedLongVA(checkpoint, cache, **options) as asked:
        write_over(checkpoint / WEIGHTS, other / WEIGHTS)
        with pytest.raises(CheckpointError, match=SAYS):
            asked.generate(ASK, "color_bars", path=sample_clips / "color_bars.mp4", **NEW)
        assert asked.generate_ids(
            ASK, "blink", **NEW
        )  # stored before, by the weights of its digest
    assert list(featstore.open(cache)["demo"]) == ["blink"]


@pytest.mark.slow
def test_an_ingest_stores_nothing_under_the_digest_of_other_weights(
    altered, other, sample_clips, cache
):
    checkpoint = altered()
    encoder = LongVAEncoder(checkpoint, device="cpu")
    rename_over(checkpoint / WEIGHTS, other / WEIGHTS)
    with pytest.raises(CheckpointError, match=SAYS):
        featstore.ingest(sample_clips, cache, "demo", encoder=encoder, sampling=Sampling(2))
    assert not list(featstore.open(cache).get("demo", ()))
