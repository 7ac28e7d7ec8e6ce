"""The language side of a video model: transformers' own class, without the parts that see."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from featstore.checkpoints.config_fields import read_json
from featstore.checkpoints.tensors import check_dtype, find_shard, list_tensors, open_tensors
from featstore.errors import CheckpointError
from featstore.models.generating.settings import IDS, plain_config, read_stated

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from featstore.checkpoints.files import Files
    from featstore.models.transformers_video.families import VideoFamily


@dataclass(frozen=True)
class VideoLanguage:
    """A model that answers from features.

    Attributes:
        model: transformers' model, whose vision side is None.
        tokenizer: its tokenizer.
        generation: the checkpoint's own settings of generation.
    """

    model: Any
    tokenizer: Any
    generation: dict[str, Any]


def load_video_language(
    files: Files, family: VideoFamily, *, device: torch.device, dtype: torch.dtype, attention: str
) -> VideoLanguage:
    """Load all of a checkpoint but the vision tower's layers.

    Args:
        files: the checkpoint.
        family: the kind of model.
        device: where the model computes.
        dtype: what it computes in.
        attention: transformers' name of the attention.

    Raises:
        CheckpointError: tensors are missing or of another shape, or transformers cannot read the checkpoint.
    """
    auto: Any = AutoModelForImageTextToText
    listing = list_tensors(files)  # refuses pickles and quantized weights
    _check_dtypes(files, listing)
    name = str(files)
    try:
        config: Any = AutoConfig.from_pretrained(name)  # nosec B615 # what the user names
        setattr(config.vision_config, family.depth, 0)
        with _quiet():
            model, info = auto.from_pretrained(  # nosec B615 # what the user names
                name,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                output_loading_info=True,
            )
        tokenizer: Any = AutoTokenizer.from_pretrained(name)  # nosec B615 # what the user names
    except Exception as exc:  # transformers' own, of no common class
        raise CheckpointError(f"transformers cannot load {files} ({exc!s:.300})") from exc
    missing = sorted(key for key in info["missing_keys"] if not _sees(key, family))
    if missing:
        raise CheckpointError(
            f"{files} lacks {len(missing)} of the language model's tensors among its {len(listing)}, the first is "
            f"{missing[0]!r}; is the download complete?"
        )
    model.generation_config = plain_config()  # ours is passed with each call
    for part in family.sees:
        setattr(model.model, part, None)
    return VideoLanguage(
        model.to(device).eval().requires_grad_(False), tokenizer, _stated(files, config)
    )


def _check_dtypes(files: Files, listing: dict[str, str]) -> None:
    """Refuse weights that are no floats: transformers would convert the numbers, without the scales they need."""
    for shard in sorted(set(listing.values())):
        path = find_shard(files, shard, shard)
        with open_tensors(path) as opened:
            for name in opened.keys():  # noqa: SIM118, an open safetensors file is not a mapping
                if not name.endswith("position_ids"):  # which old checkpoints have as integers
                    check_dtype(opened, path, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers not list the tower's tensors, which are left out on purpose; what is missing is checked here."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _sees(key: str, family: VideoFamily) -> bool:
    return any(part in key.split(".") for part in family.sees)


def _stated(files: Files, config: Any) -> dict[str, Any]:
    stated = read_json(files, "generation_config.json")
    values = {} if stated is None else read_stated(stated)
    for name in IDS:
        value = getattr(config.get_text_config(), name, None)
        if value is not None:
            values.setdefault(name, value)
    return values
