"""Which of a model's outputs are features, and the rows they make; from configs alone, torch is not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore import defaults
from featstore.encoders.transformers_vision.families import LAYERS, VisionCheckpoint, read_vision
from featstore.encoders.transformers_vision.processors import FrameProcessor, read_processor
from featstore.errors import CheckpointError
from featstore.geometry import Geometry

if TYPE_CHECKING:
    from pathlib import Path

    from featstore.spec import Setting

POOLS = ("patch", "cls", "mean", "pooler", "joint")


@dataclass(frozen=True)
class ModelOutput:
    """What is taken of a model.

    Attributes:
        found: the checkpoint.
        processor: what happens to a frame before.
        layers: the hidden states, -1 for the last one as the model gives it.
        pool: one of POOLS.
        geometry: the rows it makes.
    """

    found: VisionCheckpoint
    processor: FrameProcessor
    layers: tuple[int, ...]
    pool: str
    geometry: Geometry

    @property
    def pooled(self) -> bool:
        """Return whether it is the model's own pooled output, projected or not."""
        return self.pool in ("pooler", "joint")

    @property
    def model(self) -> str:
        """Return the class in transformers."""
        family = self.found.family
        return family.joint or family.model if self.pool == "joint" else family.model

    @property
    def projects(self) -> bool:
        """Return whether the class has a projection of its own behind the pooled output."""
        return self.pool == "joint" and self.model != self.found.family.model

    @property
    def first_patch(self) -> int:
        """Return how many tokens come before the patches: the class token and registers."""
        family = self.found.family
        registers = self.found.config.num_register_tokens if family.registers else 0
        return int(family.cls) + int(registers)

    def settings(self) -> dict[str, Setting]:
        """Return everything beside weights, dtype, geometry and preprocessing that may change a feature."""
        return {
            "model": self.model,
            "layers": ",".join(map(str, self.layers)),
            "pool": self.pool,
            **({"offset": True} if self.processor.offset else {}),
            **self.found.settings(),
            **self.processor.settings,
        }


def read_output(
    checkpoint: str | Path,
    *,
    layer: str | int = defaults.LAYER,
    pool: str = defaults.POOL,
    clip: int | None = None,
    stride: int | None = None,
) -> ModelOutput:
    """Return what is taken of a checkpoint's model; arguments and errors are those of `TransformersEncoder`."""
    found = read_vision(checkpoint)
    _check_pool(found, pool)
    layers = _parse_layers(found, str(layer), pool)
    processor = read_processor(found.files)
    frame = processor.preprocessing.max_frame
    family, config = found.family, found.config
    count = _clip_length(found, clip, stride)
    if family.side is not None:
        side = getattr(config, family.side)
        sides = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
        if sides != frame:
            raise CheckpointError(
                f"the processor of {found.files} makes frames of {frame[0]} x {frame[1]} pixels, its model takes "
                f"{' x '.join(map(str, sides))}; use both configs as they were published"
            )
    time, height, width = found.patches(frame, count)
    whole = pool == "patch"
    projects = pool == "joint" and family.joint != family.model
    geometry = Geometry(
        tokens_per_unit=time * height * width if whole else 1,
        hidden_dim=config.projection_dim if projects else config.hidden_size,
        frames_per_unit=count,
        stride=stride or count,
        planes=len(layers),
        grid=(height, width) if whole and family.frames is None else None,
    )
    return ModelOutput(found, processor, layers, pool, geometry)


def _clip_length(found: VisionCheckpoint, clip: int | None, stride: int | None) -> int:
    family = found.family
    if family.frames is None:
        if clip or stride:
            raise ValueError(f"{family.model} encodes frames one by one: leave clip and stride out")
        return 1
    known = getattr(found.config, family.frames)
    if type(known) is not int or known < 1:
        raise found.stated.wrong(family.frames, "a number of frames")
    if clip not in (None, known) and not family.any_length:
        raise ValueError(
            f"{family.model} of {found.files} takes clips of {known} frames, not {clip}: leave clip out"
        )
    return clip or known


def _check_pool(found: VisionCheckpoint, pool: str) -> None:
    family = found.family
    head = getattr(found.config, "vision_use_head", True)  # SigLIP's, which pools
    has = {
        "cls": family.cls,
        "pooler": family.pooler is not None and head,
        "joint": family.joint is not None and head,
    }
    able = [name for name in POOLS if has.get(name, True)]
    if pool not in able:
        raise ValueError(f"pool is {pool!r}; {family.model} of {found.files} has {', '.join(able)}")


def _parse_layers(found: VisionCheckpoint, text: str, pool: str) -> tuple[int, ...]:
    depth = getattr(found.config, LAYERS)
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"layer is {text!r}; write -1, or several as -4,-1") from None
    # -2 and depth - 1 are one hidden state, and must have one digest; -1 may be normed, `depth` is not.
    chosen = tuple(layer if layer >= 0 or layer == -1 else depth + 1 + layer for layer in layers)
    if not all(-1 <= layer <= depth for layer in chosen) or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"layer is {text!r}; {found.family.model} of {found.files} has hidden states from {-depth - 1} to {depth}, "
            "each taken once"
        )
    if pool in ("pooler", "joint") and chosen != (-1,):
        raise ValueError(f"layer is {text!r}; pool {pool!r} is of the last layer, -1")
    return chosen
