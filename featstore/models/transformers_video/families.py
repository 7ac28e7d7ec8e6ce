"""Which models of transformers are known here: whose vision side an encoder computes; why all others are refused."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from featstore import defaults
from featstore.errors import FeatstoreError, MissingExtra
from featstore.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable

_BY_TIME = Sampling(defaults.NFRAME, "qwen", 2)
OLDEST = (5, 18)  # from it on models take `mm_encoder_outputs`


@dataclass(frozen=True)
class VideoFamily:
    """A kind of model.

    Attributes:
        encoder: the name of its encoder in featstore.encoders.
        sees: the parts of the model that make a video's features, and are not loaded.
        depth: the field of its vision config that counts the tower's layers.
        outputs: (rows, row_width) features and a plane's width -> what the model takes for a video.
        sampling: which frames it is given unless the user says so.
    """

    encoder: str
    sees: tuple[str, ...]
    depth: str
    outputs: Callable[[torch.Tensor, int], Any]
    sampling: Sampling


def _one(features: torch.Tensor, width: int) -> Any:
    one: Any = (features,)  # a tensor a video, which transformers does not type so
    return BaseModelOutputWithPooling(pooler_output=one)


def _whole(features: torch.Tensor, width: int) -> Any:
    return BaseModelOutputWithPooling(pooler_output=features[None])


def _levels(features: torch.Tensor, width: int) -> Any:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    planes: Any = [(plane.contiguous(),) for plane in torch.split(features, width, dim=-1)]
    return BaseModelOutputWithDeepstackFeatures(
        pooler_output=planes[0], deepstack_features=planes[1:]
    )


FAMILIES = {
    "llava_onevision": VideoFamily(
        "llava_onevision",
        ("vision_tower", "multi_modal_projector", "image_newline"),
        "num_hidden_layers",
        _whole,
        Sampling(32, "llava-ov"),
    ),
    "qwen2_5_vl": VideoFamily("qwen_vl", ("visual",), "depth", _one, _BY_TIME),
    "qwen3_vl": VideoFamily("qwen_vl", ("visual",), "depth", _levels, _BY_TIME),
}


def find_family(model_type: str) -> VideoFamily:
    """Return the family of a model type.

    Raises:
        MissingExtra: transformers is too old for any.
        FeatstoreError: the model is not known; the message says why.
    """
    check_version(transformers.__version__)
    if model_type not in FAMILIES:
        raise FeatstoreError(
            f"model_type {model_type!r} cannot be answered from stored features: {why_not(model_type)}",
            remedy=f"use a model of the types {', '.join(FAMILIES)}, or LongVA with CachedLongVA",
        )
    return FAMILIES[model_type]


def check_version(version: str) -> None:
    """Raise MissingExtra if transformers is of a version in which no model takes features."""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MissingExtra(
            f"transformers {version} takes no stored features; {oldest} or newer does: "
            f"pip install 'transformers>={oldest}'"
        )


def why_not(model_type: str) -> str:
    """Return why a model type that is in no family cannot be answered from stored features."""
    name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type)
    name = name[0] if isinstance(name, tuple | list) else name
    cls = getattr(transformers, name, None) if name else None
    if cls is None:
        return f"transformers {transformers.__version__} has no model that answers about images under that name"
    if "mm_encoder_outputs" not in inspect.signature(cls.forward).parameters:
        return f"{name} takes no features in place of pixels"
    if not hasattr(cls, "get_video_features"):
        return f"{name} makes features of images, not of videos"
    return f"featstore has no encoder of {name}'s vision side"
