"""Options of generate that would harm the model are refused, and a failed call leaves it as it was."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor

import featstore
from featstore.checkpoints.config_fields import ConfigFields
from featstore.errors import CheckpointError
from featstore.models import CachedLongVA, CachedVideoModel
from featstore.models.generating.settings import config_fields, read_options, read_stated
from featstore.models.longva.generation import generate
from featstore.models.longva.language import load_language

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def language(tiny):
    return load_language(tiny, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def ask(language):
    embeds = torch.randn(1, 12, 128)

    def answer(**options):
        settings = read_options(language.generation, {"max_new_tokens": 6, **options})
        return generate(language, embeds, settings)

    return answer


@pytest.mark.parametrize(
    ("call", "keyword", "hint"),
    [
        (CachedLongVA, "nframe", "; frames are chosen by sampling=featstore.Sampling"),
        (CachedLongVA, "samplng", "did you mean 'sampling'"),
        (CachedVideoModel, "nframe", "; frames are chosen by sampling=featstore.Sampling"),
        (featstore.ingest, "nframe", "sampling=featstore.Sampling"),
        (featstore.ingest, "min_free", "it takes videos, cache_dir"),
    ],
)
def test_a_keyword_that_is_not_known_is_answered_with_those_that_are(call, keyword, hint):
    with pytest.raises(TypeError, match=rf"takes no '{keyword}'; .*it takes .*") as told:
        call("nowhere", **{keyword: 4})
    assert hint in str(told.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"assistant_early_exit": 1}, "takes layers off the model"),
        ({"is_assistant": True}, "assists no other"),
        ({"use_mtp": True}, "several tokens"),
        ({"guidance_scale": 1.5}, "token ids"),
        ({"token_healing": True}, "token ids"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "from the Hub"),
        ({"dola_layers": "low"}, "from the Hub"),
        ({"num_beams": 4, "num_beam_groups": 2}, "from the Hub"),
        ({"num_beams": 2, "force_words_ids": [[5]]}, "from the Hub"),
        ({"return_dict_in_generate": True}, "its ids"),
        ({"assistant_early_exit": 0}, "takes layers off the model"),
        ({"assistant_early_exit": False}, "takes layers off the model"),
        ({"guidance_scale": 0}, "token ids"),
        ({"guidance_scale": True}, "token ids"),
        ({"is_assistant": 0}, "assists no other"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_and_changes_nothing(ask, language, options, reason):
    if not options.keys() <= config_fields():
        pytest.skip("this transformers does not know it")
    expected = ask()
    with pytest.raises(ValueError, match=f"cannot be used: .*{reason}"):
        ask(**options)
    assert language.model.config.num_hidden_layers == len(language.model.model.layers)
    assert ask() == expected


def test_an_option_that_says_nothing_is_let_pass(ask):
    said = {"assistant_early_exit": None, "token_healing": False, "guidance_scale": 1.0}
    assert ask(**said) == ask()


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ({"return_dict_in_generate": True}, "return_dict_in_generate = True, expected no such"),
        ({"assistant_early_exit": 1}, "assistant_early_exit = 1, .* takes layers off"),
        ({"guidance_scale": 1.5}, "guidance_scale = 1.5, .* token ids"),
        ({"penalty_alpha": 0.6}, "penalty_alpha = 0.6, .*; remove it, or use the file as"),
        ({"dola_layers": "low"}, "dola_layers = 'low', .* from the Hub"),
        ({"constraints": ["x"]}, r"constraints = \['x'\], .* from the Hub"),
        ({"eos_token_id": "x"}, "eos_token_id = 'x', expected a token's id or a list of them"),
        ({"eos_token_id": []}, r"eos_token_id = \[\], expected"),
        ({"eos_token_id": [1, "x"]}, r"eos_token_id = \[1, 'x'\], expected"),
        ({"pad_token_id": [1]}, r"pad_token_id = \[1\], expected a token's id;"),
        ({"early_stopping": "maybe"}, "in a way transformers refuses .*early_stopping"),
        ({"num_return_sequences": 2}, "in a way transformers refuses .*num_return_sequences"),
    ],
)
def test_a_checkpoint_that_states_what_no_answer_can_come_of_is_refused(stated, sentence):
    with pytest.raises(CheckpointError, match=f"checkpoint/generation_config.json .*{sentence}"):
        read_stated(ConfigFields(stated, "checkpoint/generation_config.json"))


def test_a_checkpoint_is_refused_for_them_when_it_is_loaded(altered):
    checkpoint = altered()
    (checkpoint / "generation_config.json").write_text('{"return_dict_in_generate": true}')
    with pytest.raises(CheckpointError, match="has return_dict_in_generate = True"):
        load_language(checkpoint, device=torch.device("cpu"), dtype=torch.float32)


def test_a_checkpoint_may_state_what_asks_for_nothing():
    """Older transformers wrote their defaults."""
    stated = {"num_beam_groups": 1, "diversity_penalty": 0.0, "guidance_scale": 1, "top_k": 20}
    stated |= {"return_dict_in_generate": False, "penalty_alpha": None, "not_known": "x"}
    assert read_stated(ConfigFields(stated, "checkpoint")) == {"top_k": 20}


def test_a_call_that_fails_midway_leaves_the_configs_as_they_were(ask, language):
    class Harms(LogitsProcessor):
        def __call__(self, input_ids, scores):
            language.model.config.num_hidden_layers = 1
            language.model.config.rope_parameters["rope_theta"] = 7.0
            language.model.generation_config.repetition_penalty = 9.0
            raise KeyboardInterrupt

    expected = ask()
    with pytest.raises(KeyboardInterrupt):
        ask(logits_processor=[Harms()])
    assert ask() == expected
    assert language.model.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"cache_implementation": "static"}],
)
def test_other_ways_of_generating_leave_the_greedy_answer_as_it_was(ask, options):
    expected = ask()
    ask(**options)
    assert ask() == expected
