"""The files that other programs read features from, one writer a format."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

from featstore.formats.facts import record_facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from featstore.records.features import Features


def write_features(features: Features, file: IO[bytes], suffix: str) -> None:
    """Write the features of one video into a file.

    Args:
        features: the features.
        file: a new file, open for writing.
        suffix: of the format, one of `FORMATS`.
    """
    _WRITERS[suffix](features, file)


def _write_npy(features: Features, file: IO[bytes]) -> None:
    from numpy.lib import format as npy

    values = features.dequantize()
    npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(values))
    file.write(values.data)


def _write_npz(features: Features, file: IO[bytes]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {**_arrays(features), "featstore": np.array(_metadata(features))}
    np.savez(file, **arrays)


def _write_safetensors(features: Features, file: IO[bytes]) -> None:
    from safetensors.numpy import save

    file.write(save(_arrays(features), {"featstore": _metadata(features)}))


def _write_pt(features: Features, file: IO[bytes]) -> None:
    import torch

    from featstore.torch.conversion import to_tensor
    from featstore.torch.kernels.quantize import TORCH_DTYPES

    header = features.header
    values = header.storage.values
    if len(features.scales) == 1:
        embeds, scale = torch.tensor(features.data), torch.tensor(features.scales[0])
    else:
        # One scale cannot say what two do: the values that they restore are written.
        values = "fp32" if features.scales else values
        embeds, scale = to_tensor(features, dtype=TORCH_DTYPES[values]), torch.ones(1)
    content = {
        "vision_embeds": embeds,
        "scale": scale,
        "video_path": header.video_path,
        "nframe": header.nframe,
        "dataset": header.dataset,
        "model_signature": header.spec,
        "quantization": values,
        "shape": list(header.shape),
        "featstore": _metadata(features),
    }
    torch.save(content, file)


def _metadata(features: Features) -> str:
    # In ASCII: bytes of a file name that are not text are lone surrogates, which safetensors cannot store.
    return json.dumps(record_facts(features.header))


def _arrays(features: Features) -> dict[str, NDArray[Any]]:
    granularity = features.header.storage.granularity
    names = ("token", "channel") if granularity == "channel_token" else (granularity,)
    scales = zip(names, features.scales, strict=False)
    return {"data": features.data, **{f"{name}_scale": scale for name, scale in scales}}


_WRITERS: dict[str, Callable[[Features, IO[bytes]], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".pt": _write_pt,
}
FORMATS = tuple(_WRITERS)
