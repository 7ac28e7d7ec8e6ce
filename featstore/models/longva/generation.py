"""Generating: what is kept of the checkpoint's habits, what the caller changes, and the call itself."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, Qwen2Model

from featstore.defaults import MAX_NEW_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from featstore.models.longva.language import Language

# What a model's forward calls its keys and values: `cache` from transformers 5.24 on.
CACHE = (
    "cache" if "cache" in inspect.signature(Qwen2Model.forward).parameters else "past_key_values"
)
# Options that only mean something when tokens are drawn; transformers warns of them beside do_sample=False.
_DRAWING = {
    "temperature",
    "top_k",
    "top_p",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
}
# Arguments of transformers' generate that are no part of its config and of use here.
_HOOKS = {"logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer"}
_FROM_THE_HUB = "transformers fetches code from the Hub for it, and no code is fetched here"
_FROM_IDS = "it works on a prompt's token ids, and a video has none"
# Options that would change the model for all questions that follow, or end in an error that says nothing.
_REFUSED = {
    "assistant_early_exit": "it takes layers off the model, for later questions too",
    "is_assistant": "the model answers, and assists no other",
    "use_mtp": "LongVA has no layers that predict several tokens",
    "guidance_scale": _FROM_IDS,
    "token_healing": _FROM_IDS,
    "constraints": _FROM_THE_HUB,
    "diversity_penalty": _FROM_THE_HUB,
    "dola_layers": _FROM_THE_HUB,
    "force_words_ids": _FROM_THE_HUB,
    "num_beam_groups": _FROM_THE_HUB,
    "penalty_alpha": _FROM_THE_HUB,
    "return_dict_in_generate": "an answer is its text or its ids alone",
}
# What these say of a prompt given as embeddings is how the original does it, too.
_EXPECTED = re.compile(
    "Passing `(repetition_penalty|no_repeat_ngram_size)` with `inputs_embeds`", re.IGNORECASE
)


@dataclass(frozen=True)
class Manner:
    """How to generate: transformers' config, and objects that take part in it."""

    config: GenerationConfig
    hooks: dict[str, Any]


def read_options(stated: Mapping[str, Any], options: Mapping[str, Any]) -> Manner:
    """Return how to generate: as the checkpoint has `stated`, but greedily, with `options` on top of both.

    Without do_sample=True the temperature and its like are left out, whoever named them. Raises TypeError for options
    transformers does not know, ValueError for those that cannot be used here.
    """
    unknown = sorted(options.keys() - config_fields() - _HOOKS)
    if unknown:
        raise TypeError(
            f"{unknown[0]!r} is no option of generate; it takes those of transformers' GenerationConfig, "
            f"{', '.join(sorted(_HOOKS))}"
        )
    for name in sorted(options.keys() & _REFUSED.keys()):
        if options[name] not in (None, False):
            raise ValueError(
                f"{name}={options[name]!r} cannot be used: {_REFUSED[name]}; leave it out"
            )
    values = {**stated, "do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, **options}
    hooks = {name: values.pop(name) for name in _HOOKS & values.keys()}
    if not values["do_sample"]:
        values = {name: value for name, value in values.items() if name not in _DRAWING}
    if values["max_new_tokens"] is not None:
        values.pop("max_length", None)
    if values.get("pad_token_id") is None:
        ends = values.get("eos_token_id")
        values["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
    return Manner(GenerationConfig(**values), hooks)  # type: ignore[no-untyped-call]


def config_fields() -> set[str]:
    """Return the names of the fields of transformers' GenerationConfig."""
    return {name for name in vars(plain_config()) if not name.startswith("_")}


def plain_config() -> GenerationConfig:
    """Return transformers' defaults."""
    config: GenerationConfig = GenerationConfig()  # type: ignore[no-untyped-call]
    return config


def generate(
    language: Language, embeds: torch.Tensor, manner: Manner, cache: Any = None
) -> list[int]:
    """Return the ids that follow the prompt `embeds` (1, L, D), without those of the prompt.

    cache: keys and values of the prompt's first rows, not computed again; it grows by the rest and the answer.
    """
    hooks = dict(manner.hooks)
    if cache is not None:
        hooks[CACHE] = cache
    if manner.config.stop_strings is not None:
        hooks["tokenizer"] = language.tokenizer
    _pass_over_what_is_expected()
    with torch.inference_mode(), _as_it_was(language.model):
        found = language.model.generate(
            inputs_embeds=embeds, generation_config=manner.config, **hooks
        )
    ids: list[int] = found[0].tolist()
    return ids


@contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Put the configs of `model` back as they were, whatever ends the block: all later answers hang on them."""
    held = [vars(config) for config in (model.config, model.generation_config)]
    before = copy.deepcopy(held)
    try:
        yield
    finally:
        for now, then in zip(held, before, strict=True):
            if now != then:
                now.clear()
                now.update(then)


def _pass_over_what_is_expected() -> None:
    # For good, and not with catch_warnings: that puts back the whole process's filters as they were when it began, be
    # other threads at work or not.
    if not any(found[1] == _EXPECTED for found in warnings.filters):
        warnings.filterwarnings("ignore", message=_EXPECTED.pattern)
