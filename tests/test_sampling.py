import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import samplings

from featstore.fields import build, to_plain
from featstore.sampling import Sampling


def test_linspace_is_numpys_linspace():
    for n, k in itertools.product([*range(1, 40), 127, 128, 129, 9_001, 216_000], range(1, 140)):
        taken = Sampling(k).indices(n, 25.0)
        assert taken == np.linspace(0, n - 1, k, dtype=int).tolist(), (n, k)


@given(n=st.integers(1, 10**7), k=st.integers(1, 300))
def test_linspace_is_numpys_linspace_for_any_length(n, k):
    assert Sampling(k).indices(n, 25.0) == np.linspace(0, n - 1, k, dtype=int).tolist()


@given(n=st.integers(1, 10**7), k=st.integers(1, 300))
def test_midpoint_takes_the_middle_of_equal_stretches(n, k):
    taken = Sampling(k, "midpoint").indices(n, 25.0)
    assert taken == [math.floor((2 * i + 1) * n / (2 * k)) for i in range(k)]


def test_vlmevalkit_rounds_the_step_once_as_vlmevalkit_does():
    """`int(i * n / (k + 1))` would take frame 15 here; its `save_video_frames` multiplies by the rounded step."""
    assert Sampling(32, "vlmevalkit").indices(45, 25.0)[10] == int(11 * (45 / 33)) == 14


@given(n=st.integers(1, 10**6), k=st.integers(1, 300))
def test_vlmevalkit_leaves_out_both_ends(n, k):
    step = n / (k + 1)
    assert Sampling(k, "vlmevalkit").indices(n, 25.0) == [int(i * step) for i in range(1, k + 1)]


def test_fps_takes_a_frame_every_so_many_seconds():
    assert Sampling(128, "fps", 1.0).indices(100, 25.0) == [0, 25, 50, 75]
    assert Sampling(128, "fps", 2.0).indices(51, 25.0) == [0, 12, 25, 37]
    assert Sampling(128, "fps", 0.5).indices(100, 25.0) == [0, 50]


def test_fps_takes_a_frame_of_a_clip_shorter_than_its_step():
    assert Sampling(128, "fps", 1.0).indices(10, 25.0) == [0]


def test_fps_thins_what_exceeds_nframe_evenly_and_keeps_both_ends():
    everything = Sampling(1_000, "fps", 1.0).indices(25 * 100, 25.0)
    thinned = Sampling(5, "fps", 1.0).indices(25 * 100, 25.0)
    assert len(everything) == 100
    assert thinned == [everything[i] for i in (0, 24, 49, 74, 99)]


@pytest.mark.parametrize("fps", [1e-9, 1e-300])
def test_a_clip_that_states_an_absurd_rate_costs_no_memory(fps):
    """It would be a list of 10**11 indices, if they were all made before they are thinned."""
    assert Sampling(4, "fps", 1.0).indices(100, fps) == [0, 33, 66, 99]


@pytest.mark.parametrize("fps", [0.0, -1.0, math.nan, math.inf, -math.inf, 5e-324])
def test_fps_refuses_a_clip_without_a_rate(fps):
    with pytest.raises(ValueError, match="sampling by time needs a rate"):
        Sampling(4, "fps", 1.0).indices(100, fps)


@pytest.mark.parametrize("total", [0, -1])
def test_an_empty_clip_is_refused(total):
    with pytest.raises(ValueError, match="at least 1 is needed"):
        Sampling(4).indices(total, 25.0)


@given(samplings(), st.integers(1, 10**6), st.floats(0.01, 1000))
def test_indices_ascend_within_the_clip_and_are_at_most_nframe(sampling, n, fps):
    taken = sampling.indices(n, fps)
    assert taken == sorted(taken)
    assert 0 <= taken[0] <= taken[-1] < n
    assert len(taken) == sampling.nframe or (
        sampling.policy == "fps" and len(taken) < sampling.nframe
    )


@given(samplings())
def test_a_rule_parses_back_to_its_sampling(sampling):
    assert Sampling.parse(sampling.rule, sampling.nframe) == sampling
    assert build(Sampling, to_plain(sampling)) == sampling


def test_numpys_integers_are_numbers_of_frames():
    assert type(Sampling(np.int64(4)).nframe) is int


def test_a_rule_is_short_where_it_can_be():
    assert Sampling(8, "fps", 1).rule == "fps:1"
    assert Sampling(8, "fps", 0.5).rule == "fps:0.5"
    assert Sampling(8, "fps", 30000 / 1001).rule == "fps:29.97002997002997"
    assert str(Sampling(8)) == "8 frames, linspace"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0,), "nframe is 0"),
        ((-1,), "nframe is -1"),
        ((65_537,), "nframe is 65537"),
        (("4",), "nframe is '4'; it must be an integer between 1 and 65536"),
        ((1.5,), "nframe is 1.5; it must be an integer"),
        ((4.0,), "nframe is 4.0; it must be an integer"),
        ((True,), "nframe is True; it must be an integer"),
        ((None,), "nframe is None; it must be an integer"),
        ((8, "random"), "sampling policy is 'random'; it must be one of linspace"),
        ((8, "fps"), "fps needs one"),
        ((8, "linspace", 1.0), "a rate belongs to the policy fps"),
        ((8, "fps", 0.0), "the rate is 0.0"),
        ((8, "fps", -1.0), "the rate is -1.0"),
        ((8, "fps", math.nan), "the rate is nan"),
        ((8, "fps", math.inf), "the rate is inf"),
    ],
)
def test_a_rule_that_picks_nothing_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling(*arguments)


@pytest.mark.parametrize("text", ["", "fps", "fps:", "fps:x", "fps:1:2", "linspace:3", "LINSPACE"])
def test_a_rule_that_cannot_be_read_is_named(text):
    with pytest.raises(ValueError, match=r"sampling .* cannot be used"):
        Sampling.parse(text)


def test_qwens_rules_take_the_frames_of_qwen_vl_utils(monkeypatch):
    """Its arithmetic, in torch's own float32; 100,000 pairs were compared once."""
    rng = random.Random(0)
    for _ in range(2_000):
        total, fps = rng.randint(2, rng.choice([500, 200_000])), rng.choice([23.976, 25, 29.97, 60])
        most = rng.choice([64, 128, 768])
        wanted = min(min(max(total / fps * 2.0, 4), min(most, total // 2 * 2)), total)
        count = math.floor(wanted / 2) * 2  # smart_nframes
        theirs = torch.linspace(0, total - 1, count).round().long().tolist()
        assert Sampling(most, "qwen", 2).indices(total, fps) == theirs
        count = min(total // 2 * 2, most)  # nframes=, as VLMEvalKit asks
        theirs = torch.linspace(0, total - 1, count).round().long().tolist()
        assert Sampling(most, "qwen").indices(total, fps) == theirs


def test_llava_onevisions_rule_takes_the_frames_of_vlmevalkit():
    rng = random.Random(0)
    for _ in range(2_000):
        total, fps = rng.randint(1, 20_000), rng.uniform(5, 60)
        theirs = list(range(0, total, round(fps)))
        if len(theirs) > 32:
            theirs = np.linspace(0, total - 1, 32, dtype=int).tolist()
        assert Sampling(32, "llava-ov").indices(total, fps) == theirs


@pytest.mark.parametrize(
    "text", ["qwen", "qwen:fps=2,min=4,max=768", "qwen:fps=0.5,min=4,max=64", "llava-ov"]
)
def test_rules_of_models_are_written_as_they_are_read(text):
    found = Sampling.parse(text)
    assert found.rule == text
    assert Sampling.parse(found.rule, found.nframe) == found


@pytest.mark.parametrize(
    "text", ["qwen:2", "qwen:fps=2,min=8", "qwen:fps=", "qwen:most=3", "llava-ov:1"]
)
def test_rules_of_models_that_are_not_known_are_refused(text):
    with pytest.raises(ValueError, match="cannot be used"):
        Sampling.parse(text)


def test_qwen_takes_pairs_of_frames_and_refuses_a_single_one():
    assert Sampling(128, "qwen").indices(5, 25.0) == [0, 1, 3, 4]
    with pytest.raises(ValueError, match="2 or more"):
        Sampling(128, "qwen").indices(1, 25.0)
    with pytest.raises(ValueError, match="needs a rate"):
        Sampling(128, "qwen", 2).indices(50, 0.0)
