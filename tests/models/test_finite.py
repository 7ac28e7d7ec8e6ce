"""Features that do not fit a model: the words name whose they are, and which dtype holds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import store_videos, toy_features, toy_spec

from featstore.encoders.toy import ToyEncoder
from featstore.errors import NotFinite
from featstore.models.finite import fits, refuse_not_finite, refuse_too_large
from featstore.models.lookup import FeatureRequest
from featstore.models.source import FeatureSource
from featstore.models.source_options import SourceOptions
from featstore.models.statistics import CacheStatistics
from featstore.records.storage import Storage

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


def test_a_dtype_fits_what_has_no_larger_numbers():
    kinds = {"fp16": HALF, "bf16": BRAIN, "fp32": SINGLE}
    fitting = {(a, b) for a in kinds for b, dtype in kinds.items() if fits(a, dtype)}
    assert fitting == {(a, a) for a in kinds} | {
        ("fp16", "bf16"),
        ("fp16", "fp32"),
        ("bf16", "fp32"),
    }


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (1e5, HALF, r"1 of 128 values do not fit fp16, whose .* 65504; load the model in bf16 or"),
        (3.4e38, BRAIN, r"do not fit bf16, whose .* 3\.38953e\+38; load the model in fp32: dtype="),
        (1e5, BRAIN, None),
        (3.4e38, SINGLE, None),
    ],
)
def test_stored_features_beyond_a_model_s_dtype_are_refused(cache, value, dtype, words):
    x, spec = toy_features(1, frames=4), toy_spec()
    x[3, 3] = value
    store_videos(cache, "demo", {"a": np.float32(x)}, spec=spec, storage=Storage("fp32"))
    source = FeatureSource(
        ToyEncoder(),
        SourceOptions(cache, "error"),
        device=torch.device("cpu"),
        dtype=dtype,
        statistics=CacheStatistics(),
    )
    visual = source.get(FeatureRequest("demo", "a", None, spec))
    if words is None:
        assert torch.isfinite(visual.load()).all()
    else:
        with pytest.raises(NotFinite, match=f"^the stored features of video 'a': .*{words}"):
            visual.load()
    source.close()


def test_what_was_given_is_not_said_to_be_computed():
    features = torch.zeros(4, 8)
    refuse_not_finite(features, "these")
    features[0] = torch.nan
    with pytest.raises(NotFinite) as refused:
        refuse_not_finite(features, "these")
    assert str(refused.value) == (
        "these: 8 of 32 values are NaN or infinite, all must be finite; give those that an encoder made"
    )
    huge = torch.full((4, 8), 1e300, dtype=torch.float64).float()
    with pytest.raises(NotFinite, match=r"32 of 32 values do not fit fp32, whose .* 3\.4\d*e\+38$"):
        refuse_too_large(huge, "these")
