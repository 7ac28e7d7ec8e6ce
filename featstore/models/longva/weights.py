"""The language model's tensors: found, checked and read one by one, straight to the device; no vision tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from featstore.checkpoints.tensors import check_tensor, find_shard, list_tensors, open_tensors
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from featstore.checkpoints.files import Files
    from featstore.checkpoints.tensors import Shape

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What else a LongVA checkpoint holds: the vision side, what the original never puts between frames, and what the
# language model computes by itself.
_ELSEWHERE = (
    "model.vision_tower.",
    "model.mm_projector.",
    "model.vision_resampler.",
    "model.image_newline",
)
_RECOMPUTED = "rotary_emb.inv_freq"


def load_weights(
    files: Files,
    shapes: dict[str, Shape],
    device: torch.device,
    dtype: torch.dtype,
    *,
    tied: bool,
) -> dict[str, torch.Tensor]:
    """Return name -> tensor on `device` in `dtype` for each of `shapes`; none aliases a file.

    Args:
        files: the checkpoint.
        shapes: name -> shape of each parameter of the language model; embedding and head may have more rows on disk,
            of which the first are taken.
        device: the device the tensors go to.
        dtype: the dtype they are converted to.
        tied: the head is the embedding, which a file holds by either name.

    Raises:
        CheckpointError: a tensor is missing, unknown, damaged or of another shape; or `tied`, and a file holds a head
            and an embedding that differ.
    """
    places = _places(files, list(shapes), tied=tied)
    weights: dict[str, torch.Tensor] = {}
    for shard in dict.fromkeys(places.values()):
        names = [name for name in places if places[name] == shard]
        path = find_shard(files, shard, names[0])
        with open_tensors(path) as opened:
            for name in names:
                shape, cut = shapes[name], name in (EMBEDDING, HEAD)  # to the tokenizer's tokens
                check_tensor(opened, path, name, shape, more_rows=cut)
                tensor = opened.get_slice(name)[: shape[0]] if cut else opened.get_tensor(name)
                weights[name] = tensor.to(device, dtype, copy=True)
    if tied:
        one = weights[EMBEDDING if EMBEDDING in weights else HEAD]
        if not torch.equal(weights.get(HEAD, one), one):
            raise CheckpointError(
                f"{files} has tie_word_embeddings = true in config.json, which makes {HEAD!r} and {EMBEDDING!r} one "
                "tensor, and its safetensors hold two that differ; use both as the model's authors published them, or "
                "write tie_word_embeddings = false if the model was trained so"
            )
        weights[EMBEDDING] = weights[HEAD] = one
    return weights


def _places(files: Files, names: list[str], *, tied: bool) -> dict[str, str]:
    """Return name -> safetensors file of each tensor of the language model; refuse too few and too many."""
    listing = list_tensors(files)
    if tied:  # transformers keeps the embedding, safetensors' save_model the head, others both
        spare = next((name for name in (HEAD, EMBEDDING) if name not in listing), None)
        names = [name for name in names if name != spare]
    missing = [name for name in names if name not in listing]
    if missing:
        raise CheckpointError(
            f"{files} lacks {len(missing)} of the language model's {len(names)} tensors, the first is "
            f"{missing[0]!r}; is the download complete?"
        )
    known = {*names, HEAD}
    unknown = [
        name
        for name in listing
        if name not in known and not name.startswith(_ELSEWHERE) and not name.endswith(_RECOMPUTED)
    ]
    if unknown:
        raise CheckpointError(
            f"{files} holds {len(unknown)} tensors of unknown use, the first is {min(unknown)!r}; expected a whole "
            "Qwen2: merge an adapter into its model before it is used here"
        )
    return {name: listing[name] for name in names}
