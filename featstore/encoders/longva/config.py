"""Which values of a LongVA checkpoint's config.json are followed: FIELDS is the whole list.

It holds each field that the original reads and that changes a video's features or how they enter the prompt. A value
that is not followed is refused before any weight is read, even if the original would stop by itself, but later: with a
config without a stride it fails at the first video. `null` is a value like any other.

Two more fields concern only images, `image_aspect_ratio` and `image_grid_pinpoints`: `models/longva/images.py` checks
them at the first image. No other field that the original writes or reads changes an answer to one question at a time:
learning rates, `freeze_*`, `tune_mm_vision_resampler`, `use_pos_skipping` and its range (training), `use_mm_proj`,
`vision_tower_pretrained` and `max_sequence_length` (for people), `tokenizer_padding_side` (batches), `s2_scales`
without `s2`, `torch_dtype`, and `rope_scaling`, which it sets to none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from featstore.checkpoints.quantized import quantized_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from featstore.checkpoints.config_fields import ConfigFields

REQUIRED = object()
MAX_PROJECTOR_DEPTH = 16
REMEDY = "set it as the model was trained, or use another checkpoint"


class Field(NamedTuple):
    """A field of config.json.

    Attributes:
        takes: whether a value is followed.
        expected: which values are, for messages.
        default: the original's default, if it has one.
    """

    takes: Callable[[Any], bool]
    expected: str
    default: Any = REQUIRED


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _projector(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    depth = re.fullmatch(r"linear|identity|mlp([1-9]\d?)x_gelu", value, re.ASCII)
    return depth is not None and int(depth[1] or 0) <= MAX_PROJECTOR_DEPTH


_flag = _one_of(True, False, None)

FIELDS = {
    # Which tower's weights are used: see `takes_named_tower`.
    "mm_vision_tower": Field(_text, "a string, the name of a CLIP model"),
    "delay_load": Field(_flag, "true or false", False),
    "unfreeze_mm_vision_tower": Field(_flag, "true or false", False),
    "mm_tunable_parts": Field(lambda x: x is None or isinstance(x, str), "a string", ""),
    "quantization_config": Field(_one_of(None), "none", None),  # see `quantized_config`
    # How features are made of a frame.
    "s2": Field(_one_of(False, None), "none: frames are encoded at one scale", False),
    "mm_vision_select_layer": Field(_integer(-1025, 1024), "an integer"),
    "mm_vision_select_feature": Field(
        _one_of("patch"), "'patch': the class token fits no square that is pooled", "patch"
    ),
    "mm_hidden_size": Field(
        _integer(1, 1 << 20),
        "the tower's hidden_size",
        None,  # the one number it can be
    ),
    "mm_projector_type": Field(
        _projector,
        f"'linear', 'identity' or 'mlp2x_gelu' of at most {MAX_PROJECTOR_DEPTH} linear layers",
        "linear",
    ),
    "hidden_size": Field(_integer(1, 1 << 20), f"an integer from 1 to {1 << 20}"),
    "mm_resampler_type": Field(_one_of(None), "none: nothing comes after the projector", None),
    "mm_spatial_pool_mode": Field(_one_of("average", "max"), "'average' or 'max'"),
    "mm_spatial_pool_stride": Field(_integer(1, 1 << 13), "a number of patches, as 2"),
    # How features enter the prompt.
    "mm_patch_merge_type": Field(
        _one_of("flat", "unires"), "'flat' or 'unires', which put nothing between frames", "flat"
    ),
    "mm_use_im_start_end": Field(_flag, "true or false", False),
    "mm_use_im_patch_token": Field(_flag, "true or false", True),
    "tune_mm_mlp_adapter": Field(_flag, "true or false", False),
    "tokenizer_model_max_length": Field(
        lambda x: x is None or _integer(1, 1 << 30)(x),
        f"null or an integer from 1 to {1 << 30}",
        None,
    ),
}


def read_fields(config: ConfigFields) -> dict[str, Any]:
    """Return name -> value of each of FIELDS.

    Raises:
        CheckpointError: a value is not followed; the message names the first.
    """
    values = {}
    for name, field in FIELDS.items():
        stated = name in config.values
        value = values[name] = config.values[name] if stated else field.default
        if value is REQUIRED or (stated and not field.takes(value)):
            if name == "quantization_config":
                raise quantized_config(config)
            raise config.wrong(name, field.expected, REMEDY)
    if values["mm_use_im_start_end"] and values["tune_mm_mlp_adapter"]:
        raise config.wrong("tune_mm_mlp_adapter", "false if mm_use_im_start_end is true", REMEDY)
    return values


def takes_named_tower(config: ConfigFields, values: dict[str, Any]) -> bool:
    """Return whether the tower is that of the CLIP model the config names, even if the checkpoint has its own.

    With delay_load the original builds no tower to load the checkpoint's tensors into, unless one of two fields says
    that the tower was trained.

    Args:
        config: the checkpoint's config.json.
        values: what `read_fields` returned for it.
    """
    if not values["delay_load"] or values["unfreeze_mm_vision_tower"]:
        return False
    if values["mm_tunable_parts"] is None:
        raise config.wrong("mm_tunable_parts", "a string if delay_load is true", REMEDY)
    return "mm_vision_tower" not in values["mm_tunable_parts"]
