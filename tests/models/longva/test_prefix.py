"""The prefix that questions on one video share: kept, found again, cut back, and never in the way of an answer.

That answers with it and without are the original's is seen in test_original.py: cold runs keep one, warm ones none.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor

from featstore.models import CachedLongVA
from featstore.models.generating.prefix import PrefixCache
from featstore.models.generating.settings import read_options
from featstore.models.longva.generation import CACHE
from featstore.models.longva.language import load_language
from featstore.sampling import Sampling
from featstore.store.maintenance.remove import remove_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")
ASK = "What color is the ball?"


@pytest.fixture(scope="module")
def language(tiny):
    return load_language(tiny, device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def store(tiny, sample_clips, tmp_path_factory):
    """A store that holds the three sample clips, four frames each."""
    folder = tmp_path_factory.mktemp("prefix")
    with open_model(tiny, folder) as model:
        for clip in sample_clips.iterdir():
            model.generate("", clip.stem, path=clip, max_new_tokens=1)
    return folder


@pytest.fixture
def ask(tiny, store):
    """Build models on the store; each is closed when the test ends."""
    models = []

    def build(**options):
        models.append(open_model(tiny, store, on_miss="error", **options))
        return models[-1]

    yield build
    for model in models:
        model.close()


def open_model(checkpoint, folder, **options):
    return CachedLongVA(
        checkpoint, folder, dataset="demo", sampling=Sampling(4), device="cpu", **options
    )


def kept(model):
    return model._answerer.prefixes


def rows(cache):
    return cache.get_seq_length()


class Fails(LogitsProcessor):
    """Gives up after a few tokens, with the cache already longer than the prefix."""

    calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return scores


# Alone


def test_a_prefix_is_made_once_and_cut_back_after_each_use(language):
    prefixes, embeds = PrefixCache(language.model, 1), torch.randn(1, 5, 128)
    made = []

    def make():
        made.append(1)
        return prefixes.prefill(embeds)

    for _ in range(3):
        with prefixes.extended("video", make) as cache:
            assert rows(cache) == 5
            before = cache.layers[1].keys.clone()
            language.model.model(inputs_embeds=torch.randn(1, 4, 128), **{CACHE: cache})
            assert rows(cache) == 9
        assert torch.equal(cache.layers[1].keys, before)
    assert made == [1]


def test_the_least_recently_used_prefix_is_given_up_first(language):
    prefixes, made = PrefixCache(language.model, 2), []
    for key in "abacb":
        with prefixes.extended(key, lambda: prefixes.prefill(torch.randn(1, 2, 128))):
            made.append(key)
    assert len(prefixes) == 2
    assert list(prefixes._kept) == ["c", "b"]


def test_the_old_prefix_is_gone_before_the_new_one_is_made(language):
    prefixes = PrefixCache(language.model, 1)
    for key in "ab":

        def make():
            assert len(prefixes) == 0
            return prefixes.prefill(torch.randn(1, 2, 128))

        with prefixes.extended(key, make):
            pass


def test_after_an_exception_nothing_is_kept(language):
    prefixes = PrefixCache(language.model, 1)
    with (
        pytest.raises(ZeroDivisionError),
        prefixes.extended("video", lambda: prefixes.prefill(torch.randn(1, 2, 128))),
    ):
        raise ZeroDivisionError
    assert len(prefixes) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 64},
    ],
)
def test_other_ways_of_generating_do_without(language, options):
    config = read_options(language.generation, options).config
    assert not PrefixCache(language.model, 1).serves(config)


def test_greedy_and_drawn_answers_begin_from_it_unless_none_is_kept(language):
    for options in ({}, {"do_sample": True}):
        config = read_options(language.generation, options).config
        assert PrefixCache(language.model, 1).serves(config)
        assert not PrefixCache(language.model, 0).serves(config)


def test_a_model_with_a_sliding_window_does_without(altered):
    checkpoint = altered({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1})
    model = load_language(checkpoint, device=CPU, dtype=torch.float32)
    config = read_options(model.generation, {}).config
    assert not PrefixCache(model.model, 1).serves(config)


# In the model


def test_a_second_question_on_a_video_reads_no_features(ask):
    model = ask()
    model.generate(ASK, "color_bars", max_new_tokens=4)
    read = model.statistics.bytes_read
    assert read > 0
    model.generate("And then?", "color_bars", max_new_tokens=4)
    assert model.statistics.bytes_read == read
    assert model.statistics.hits == 2
    model.generate(ASK, "bouncing_ball", max_new_tokens=4)
    assert model.statistics.bytes_read == 2 * read


def test_answers_are_the_same_in_any_order_with_and_without(ask):
    questions = [
        (text, video)
        for text in (ASK, "Why?")
        for video in ("color_bars", "blink", "bouncing_ball")
    ]
    expected = [ask(prefix_cache=0).generate_ids(*q, max_new_tokens=12) for q in questions]
    for size in (1, 2, 3):
        model = ask(prefix_cache=size)
        found = [model.generate_ids(*q, max_new_tokens=12) for q in questions + questions[::-1]]
        assert found == expected + expected[::-1]
        assert len(kept(model)) == size


def test_a_prefix_serves_only_under_the_text_before_its_video(ask):
    questions = [f"{before}<image>\nWhy?" for before in ("", "Nothing of this is true: ")]
    expected = [ask(prefix_cache=0).generate_ids(q, "blink", max_new_tokens=12) for q in questions]
    assert expected[0] != expected[1]
    for size in (1, 2):
        model = ask(prefix_cache=size)
        found = [model.generate_ids(q, "blink", max_new_tokens=12) for q in questions * 2]
        assert found == expected * 2
        assert len(kept(model)) == size


def test_an_answer_that_was_broken_off_leaves_nothing_behind(ask):
    model = ask()
    expected = model.generate_ids(ASK, "blink", max_new_tokens=12)
    with pytest.raises(KeyboardInterrupt):
        model.generate(ASK, "blink", logits_processor=[Fails()])
    assert len(kept(model)) == 0
    assert model.generate_ids(ASK, "blink", max_new_tokens=12) == expected


def test_a_video_stored_anew_does_not_meet_its_old_prefix(tiny, sample_clips, tmp_path):
    with open_model(tiny, tmp_path) as model:
        first = model.generate_ids(ASK, "clip", path=sample_clips / "blink.mp4", max_new_tokens=8)
        remove_dataset(tmp_path, "demo")
        path = sample_clips / "color_bars.mp4"
        second = model.generate_ids(ASK, "clip", path=path, max_new_tokens=8)
        fresh = model.generate_ids(ASK, "another", path=path, max_new_tokens=8)
    assert first != second
    assert second == fresh


def test_beams_and_text_alone_get_an_answer_too(ask):
    model = ask()
    assert model.generate_ids(ASK, "blink", num_beams=2, max_new_tokens=4)
    assert model.generate_ids(ASK, max_new_tokens=4)
    assert len(kept(model)) == 0
