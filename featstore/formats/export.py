"""Writes one video's features to a file that other programs read: safetensors or npy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from featstore.formats.facts import record_facts
from featstore.system.fsync import write_atomically

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from featstore.records.features import Features

FORMATS = (".safetensors", ".npy")


def save_features(features: Features, path: str | os.PathLike[str]) -> None:
    """Write features to a file, which appears whole or not at all and survives a power loss.

    A `.npy` file holds the dequantized features, float32 (rows, width). A `.safetensors` file holds what is stored: the
    tensor `data`, in bf16 as its bits, uint16, and for int8 its scales, `token_scale` (rows, 1), `channel_scale`
    (1, width) or both, or `tensor_scale` (1, 1). Values times the product of the scales are the features. The metadata
    under `featstore` is JSON: what the record says about them.

    Args:
        features: the features of one video.
        path: the file, with the suffix of the format.

    Raises:
        ValueError: the suffix is another one.
        OSError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise ValueError(
            f"{target} ends in {target.suffix!r}; features are written as {' or '.join(FORMATS)}"
        )
    with write_atomically(target) as file:
        _write(features, file, target.suffix)


def _write(features: Features, file: IO[bytes], suffix: str) -> None:
    from numpy.lib import format as npy
    from safetensors.numpy import save

    if suffix == ".npy":
        values = features.dequantize()
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(values))
        file.write(values.data)
    else:
        # In ASCII: bytes of a file name that are not text are lone surrogates, which safetensors cannot store.
        facts = json.dumps(record_facts(features.header))
        file.write(save({"data": features.data, **_named_scales(features)}, {"featstore": facts}))


def _named_scales(features: Features) -> dict[str, NDArray[Any]]:
    granularity = features.header.storage.granularity
    names = ("token", "channel") if granularity == "channel_token" else (granularity,)
    return {f"{name}_scale": scale for name, scale in zip(names, features.scales, strict=False)}
