"""What misses an error budget, and how it is stored then."""

import math

import numpy as np
import pytest

from featstore.errors import NotFinite, QuantizeError
from featstore.records.budget import ErrorBudget, too_many
from featstore.records.quantization import QuantError, measure_error, quantize
from featstore.records.storage import Storage, lossless, storage_for

INT8, FP16 = Storage("int8", "channel"), lossless("fp16")
OFF = QuantError(1.0, 0.01, 0.1, token_p99=0.03, token_max=0.5)
OVERFLOW = QuantizeError("2 of 6 values exceed the largest fp16")


def test_a_video_within_the_budget_is_stored_as_asked_for():
    assert ErrorBudget(0.03).choose(INT8, FP16, OFF) == INT8
    assert ErrorBudget(None).choose(INT8, FP16, OFF) == INT8
    assert ErrorBudget(0.02, "warn").choose(INT8, None, OFF) == INT8


def test_a_video_that_misses_it_or_cannot_be_stored_so_is_stored_losslessly():
    assert ErrorBudget(0.02).choose(INT8, FP16, OFF) == FP16
    assert ErrorBudget(0.02).choose(INT8, FP16, OVERFLOW) == FP16


def test_a_video_that_misses_it_fails_if_it_is_to_or_if_it_can_be_stored_in_no_other_way():
    for budget in (ErrorBudget(0.02, "fail"), ErrorBudget(0.02)):
        with pytest.raises(QuantizeError, match=r"3% off or more as int8/channel, .* is 2%"):
            budget.choose(INT8, None, OFF)
    with pytest.raises(QuantizeError, match="2 of 6"):
        ErrorBudget(0.02, "warn").choose(INT8, None, OVERFLOW)


def test_what_is_not_finite_is_stored_in_no_way():
    with pytest.raises(NotFinite):
        ErrorBudget(None).choose(INT8, FP16, NotFinite("1 of 6"))


def test_an_error_that_is_no_number_misses():
    assert ErrorBudget(0.02).misses(QuantError(1.0, 0.0, 0.0, math.nan, math.nan))


def test_the_budget_that_is_asked_for_goes_before_the_one_that_is_followed():
    assert ErrorBudget.of(None, 0.5, "lossless").max_error == 0.5
    assert ErrorBudget.of(None, None, "lossless").max_error is None
    assert ErrorBudget.of(math.inf, 0.5, "lossless").max_error is None
    assert str(ErrorBudget.of(0.015, 0.5, "lossless")) == "1.5%"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((0.02, "skip"), "use one of lossless, warn, fail"),
        ((-0.1,), "share"),
        ((math.nan,), "share"),
    ],
)
def test_what_is_no_budget_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        ErrorBudget(*words)


def test_sixteen_misses_among_the_first_thirty_two_are_too_many():
    budget = ErrorBudget()
    assert not too_many(15, 15, budget, INT8)
    assert not too_many(16, 33, budget, INT8)
    said = too_many(16, 32, budget, INT8)
    assert said.startswith(
        "16 of the first 32 videos missed the error budget of 2% as int8/channel"
    )
    for way in ("--quantize lossless", "--scale channel_token", "--max-error", "--on-max-error"):
        assert way in said
    assert "--scale" not in too_many(16, 16, budget, Storage("int8", "channel_token"))


def test_what_missed_in_earlier_runs_counts():
    budget = ErrorBudget()
    said = too_many(1, 2, budget, INT8, (15, 20))
    assert said.startswith("16 of the first 22 videos missed")
    assert not too_many(1, 2, budget, INT8, (14, 20))
    assert not too_many(2, 2, budget, INT8, (15, 900))  # few of all


def test_lossless_is_the_encoders_own_dtype():
    assert storage_for("lossless", "bf16") == Storage("bf16", codec="planes")
    assert storage_for(INT8, "bf16") == INT8
    assert storage_for(None, "bf16") is None
    with pytest.raises(ValueError, match="storage is 'exact'; pass a"):
        storage_for("exact", "bf16")


def heavy(rng, outlier_tokens):
    """Channels of unequal sizes, a few of them huge, and tokens of which some are a hundred times larger."""
    x = rng.normal(size=(1152, 256)) * np.exp(0.5 * rng.normal(size=256))
    x[:, rng.choice(256, 4, replace=False)] *= 30
    x[rng.choice(1152, 23, replace=False)] *= outlier_tokens
    return x.astype(np.float32)


@pytest.mark.parametrize("outlier_tokens", [12, 100])
def test_the_default_budget_catches_one_scale_on_heavy_tailed_features_and_passes_two(
    outlier_tokens,
):
    x, missed = heavy(np.random.default_rng(3), outlier_tokens), {}
    for granularity in ("tensor", "channel", "channel_token"):
        error = measure_error(x, *quantize(x, Storage("int8", granularity)), "int8")
        missed[granularity] = ErrorBudget().misses(error)
    assert missed == {"tensor": True, "channel": True, "channel_token": False}


def test_sound_features_pass_it_with_any_scale_a_channel():
    x = np.random.default_rng(1).normal(size=(1152, 256)).astype(np.float32)
    for granularity in ("tensor", "channel", "token", "channel_token"):
        error = measure_error(x, *quantize(x, Storage("int8", granularity)), "int8")
        assert not ErrorBudget().misses(error), granularity
