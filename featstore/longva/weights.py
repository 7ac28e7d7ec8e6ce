"""The values of the tensors that see: checked, hashed and loaded one by one, never the whole checkpoint."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from featstore.errors import CheckpointError
from featstore.longva.layout import find_places, needed_shapes, open_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from featstore.longva.checkpoint import Checkpoint

FLOATS = (
    "F16",
    "BF16",
    "F32",
)  # safetensors' names of the dtypes whose values float32 holds exactly
# Values hashed at once: below the 32,768 at which torch would spread a conversion over threads of its own.
HASH_VALUES = 1 << 14
MAX_HASH_THREADS = 16


@dataclass(frozen=True)
class VisionWeights:
    """The tensors that see, still on disk: name -> (file, name in that file)."""

    tensors: dict[str, tuple[Path, str]]

    def digest(self) -> str:
        """Return sha256 over names, shapes and values, 64 hex digits.

        Values count as float32, so that fp16, bf16 and fp32 files of equal values agree, however they are sharded.
        """
        names = sorted(self.tensors)
        threads = min(MAX_HASH_THREADS, os.cpu_count() or 1)
        with self._opened() as opened, ThreadPoolExecutor(threads) as pool:

            def line(name: str) -> str:
                path, key = self.tensors[name]
                tensor = opened[path].get_tensor(key)
                return f"{name} {tuple(tensor.shape)} {_hash_values(tensor)}\n"

            return hashlib.sha256("".join(pool.map(line, names)).encode()).hexdigest()

    def load(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return name -> tensor on `device` in `dtype`; none aliases a file."""
        with self._opened() as opened:
            return {
                name: opened[path].get_tensor(key).to(device, dtype, copy=True)
                for name, (path, key) in self.tensors.items()
            }

    @contextmanager
    def _opened(self) -> Iterator[dict[Path, Any]]:
        with ExitStack() as stack:
            paths = dict.fromkeys(path for path, _ in self.tensors.values())
            yield {path: stack.enter_context(open_tensors(path)) for path in paths}


def find_weights(checkpoint: Checkpoint) -> VisionWeights:
    """Return the tensors that see, fetching the files they lie in; their shapes and dtypes are checked.

    Raises CheckpointError where one is missing, unknown, damaged or not as the config says.
    """
    tensors: dict[str, tuple[Path, str]] = {}
    for name, (files, shard, key) in find_places(checkpoint).items():
        path = files.find(shard)
        if path is None:
            raise CheckpointError(
                f"{files} has no {shard}, in which its index places {key!r}; fetch that file"
            )
        tensors[name] = path, key
    weights = VisionWeights(tensors)
    with weights._opened() as opened:
        for name, shape in needed_shapes(checkpoint.vision).items():
            path, key = tensors[name]
            _check(path, key, opened[path], shape)
    return weights


def _check(path: Path, key: str, opened: Any, shape: tuple[int, ...]) -> None:
    if key not in opened.keys():  # noqa: SIM118, an open safetensors file is no mapping
        raise CheckpointError(
            f"{path} lacks {key!r}, which the index places there; fetch both again"
        )
    header = opened.get_slice(key)
    found = tuple(header.get_shape())
    if found != shape:
        raise CheckpointError(
            f"{path} has {key!r} of shape {found}, its config makes it {shape}; do config and weights belong together?"
        )
    if header.get_dtype() not in FLOATS:
        raise CheckpointError(
            f"{path} has {key!r} as {header.get_dtype()}, expected one of {', '.join(FLOATS)}; "
            "use a checkpoint that is not quantized"
        )


def _hash_values(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256()
    values = tensor.reshape(-1)
    for start in range(0, len(values), HASH_VALUES):
        block = values[start : start + HASH_VALUES].to(torch.float32)  # exact for each of FLOATS
        digest.update(block.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
