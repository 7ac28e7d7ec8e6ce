"""Which tensors of a LongVA checkpoint make features: their names, their shapes, and the files that hold them.

A finetuned tower is in the checkpoint itself and takes precedence over the weights of the CLIP model that the config
names, which are those before finetuning and give other features, unless the config says otherwise. Names here are
without LongVA's prefixes: `vision_model.*` for the tower, as CLIP calls it, and `mm_projector.*`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from featstore.checkpoints.digest import DigestedWeights
from featstore.checkpoints.tensors import find_shard, list_tensors
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from featstore.checkpoints.files import Files
    from featstore.checkpoints.tensors import Shape
    from featstore.encoders.longva.checkpoint import Checkpoint, VisionConfig

TOWER = "vision_model."
PROJECTOR = "mm_projector."
PREFIXES = {
    "model.vision_tower.vision_tower.vision_model.": TOWER,
    "model.mm_projector.": PROJECTOR,
}
_LAYER = TOWER + "encoder.layers."
_UNUSED = (
    TOWER + "embeddings.position_ids",  # written by transformers before 4.31
    TOWER + "post_layernorm.weight",  # LongVA takes the hidden state before it
    TOWER + "post_layernorm.bias",
)


class _Place(NamedTuple):
    """Where a tensor is: the checkpoint, its safetensors file, and its name there."""

    files: Files
    shard: str
    key: str


def find_weights(checkpoint: Checkpoint) -> DigestedWeights:
    """Return the tensors that make features; files that hold them are fetched, shapes and dtypes are checked.

    Raises:
        CheckpointError: a tensor is missing, unknown, damaged or not as the config says.
    """
    shapes = needed_shapes(checkpoint.vision)
    weights = DigestedWeights(
        {
            name: (find_shard(files, shard, key), key)
            for name, (files, shard, key) in _find_places(checkpoint, list(shapes)).items()
        }
    )
    weights.check(shapes)
    return weights


def needed_shapes(vision: VisionConfig) -> dict[str, Shape]:
    """Return name -> shape of each tensor that features depend on, and of no other."""
    return _model_shapes(vision, vision.layers)


def _model_shapes(vision: VisionConfig, layers: int) -> dict[str, Shape]:
    """Return name -> shape of each parameter of the model with the first `layers` layers of its tower."""
    from featstore.encoders.longva.modeling import VisionModel  # loads transformers

    with torch.device("meta"):
        state = VisionModel(replace(vision, select_layer=1)).state_dict()
    shapes: dict[str, Shape] = {}
    for name, tensor in state.items():  # one layer is built, for all are alike
        first, is_layer, rest = name.partition(f"{_LAYER}0.")
        names = [f"{_LAYER}{index}.{rest}" for index in range(layers)] if is_layer else [first]
        shapes |= dict.fromkeys(names, tuple(tensor.shape))
    return shapes


def _find_places(checkpoint: Checkpoint, needed: list[str]) -> dict[str, _Place]:
    """Return name -> place of each tensor of `needed`.

    Raises CheckpointError if one is missing, or if an unknown name may be that of a weight left out.
    """
    vision, source = checkpoint.vision, checkpoint.files
    listing = list_tensors(source)
    places = _matching(source, listing, PREFIXES)
    matched = {place.key for place in places.values()}
    _refuse_unknown(
        source,
        [
            name
            for name in listing
            if name not in matched and ("vision_tower" in name or "mm_projector" in name)
        ],
    )
    if checkpoint.named_tower:
        places = {name: place for name, place in places.items() if not name.startswith(TOWER)}
    if not any(name.startswith(TOWER) for name in places):
        source = checkpoint.clip.files
        listing = _list_clip_tensors(checkpoint)
        # A CLIPVisionModel that transformers 5 saved has the tower's own names.
        prefix = "" if "embeddings.class_embedding" in listing else TOWER
        places |= _matching(source, listing, {prefix: TOWER})
    known = {*_model_shapes(vision, vision.tower.num_hidden_layers), *_UNUSED}
    strangers = [place for name, place in places.items() if name not in known]
    if strangers:
        _refuse_unknown(strangers[0].files, [place.key for place in strangers])
    missing = [name for name in needed if name not in places]
    if missing:
        lacking = checkpoint.files if missing[0].startswith(PROJECTOR) else source
        kind = "LongVA checkpoint" if lacking is checkpoint.files else "CLIP model with its weights"
        raise CheckpointError(
            f"{lacking} lacks {len(missing)} of the {len(needed)} tensors that make features, the first is "
            f"{missing[0]!r}; is the download complete, and is this a {kind}?"
        )
    return {name: places[name] for name in needed}


def _list_clip_tensors(checkpoint: Checkpoint) -> dict[str, str]:
    try:
        return list_tensors(checkpoint.clip.files)
    except CheckpointError as exc:
        why = "has delay_load and so uses no" if checkpoint.named_tower else "brings no"
        raise CheckpointError(
            f"{checkpoint.files} {why} vision tower of its own, and that of its CLIP model cannot be used: {exc}"
        ) from exc


def _matching(files: Files, listing: dict[str, str], prefixes: dict[str, str]) -> dict[str, _Place]:
    return {
        ours + key.removeprefix(theirs): _Place(files, shard, key)
        for theirs, ours in prefixes.items()
        for key, shard in listing.items()
        if key.startswith(theirs)
    }


def _refuse_unknown(files: Files, names: list[str]) -> None:
    if names:
        raise CheckpointError(
            f"{files} holds {len(names)} vision tensors of unknown names, the first is {min(names)!r}; expected "
            f"{' and '.join(prefix + '*' for prefix in PREFIXES)} of the layers its config has"
        )
