"""The tensors that speak: found, checked and read one by one, straight to the device; of those that see, none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore.encoders.longva.layout import Shape, list_tensors, open_tensors
from featstore.encoders.longva.weights import FLOATS
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from featstore.checkpoints.files import Files

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

    Of embedding and head the first rows are taken, as many as `shapes` has. tied: the head is the embedding.
    """
    places = _places(files, [name for name in shapes if not (tied and name == HEAD)])
    weights: dict[str, torch.Tensor] = {}
    for shard in dict.fromkeys(places.values()):
        path = files.find(shard)
        if path is None:
            raise CheckpointError(f"{files} has no {shard}, which its index names; fetch that file")
        with open_tensors(path) as opened:
            for name in [name for name in places if places[name] == shard]:
                weights[name] = _read(opened, path, name, shapes[name]).to(device, dtype, copy=True)
    if tied:
        weights[HEAD] = weights[EMBEDDING]
    return weights


def _places(files: Files, names: list[str]) -> dict[str, str]:
    """Return name -> safetensors file of each tensor of the language model; refuse too few and too many."""
    listing = list_tensors(files)
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


def _read(opened: Any, path: Path, name: str, shape: Shape) -> torch.Tensor:
    if name not in opened.keys():  # noqa: SIM118, an open safetensors file is no mapping
        raise CheckpointError(
            f"{path} lacks {name!r}, which the index places there; fetch both again"
        )
    header = opened.get_slice(name)
    found = tuple(header.get_shape())
    # The vocabulary is cut to the tokenizer's.
    cut = name in (EMBEDDING, HEAD) and len(found) == 2 and found[0] >= shape[0]
    if found[1:] != shape[1:] or not (cut or found == shape):
        raise CheckpointError(
            f"{path} has {name!r} of shape {found}, its config makes it {shape}; do config and weights belong together?"
        )
    if header.get_dtype() not in FLOATS:
        raise CheckpointError(
            f"{path} has {name!r} as {header.get_dtype()}, expected one of {', '.join(FLOATS)}; "
            "use a checkpoint that is not quantized"
        )
    tensor: torch.Tensor = header[: shape[0]] if cut else opened.get_tensor(name)
    return tensor
