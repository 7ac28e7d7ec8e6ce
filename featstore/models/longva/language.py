"""The language side of a LongVA checkpoint: a Qwen2 with its tokenizer, without the vision tensors.

Four details decide whether the answers are the original's: the vocabulary is cut to the tokenizer's, the rotary
frequencies stay float32 whatever the weights are, `rope_scaling` is ignored, and generation_config.json applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from featstore import defaults
from featstore.checkpoints.config_fields import ConfigFields, read_json
from featstore.checkpoints.unreadable import explain_unreadable
from featstore.encoders.longva.checkpoint import Checkpoint, read_checkpoint
from featstore.errors import CheckpointError, FeatstoreError
from featstore.models.generating.settings import IDS, plain_config, read_stated
from featstore.models.longva.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from featstore.checkpoints.files import Files

_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
_MAX_TOKENIZER_BYTES = 64 << 20  # Qwen2's tokenizer.json has 7 MB, those of larger vocabularies 20
_SIZES = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "max_position_embeddings": 1 << 30,
}
_OTHERS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "max_window_layers",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
)


@dataclass(frozen=True)
class Language:
    """A language model, ready to generate.

    Attributes:
        model: the Qwen2ForCausalLM.
        tokenizer: its tokenizer.
        embed: token ids (n,) -> embeddings (n, D).
        max_length: maximum number of rows of a prompt; None for any number.
        generation: the checkpoint's own settings of generation, fields of transformers' GenerationConfig.
    """

    model: Any  # a Qwen2ForCausalLM, which transformers does not type
    tokenizer: Any
    embed: Callable[[torch.Tensor], torch.Tensor]
    max_length: int | None
    generation: dict[str, Any]


def load_language(
    checkpoint: str | Path | Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    attn_implementation: str = defaults.ATTENTION,
) -> Language:
    """Load the language side of a checkpoint; its tensors go to the device one by one.

    Args:
        checkpoint: a folder, a name on the Hub, or what `read_checkpoint` returned.
        device: the device of the model.
        dtype: its dtype.
        attn_implementation: as transformers takes it, such as `sdpa` or `flash_attention_2`.

    Raises:
        CheckpointError: something is missing, unknown or not as the config says.
        FeatstoreError: the attention implementation is not available.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    files, config = checkpoint.files, checkpoint.config
    tokenizer = _tokenizer(files, config)
    model = _model(config, len(tokenizer), attn_implementation)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = bool(config.get("tie_word_embeddings"))
    with torch.device("cpu"):  # safetensors would read to whatever device is the caller's default
        weights = load_weights(files, shapes, device, dtype, tied=tied)
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()  # if the config asks for it
    rotary = model.model.rotary_emb
    # Built again outside `meta`. Not by .to(dtype): that would round the frequencies too.
    with device:
        model.model.rotary_emb = type(rotary)(config=model.config)
    model.generation_config = plain_config()  # ours is passed with each call
    model.eval().requires_grad_(False)
    limit = config.get("tokenizer_model_max_length")
    return Language(
        model, tokenizer, model.get_input_embeddings(), limit, _generation(files, config)
    )


def check_attention(attn_implementation: str) -> None:
    """Raise FeatstoreError unless the attention implementation is available; no checkpoint is needed.

    Args:
        attn_implementation: as transformers takes it, such as `sdpa` or `flash_attention_2`.
    """
    smallest = Qwen2Config(
        vocab_size=1, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    _build(smallest, attn_implementation)


def _tokenizer(files: Files, config: ConfigFields) -> Any:
    main = _check_tokenizer(files)
    try:
        # By its class: AutoTokenizer asks config.json, whose model_type transformers does not know.
        tokenizer = Qwen2Tokenizer.from_pretrained(  # nosec B615 # nothing is fetched
            main.parent, local_files_only=True
        )
    except Exception as exc:  # a damaged file may raise anything
        raise CheckpointError(
            f"{files}/{main.name} cannot be read as a tokenizer {explain_unreadable(main, exc)}"
        ) from exc
    # As longva/model/builder.py adds them before it cuts the vocabulary.
    if config.values.get("mm_use_im_patch_token", True):
        tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    if config.get("mm_use_im_start_end"):
        tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    return tokenizer


def _check_tokenizer(files: Files) -> Path:
    """Return the file that decides how text is cut; refuse what transformers would misread or explain badly."""
    found = {name: path for name in _TOKENIZER_FILES if (path := files.find(name)) is not None}
    main = "tokenizer.json" if "tokenizer.json" in found else "merges.txt"
    if main not in found or not found.keys() & {"tokenizer.json", "vocab.json"}:
        lacking = "vocab.json" if main in found else "vocab.json with its merges.txt"
        raise CheckpointError(f"{files} has no tokenizer.json and no {lacking}; fetch them again")
    for name in ("tokenizer_config.json", main if main == "tokenizer.json" else "vocab.json"):
        read_json(files, name, _MAX_TOKENIZER_BYTES)
    if not found[main].stat().st_size:  # without merges each byte would be a token
        why = explain_unreadable(found[main], ValueError())
        raise CheckpointError(f"{files}/{main} cannot be read as a tokenizer {why}")
    return found[main]


def _model(config: ConfigFields, vocabulary: int, attn_implementation: str) -> Any:
    """Return the model on `meta`, with as many rows of vocabulary as the tokenizer has tokens."""
    rows = config.integer("vocab_size", 1, 1 << 24)
    if rows < vocabulary:
        raise CheckpointError(
            f"the tokenizer of {config.origin} has {vocabulary} tokens, its embedding {rows} rows; expected no fewer: "
            "do tokenizer and weights belong together?"
        )
    fields: dict[str, Any] = {name: config.integer(name, 1, most) for name, most in _SIZES.items()}
    fields |= {name: config.get(name) for name in _OTHERS if config.get(name) is not None}
    try:
        qwen = Qwen2Config(**fields, vocab_size=vocabulary)
    except Exception as exc:  # transformers has errors of its own for each wrong field
        raise CheckpointError(
            f"{config.origin} is not a Qwen2's ({exc}); use the file as the model's authors published it"
        ) from exc
    try:
        return _build(qwen, attn_implementation)
    except KeyError as exc:
        raise config.wrong("hidden_act", "an activation transformers knows, as 'silu'") from exc


def _build(config: Qwen2Config, attn_implementation: str) -> Any:
    try:
        config._attn_implementation = attn_implementation
        with torch.device("meta"):
            return Qwen2ForCausalLM(config)
    except (ImportError, ValueError) as exc:
        raise FeatstoreError(
            f"attn_implementation {attn_implementation!r} cannot be used here ({exc}); use 'sdpa'"
        ) from exc


def _generation(files: Files, config: ConfigFields) -> dict[str, Any]:
    stated = read_json(files, "generation_config.json")
    ends = {name: config.get(name) for name in IDS}  # what transformers takes from a config
    return read_stated(stated or ConfigFields(ends, config.origin))
