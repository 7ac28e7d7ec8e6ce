"""`.pt`: a dict that torch.load reads with weights_only=True, in the format of LongVA's first caches.

Such a cache is a folder a dataset, and in it a file a video, named by an MD5. Its dict has `vision_embeds`, times
`scale` the features; `quantization`, what they are stored as; `shape`, `video_path`, `nframe`, `dataset` and
`model_signature`.
"""

from __future__ import annotations

import json
import pickle  # nosec B403 # for its error: nothing is unpickled but by torch with weights_only
import re
import zipfile
from typing import IO, TYPE_CHECKING, Any

from featstore.formats.file_content import Claims, FileContent, from_tensor, metadata_of
from featstore.sampling import check_nframe

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from featstore.records.features import Features

_KEYS = {
    "vision_embeds", "scale", "video_path", "nframe", "dataset", "model_signature", "quantization", "shape"
}  # fmt: skip
# What `quantization` is called, in part, for each dtype; any other name is not checked against it.
_NAMES = {
    "int8": "int8",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
}
# What else may have a part in the values: a zero point, an offset, a second scale.
_CHANGES_VALUES = re.compile("zero|offset|bias|mean|std|shift|scale", re.IGNORECASE)
_MAX_TEXT = 4096


def write_pt(features: Features, file: IO[bytes]) -> list[NDArray[Any]]:
    """Write features as such a cache has them, and return values and scale; int8 with two scales is written as fp32."""
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
        "featstore": metadata_of(features),
    }
    torch.save(content, file)
    return [from_tensor(tensor, tensor.nbytes)[0] for tensor in (embeds, scale)]


def read_pt(path: Path) -> FileContent:
    """Return what a file of such a cache holds, mapped; its checksums are verified.

    Raises:
        ValueError: it is damaged, or not such a file; or what it says of its values is not so.
        OSError: it cannot be read.
    """
    found = _load(path)
    if type(found) is not dict or not found.keys() >= _KEYS:
        lacking = sorted(_KEYS - found.keys()) if type(found) is dict else type(found).__name__
        raise ValueError(f"it is no dict of a feature cache: found or missing are {lacking}")
    import torch

    tensors = [name for name, value in found.items() if isinstance(value, torch.Tensor)]
    unknown = {*tensors, *(name for name in found if _CHANGES_VALUES.search(str(name)))}
    unknown -= {"vision_embeds", "scale"}
    if unknown - {"shape"}:
        raise ValueError(f"it has {sorted(map(str, unknown))}, whose part in its values is unknown")
    size = path.stat().st_size
    embeds = found["vision_embeds"]
    if not isinstance(embeds, torch.Tensor):
        raise ValueError(f"its vision_embeds are {type(embeds).__name__}, not a tensor")
    data, is_bf16 = from_tensor(embeds, size)
    _check_quantization(found["quantization"], embeds.dtype)
    return FileContent(
        data, _scales(found["scale"], size), is_bf16, _claims(found, tuple(embeds.shape))
    )


def _load(path: Path) -> Any:
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load with mmap looks at no checksum
        if damaged is not None:
            raise ValueError(f"it is damaged: the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except zipfile.BadZipFile as exc:
        raise ValueError(
            f"it is not a whole file of torch.save, in the format of torch 1.6 and later: {exc}"
        ) from exc
    except pickle.UnpicklingError as exc:
        reason = str(exc).partition("\n")[0]
        raise ValueError(
            f"it holds more than tensors and plain values, and is not run: {reason:.200}"
        ) from exc


def _check_quantization(stated: object, dtype: torch.dtype) -> None:
    text, found = str(stated).lower(), str(dtype).removeprefix("torch.")
    expected = {dtype for name, dtype in _NAMES.items() if name in text or dtype in text}
    if "bfloat16" in expected and "float16" in expected and "bf" in text:
        expected.remove("float16")
    unlike = (expected and found not in expected) or ("int8" in expected) != (found == "int8")
    if unlike or "asym" in text:  # a zero point that is not there
        raise ValueError(f"its quantization is {stated!r:.80} and its values are {found}")


def _scales(scale: Any, size: int) -> tuple[NDArray[Any], ...]:
    import numpy as np
    import torch

    if scale is None:
        return ()
    if isinstance(scale, (int, float)) and not isinstance(scale, bool):
        return (np.array([float(scale)]),)
    if not isinstance(scale, torch.Tensor) or not scale.is_floating_point():
        raise ValueError(f"its scale is {type(scale).__name__}, not a tensor of floats")
    if scale.dtype == torch.bfloat16:
        scale = scale.float()
    return (from_tensor(scale, 2 * size)[0],)


def _claims(found: dict[str, Any], shape: tuple[int, ...]) -> Claims:
    signature, path, dataset = found["model_signature"], found["video_path"], found["dataset"]
    if not isinstance(signature, (str, type(None))):
        try:
            signature = json.dumps(signature, sort_keys=True)
        except (TypeError, ValueError):
            raise ValueError(
                f"its model_signature is {type(signature).__name__}, not text"
            ) from None
    for name, text in (("video_path", path), ("dataset", dataset), ("model_signature", signature)):
        if not (isinstance(text, str) and 0 < len(text) <= _MAX_TEXT):
            raise ValueError(
                f"its {name} is {text!r:.80}, not a text of 1 to {_MAX_TEXT} characters"
            )
    try:
        stated = tuple(int(size) for size in found["shape"])
    except (TypeError, ValueError):
        raise ValueError(f"its shape is {found['shape']!r:.80}") from None
    frames = check_nframe(found["nframe"])
    as_rows = (shape[0] * shape[1], shape[2]) if len(shape) == 3 else shape
    flat = (stated[0] * stated[1], stated[2]) if len(stated) == 3 else stated
    agree = stated == shape or (as_rows == flat and len(stated) != len(shape))
    if min(stated, default=0) < 1 or not agree:
        raise ValueError(f"its shape is said to be {stated}, its values are {shape}")
    return Claims(path, frames, dataset, signature, max(stated, shape, key=len))
