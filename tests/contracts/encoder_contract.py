"""What every encoder must do. An encoder's tests are a subclass that makes one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from featstore.fields import build, to_plain
from featstore.geometry import Geometry
from featstore.preprocessing import prepare_frame
from featstore.sampling import Sampling
from featstore.spec import EncoderIdentity, FeatureSpec

if TYPE_CHECKING:
    from featstore.encoders.base import Encoder

UNITS = 3
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class EncoderContract:
    """tolerance: largest difference between units encoded at once and one by one, relative to the largest value."""

    tolerance = 0.0

    @pytest.fixture
    def encoder(self) -> Encoder:
        """Return a new encoder of the kind; equal ones at each call."""
        raise NotImplementedError

    @pytest.fixture
    def frames(self, encoder) -> np.ndarray:
        """Frames of a few units, prepared."""
        count = encoder.identity.geometry.frames_per_unit
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, 256, (UNITS * count, 360, 480, 3), dtype=np.uint8)
        prepared = np.stack([prepare_frame(frame, encoder.preprocessing) for frame in drawn])
        return prepared if count == 1 else prepared.reshape(UNITS, count, *prepared.shape[1:])

    def test_its_identity_is_whole_and_survives_being_stored(self, encoder):
        identity = encoder.identity
        assert build(EncoderIdentity, to_plain(identity)) == identity
        assert len(identity.weights) == 64
        assert int(identity.weights, 16) >= 0
        spec = spec_of(encoder)
        assert FeatureSpec.from_dict(spec.to_dict()).digest == spec.digest

    def test_what_it_is_called_is_not_its_identity(self, encoder):
        spec = spec_of(encoder)
        encoder.origin, encoder.names = "renamed", {"part": "renamed"}
        assert spec_of(encoder).digest == spec.digest

    def test_its_names_are_texts(self, encoder):
        assert all(isinstance(text, str) for pair in encoder.names.items() for text in pair)

    def test_whatever_else_determines_features_makes_another_feature_set(self, encoder):
        spec, identity = spec_of(encoder), encoder.identity
        others = [
            replace(identity, weights="0" * 64),
            replace(identity, family="other"),
            replace(identity, dtype="fp16" if identity.dtype != "fp16" else "bf16"),
            replace(identity, settings={**identity.settings, "unknown to it": True}),
            *(
                replace(identity, settings={**identity.settings, name: "other"})
                for name in identity.settings
            ),
            *(
                replace(identity, geometry=geometry)
                for geometry in other_geometries(identity.geometry)
            ),
        ]
        digests = [replace(spec, encoder=other).digest for other in others]
        pre = replace(encoder.preprocessing, resample=5)
        digests += [spec.digest, replace(spec, preprocessing=pre).digest]
        assert len(set(digests)) == len(digests)

    def test_features_have_the_shape_of_its_identity(self, encoder, frames):
        geometry, features = encoder.identity.geometry, encoder.encode(frames)
        tokens = geometry.tokens_per_unit
        if geometry.by_video:
            height, width = encoder.grid(*frames.shape[-3:-1])
            assert 1 <= height * width <= tokens
            tokens = height * width
        assert tuple(features.shape) == (UNITS, tokens, geometry.row_width)
        assert dtype_of(features) == DTYPES[encoder.identity.dtype]

    def test_its_extra_rows_are_as_many_as_its_identity_says(self, encoder, frames):
        geometry = encoder.identity.geometry
        if geometry.extra_rows:
            extra = encoder.extra_rows()
            assert tuple(extra.shape) == (geometry.extra_rows, geometry.row_width)
            assert dtype_of(extra) == dtype_of(encoder.encode(frames))
            assert as_array(extra).tobytes() == as_array(encoder.extra_rows()).tobytes()

    def test_equal_frames_give_equal_features(self, encoder, frames):
        assert (
            as_array(encoder.encode(frames)).tobytes() == as_array(encoder.encode(frames)).tobytes()
        )

    def test_units_are_encoded_each_by_itself(self, encoder, frames):
        whole = as_array(encoder.encode(frames))
        single = np.concatenate([as_array(encoder.encode(frames[i : i + 1])) for i in range(UNITS)])
        assert np.abs(whole - single).max() <= self.tolerance * np.abs(whole).max()

    def test_frames_are_left_as_they_are_and_may_be_read_only(self, encoder, frames):
        kept = frames.copy()
        frames.flags.writeable = False
        encoder.encode(frames)
        assert np.array_equal(frames, kept)

    def test_it_says_how_many_frames_it_likes(self, encoder):
        assert encoder.batch_frames >= 1


def spec_of(encoder: Encoder) -> FeatureSpec:
    return FeatureSpec(encoder.identity, Sampling(4), "decord", encoder.preprocessing)


def other_geometries(geometry: Geometry) -> list[Geometry]:
    """Geometries that differ in one number, or in what is a grid."""
    numbers = {**vars(geometry), "grid": None, "by_video": False}
    plain = Geometry(**numbers)
    changes = [
        {"frames_per_unit": geometry.frames_per_unit + 1},
        {"grid": (1, geometry.tokens_per_unit)},
        {"by_video": True},
    ]
    changes += [
        {name: numbers[name] + 1}
        for name in ("tokens_per_unit", "hidden_dim", "extra_rows", "planes")
    ]
    found = [plain, *(replace(plain, **change) for change in changes)]
    assert set(numbers) == {field.name for field in fields(Geometry)}
    return [other for other in found if other != geometry]


def dtype_of(features: object) -> str:
    return str(features.dtype).removeprefix("torch.")  # type: ignore[attr-defined]


def as_array(features: object) -> np.ndarray:
    """Features on the host as float32."""
    if isinstance(features, np.ndarray):
        return features.astype(np.float32)
    return features.float().cpu().numpy()  # type: ignore[attr-defined]
