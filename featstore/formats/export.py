"""Writes one video's features to a file that other programs read: safetensors or npy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING

from featstore.system.fsync import write_atomically

if TYPE_CHECKING:
    import os

    from featstore.records.features import Features

FORMATS = (".safetensors", ".npy")


def save_features(features: Features, path: str | os.PathLike[str]) -> None:
    """Write features to a file, which appears whole or not at all and survives a power loss.

    Args:
        features: The features of one video.
        path: `.npy` for the dequantized features, float32 (num_tokens, hidden_dim); `.safetensors` for `data` and
            `scale` as they are stored (their product is the features; bf16 as its bits, uint16), with the header as
            metadata.

    Raises:
        ValueError: If the suffix is another one.
        OSError: If the file cannot be written.
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
        arrays = {"data": features.data, "scale": features.scale}
        file.write(save(arrays, _metadata(features)))


def _metadata(features: Features) -> dict[str, str]:
    header = asdict(features.header) | {"frame_indices": features.header.frames}
    return {name: _text(str(value)) for name, value in header.items()}


def _text(name: str) -> str:
    # Bytes of a file name that are not text are lone surrogates, which safetensors cannot store.
    return name.encode("utf-8", "backslashreplace").decode()
