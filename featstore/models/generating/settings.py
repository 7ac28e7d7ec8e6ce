"""How to generate: the checkpoint's settings, and what the caller changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from featstore.checkpoints.config_fields import AS_PUBLISHED
from featstore.defaults import MAX_NEW_TOKENS
from featstore.errors import CheckpointError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featstore.checkpoints.config_fields import ConfigFields

# Options that only mean something when tokens are sampled; transformers warns of them beside do_sample=False.
_SAMPLING = {
    "temperature",
    "top_k",
    "top_p",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
}
# Arguments of transformers' generate that are not part of its config and useful here.
_HOOKS = {"logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer"}
_OF_THE_QUESTION = {"dataset", "path", "nframe", "video", "images", "sampling", "system"}
# Fields that are ids of tokens; the end may be several.
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_FROM_THE_HUB = "transformers fetches code from the Hub for it, and no code is fetched here"
_FROM_IDS = "it works on a prompt's token ids, and a video has none"
# Options that would change the model for all questions that follow, or end in an error that explains nothing. Neither a
# caller nor a checkpoint may state them: name -> (the value that asks for nothing besides None, why no other can be).
_REFUSED: dict[str, tuple[Any, str]] = {
    "assistant_early_exit": (None, "it takes layers off the model, for later questions too"),
    "is_assistant": (False, "the model answers, and assists no other"),
    "use_mtp": (False, "it needs layers that predict several tokens, which are not loaded"),
    "guidance_scale": (1, _FROM_IDS),
    "token_healing": (False, _FROM_IDS),
    "constraints": (None, _FROM_THE_HUB),
    "diversity_penalty": (0, _FROM_THE_HUB),
    "dola_layers": (None, _FROM_THE_HUB),
    "force_words_ids": (None, _FROM_THE_HUB),
    "num_beam_groups": (1, _FROM_THE_HUB),
    "penalty_alpha": (None, _FROM_THE_HUB),
    "return_dict_in_generate": (False, "an answer is only its text or its ids"),
}


@dataclass(frozen=True)
class GenerationSettings:
    """How to generate.

    Attributes:
        config: transformers' config.
        hooks: objects that take part in generating, by the name of their argument.
    """

    config: GenerationConfig
    hooks: dict[str, Any]


def read_stated(stated: ConfigFields) -> dict[str, Any]:
    """Return a checkpoint's settings, those that transformers knows.

    Raises:
        CheckpointError: no question could be answered with them.
    """
    known = config_fields()
    values = {k: value for k, value in stated.values.items() if k in known and value is not None}
    for name in sorted(values.keys() & _REFUSED.keys()):
        if _asks(name, values.pop(name)):
            raise stated.wrong(
                name, f"no such field, because {_REFUSED[name][1]}", f"remove it, or {AS_PUBLISHED}"
            )
    for name in IDS:
        ids = values.get(name, 0)
        several = name == "eos_token_id" and isinstance(ids, list) and ids
        if any(type(token) is not int for token in (several or [ids])):
            raise stated.wrong(
                name, "a token's id" + " or a list of them" * (name == "eos_token_id")
            )
    try:
        read_options(values, {})
    except Exception as exc:  # transformers has errors of its own for each wrong field
        raise CheckpointError(
            f"{stated.origin} states how to generate in a way transformers refuses ({exc}); {AS_PUBLISHED}"
        ) from exc
    return values


def read_options(stated: Mapping[str, Any], options: Mapping[str, Any]) -> GenerationSettings:
    """Return the settings of one answer: greedy unless an option says otherwise.

    Without do_sample=True, options of sampling such as the temperature are left out, whether they come from the
    checkpoint or the caller.

    Args:
        stated: the checkpoint's settings, as `read_stated` returns them.
        options: the caller's, which take precedence.

    Raises:
        TypeError: transformers does not know an option.
        ValueError: an option cannot be used here.
    """
    unknown = sorted(options.keys() - config_fields() - _HOOKS)
    if unknown:
        near = did_you_mean(unknown[0], {*config_fields(), *_HOOKS, *_OF_THE_QUESTION})
        raise TypeError(
            f"{unknown[0]!r} is not an option of generate; {near}it takes those of transformers' GenerationConfig, "
            f"{', '.join(sorted(_HOOKS))}"
        )
    for name in sorted(options.keys() & _REFUSED.keys()):
        if _asks(name, options[name]):
            raise ValueError(
                f"{name}={options[name]!r} cannot be used: {_REFUSED[name][1]}; leave it out"
            )
    values = {**stated, "do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, **options}
    values = {name: value for name, value in values.items() if name not in _REFUSED}
    hooks = {name: values.pop(name) for name in _HOOKS & values.keys()}
    if not values["do_sample"]:
        values = {name: value for name, value in values.items() if name not in _SAMPLING}
    if values["max_new_tokens"] is not None:
        values.pop("max_length", None)
    if values.get("pad_token_id") is None:
        ends = values.get("eos_token_id")
        values["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
    return GenerationSettings(GenerationConfig(**values), hooks)  # type: ignore[no-untyped-call]


def config_fields() -> set[str]:
    """Return the names of the fields of transformers' GenerationConfig."""
    return {name for name in vars(plain_config()) if not name.startswith("_")}


def plain_config() -> GenerationConfig:
    """Return transformers' defaults."""
    config: GenerationConfig = GenerationConfig()  # type: ignore[no-untyped-call]
    return config


def _asks(name: str, value: Any) -> bool:
    """Return whether an option of `_REFUSED` asks for anything; False and 0 are no more equal than True and 1."""
    nothing = _REFUSED[name][0]
    same_kind = isinstance(value, bool) == isinstance(nothing, bool)
    return value is not None and not (same_kind and value == nothing)
