"""`.safetensors`: what is stored of a video's features, with its scales and metadata."""

from __future__ import annotations

from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from featstore.formats.file_content import (
    FileContent,
    arrays_of,
    from_arrays,
    from_tensor,
    metadata_of,
    read_metadata,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from featstore.records.features import Features


def write_safetensors(features: Features, file: IO[bytes]) -> list[NDArray[Any]]:
    """Write stored values, scales and metadata, and return the arrays."""
    from safetensors.numpy import save

    arrays = arrays_of(features)
    file.write(save(arrays, {"featstore": metadata_of(features)}))
    return list(arrays.values())


def read_safetensors(path: Path) -> FileContent:
    """Return the tensors of a file, mapped; raise ValueError or OSError if it cannot be read."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    size = path.stat().st_size
    try:
        found = {name: from_tensor(tensor, size) for name, tensor in load_file(path).items()}
        with safe_open(path, "numpy") as file:
            facts = read_metadata((file.metadata() or {}).get("featstore"))
    except SafetensorError as exc:
        raise ValueError(f"it is not a whole safetensors file: {exc}") from exc
    is_bf16 = any(bits for _, bits in found.values())
    content = from_arrays({name: array for name, (array, _) in found.items()}, is_bf16=is_bf16)
    return replace(content, facts=facts)
