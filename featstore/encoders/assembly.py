"""Modules of transformers put together from tensors: nothing is drawn at random, nothing may be missing."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from featstore.checkpoints.config_fields import AS_PUBLISHED
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from featstore.checkpoints.config_fields import ConfigFields
    from featstore.checkpoints.files import Files


def build_config(fields: ConfigFields, kind: str) -> Any:
    """Return transformers' config of a model type; code that comes with a checkpoint is not run.

    Raises:
        CheckpointError: a field is none that transformers can follow; the message names it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[kind].from_dict(deepcopy(fields.values))
    except Exception as exc:  # what a config's own checks raise has no common class
        raise CheckpointError(
            f"{fields.origin} is no config of {kind!r} to the installed transformers ({exc!s:.300}); {AS_PUBLISHED}, "
            "or another release of transformers"
        ) from exc


def assemble(
    cls: Any,
    config: Any,
    small: Any,
    weights: dict[str, torch.Tensor],
    device: torch.device,
    files: Files,
) -> Any:
    """Return a module of transformers with given parameters, in eval mode.

    Args:
        cls: its class.
        config: its config.
        small: the same without layers: buffers, which no checkpoint has, are taken from a module of it.
        weights: name -> tensor on `device`, used without a copy.
        device: its device.
        files: the checkpoint, for messages.

    Raises:
        CheckpointError: the weights are not those of the config.
    """
    import torch

    try:
        with torch.device("meta"):
            model = cls(config)
    except Exception as exc:  # of a field that names no module, say: they share no class
        raise CheckpointError(
            f"transformers' {cls.__name__} cannot be built as {files}/config.json says ({exc!r:.300}); {AS_PUBLISHED}"
        ) from exc
    model.set_attn_implementation("sdpa")
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = [
        name for name in sorted(shapes.keys() | found.keys()) if shapes.get(name) != found.get(name)
    ]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{files} has {len(wrong)} tensors of its vision side that its config does not give: {name!r} is of shape "
            f"{found.get(name, 'none')}, expected {shapes.get(name, 'none')}; do config and weights belong together?"
        )
    model.load_state_dict(weights, strict=True, assign=True)
    made = dict(cls(small).named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, made[name].to(device))
    return model.eval().requires_grad_(False)
