"""Which tensors of a LongVA checkpoint see: their names, their shapes, and the files they lie in.

A finetuned tower lies in the checkpoint itself and wins over the weights of the CLIP model that the config names, which
are those before finetuning and give other features, unless the config says otherwise. Names here are without LongVA's
prefixes: `vision_model.*` for the tower, as CLIP calls it, and `mm_projector.*`.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from featstore.checkpoints.files import Files, LocalFiles, read_json
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from featstore.encoders.longva.checkpoint import Checkpoint, VisionConfig

TOWER = "vision_model."
PROJECTOR = "mm_projector."
PREFIXES = {
    "model.vision_tower.vision_tower.vision_model.": TOWER,
    "model.mm_projector.": PROJECTOR,
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Shape = tuple[int, ...]


class Place(NamedTuple):
    """Where a tensor lies: the folder, its safetensors file, and its name there."""

    files: Files
    shard: str
    key: str


def needed_shapes(vision: VisionConfig) -> dict[str, Shape]:
    """Return name -> shape of each tensor that features depend on, and of no other."""
    return _tower_shapes(vision, vision.layers) | _projector_shapes(vision)


def find_places(checkpoint: Checkpoint) -> dict[str, Place]:
    """Return name -> place of each tensor of `needed_shapes`.

    Raises CheckpointError where one is missing, and where an unknown name may be that of a weight left out.
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
        places |= _matching(source, _list_clip_tensors(checkpoint), {TOWER: TOWER})
    known = _tower_shapes(vision, vision.tower.num_hidden_layers) | _projector_shapes(vision)
    known |= dict.fromkeys(_UNUSED, ())
    strangers = [place for name, place in places.items() if name not in known]
    if strangers:
        _refuse_unknown(strangers[0].files, [place.key for place in strangers])
    needed = needed_shapes(vision)
    missing = [name for name in needed if name not in places]
    if missing:
        where = checkpoint.files if missing[0].startswith(PROJECTOR) else source
        raise CheckpointError(
            f"{where} lacks {len(missing)} of the {len(needed)} tensors that see, the first is {missing[0]!r}; "
            "is the download complete, and is this LongVA's checkpoint?"
        )
    return {name: places[name] for name in needed}


def list_tensors(files: Files) -> dict[str, str]:
    """Return name -> safetensors file of every tensor, from the one file's header or the index of several."""
    single = files.find(SINGLE)
    if single:
        with open_tensors(single, framework="np") as tensors:
            return dict.fromkeys(tensors.keys(), SINGLE)
    index = read_json(files, INDEX)
    if index is None:
        raise _no_safetensors(files)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise index.wrong("weight_map", "an object of tensor names and their files")
    for shard in weight_map.values():
        if not _is_plain(shard):
            raise CheckpointError(
                f"{index.origin} names the file {shard!r}, expected a plain name such as "
                "'model-00001-of-00004.safetensors'; fetch the index again"
            )
    return weight_map


@contextmanager
def open_tensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """Give the open safetensors file; its damage becomes CheckpointError."""
    try:
        with safe_open(path, framework=framework) as tensors:
            yield tensors
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({exc}); fetch it again"
        ) from exc


_UNUSED = (
    TOWER + "embeddings.position_ids",  # written by transformers before 4.31
    TOWER + "post_layernorm.weight",  # LongVA takes the hidden state before it
    TOWER + "post_layernorm.bias",
)


def _list_clip_tensors(checkpoint: Checkpoint) -> dict[str, str]:
    try:
        return list_tensors(checkpoint.clip.files)
    except CheckpointError as exc:
        why = "has delay_load and so uses no" if checkpoint.named_tower else "brings no"
        raise CheckpointError(
            f"{checkpoint.files} {why} vision tower of its own, and that of the CLIP model it names is not there: {exc}"
        ) from exc


def _matching(files: Files, listing: dict[str, str], prefixes: dict[str, str]) -> dict[str, Place]:
    return {
        ours + key.removeprefix(theirs): Place(files, shard, key)
        for theirs, ours in prefixes.items()
        for key, shard in listing.items()
        if key.startswith(theirs)
    }


def _tower_shapes(vision: VisionConfig, layers: int) -> dict[str, Shape]:
    tower = vision.tower
    dim, wide = tower.hidden_size, tower.intermediate_size
    shapes: dict[str, Shape] = {
        "embeddings.class_embedding": (dim,),
        "embeddings.patch_embedding.weight": (dim, 3, tower.patch_size, tower.patch_size),
        "embeddings.position_embedding.weight": (tower.side**2 + 1, dim),
        "pre_layrnorm.weight": (dim,),  # CLIP's own spelling
        "pre_layrnorm.bias": (dim,),
    }
    for index in range(layers):
        layer = f"encoder.layers.{index}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{norm}.weight": (dim,), f"{layer}.{norm}.bias": (dim,)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", dim, dim)
        shapes |= _linear(f"{layer}.mlp.fc1", dim, wide) | _linear(f"{layer}.mlp.fc2", wide, dim)
    return {TOWER + name: shape for name, shape in shapes.items()}


def _projector_shapes(vision: VisionConfig) -> dict[str, Shape]:
    # As LongVA's multimodal_projector/builder.py numbers an MLP: linear layers at even places, GELU between them.
    dim, out = vision.tower.hidden_size, vision.hidden_dim
    if vision.projector == "linear":
        return _linear(PROJECTOR.rstrip("."), dim, out)
    shapes: dict[str, Shape] = {}
    for index in range(vision.projector_depth):
        shapes |= _linear(f"{PROJECTOR}{2 * index}", out if index else dim, out)
    return shapes


def _linear(name: str, in_dim: int, out_dim: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out_dim, in_dim), f"{name}.bias": (out_dim,)}


def _is_plain(shard: Any) -> bool:
    return (
        isinstance(shard, str)
        and shard.endswith(".safetensors")
        and "\\" not in shard
        and "\0" not in shard
        and PurePosixPath(shard).name == shard
    )


def _refuse_unknown(files: Files, names: list[str]) -> None:
    if names:
        raise CheckpointError(
            f"{files} holds {len(names)} vision tensors of unknown names, the first is {min(names)!r}; expected "
            f"{' and '.join(prefix + '*' for prefix in PREFIXES)} of the layers its config speaks of"
        )


def _no_safetensors(files: Files) -> CheckpointError:
    found = "no safetensors"
    if isinstance(files, LocalFiles):
        pickled = sorted(
            path.name for path in files.folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")
        )
        found += f" but pickled weights ({pickled[0]})" if pickled else ""
    return CheckpointError(
        f"{files} holds {found}, expected {SINGLE} or {INDEX}; featstore opens no pickle, which could run any code: "
        "convert the checkpoint to safetensors with transformers' save_pretrained, or fetch such a copy"
    )
