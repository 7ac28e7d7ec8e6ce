"""Options of generate that would harm the model are refused, and a failed call leaves it as it was."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor

from featstore.models.longva.generation import config_fields, generate, read_options
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
    assert ask(assistant_early_exit=None, token_healing=False) == ask()


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
