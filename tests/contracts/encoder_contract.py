"""What every encoder must do. An encoder's tests are a subclass that makes one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from featstore.fields import build, to_plain
from featstore.sampling import Sampling
from featstore.spec import EncoderIdentity, FeatureSpec

if TYPE_CHECKING:
    from featstore.encoders.base import Encoder


class EncoderContract:
    """tolerance: largest difference between frames encoded at once and one by one, relative to the largest value."""

    tolerance = 0.0

    @pytest.fixture
    def encoder(self) -> Encoder:
        """Return a new encoder of the kind; equal ones at each call."""
        raise NotImplementedError

    @pytest.fixture
    def frames(self, encoder) -> np.ndarray:
        shape = encoder.identity.preprocessing.frame_shape
        return np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)

    def test_its_identity_is_whole_and_survives_being_stored(self, encoder):
        identity = encoder.identity
        assert build(EncoderIdentity, to_plain(identity)) == identity
        assert len(identity.weights) == 64
        assert int(identity.weights, 16) >= 0

    def test_its_origin_is_not_its_identity(self, encoder):
        spec = FeatureSpec(encoder.identity, Sampling(4), "decord", "int8", "channel")
        encoder.origin = "renamed"
        again = FeatureSpec(encoder.identity, Sampling(4), "decord", "int8", "channel")
        assert again.digest == spec.digest

    def test_other_weights_are_another_feature_set(self, encoder):
        spec = FeatureSpec(encoder.identity, Sampling(4), "decord", "int8", "channel")
        other = replace(spec, encoder=replace(encoder.identity, weights="0" * 64))
        assert other.digest != spec.digest

    def test_features_have_the_shape_of_its_identity(self, encoder, frames):
        identity = encoder.identity
        features = encoder.encode(frames)
        assert tuple(features.shape) == (5, identity.tokens_per_frame, identity.hidden_dim)
        assert (
            str(features.dtype).removeprefix("torch.")
            == {
                "fp32": "float32",
                "fp16": "float16",
                "bf16": "bfloat16",
            }[identity.dtype]
        )

    def test_equal_frames_give_equal_features(self, encoder, frames):
        assert (
            as_array(encoder.encode(frames)).tobytes() == as_array(encoder.encode(frames)).tobytes()
        )

    def test_frames_are_encoded_each_by_itself(self, encoder, frames):
        whole = as_array(encoder.encode(frames))
        single = np.concatenate([as_array(encoder.encode(frames[i : i + 1])) for i in range(5)])
        assert np.abs(whole - single).max() <= self.tolerance * np.abs(whole).max()

    def test_frames_are_left_as_they_are_and_may_be_read_only(self, encoder, frames):
        kept = frames.copy()
        frames.flags.writeable = False
        encoder.encode(frames)
        assert np.array_equal(frames, kept)

    def test_it_says_how_many_frames_it_likes(self, encoder):
        assert encoder.batch_frames >= 1


def as_array(features: object) -> np.ndarray:
    """Features on the host as float32."""
    if isinstance(features, np.ndarray):
        return features.astype(np.float32)
    return features.float().cpu().numpy()  # type: ignore[attr-defined]
