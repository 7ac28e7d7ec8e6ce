"""The digest of a checkpoint's weights: tensors are checked, hashed and loaded one by one, never the whole checkpoint.

They are read twice, perhaps hours apart: hashed for the encoder's identity, and loaded before the first frame. Files
may be replaced in between, so what is loaded is hashed as well.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from featstore.checkpoints.tensors import check_dtype, check_tensor, open_tensors
from featstore.errors import CheckpointError
from featstore.system.forks import cached_property

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch

    from featstore.checkpoints.tensors import Shape

Kept = TypeVar("Kept")

# Values hashed at once: below the 32,768 at which torch would spread a conversion over threads of its own.
HASH_VALUES = 1 << 14
MAX_HASH_THREADS = 16


@dataclass(frozen=True)
class DigestedWeights:
    """Tensors on disk, known by the digest of their values.

    Attributes:
        tensors: name -> (safetensors file, name in that file).
    """

    tensors: dict[str, tuple[Path, str]]

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of names, shapes and values, 64 hex digits; computed at the first access.

        Values are hashed as float32, so that fp16, bf16 and fp32 files of equal values agree, however they are sharded.
        """
        return self._read(lambda _: None)[1]

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raise CheckpointError unless each tensor has the dtype and shape it should; `shapes` is name -> shape."""
        with self._opened() as opened:
            for name, shape in shapes.items():
                path, key = self.tensors[name]
                check_tensor(opened[path], path, key, shape)

    def load(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return name -> tensor on `device` in `dtype`; none aliases a file.

        Raises:
            CheckpointError: the values are not those of `digest`.
        """
        import torch

        expected = self.digest
        device = torch.empty(0, device=device).device  # each thread has a current GPU of its own
        try:
            weights, found = self._read(lambda tensor: tensor.to(device, dtype))
        except CheckpointError as exc:
            raise self._replaced(str(exc)) from exc
        if found != expected:
            raise self._replaced(f"they hash to {found[:8]}, not to {expected[:8]}")
        return weights

    def _read(self, keep: Callable[[torch.Tensor], Kept]) -> tuple[dict[str, Kept], str]:
        """Return what `keep` makes of each tensor, and the digest of the very values it was given."""
        names = sorted(self.tensors)
        threads = min(MAX_HASH_THREADS, os.cpu_count() or 1)
        with self._opened() as opened, ThreadPoolExecutor(threads) as pool:
            for path, key in self.tensors.values():
                check_dtype(opened[path], path, key)

            def read(name: str) -> tuple[Kept, str]:
                path, key = self.tensors[name]
                tensor = opened[path].get_tensor(key).clone()  # the file's pages may yet change
                return keep(tensor), f"{name} {tuple(tensor.shape)} {_hash_values(tensor)}\n"

            results = dict(zip(names, pool.map(read, names), strict=True))
        lines = "".join(line for _, line in results.values())
        kept = {name: value for name, (value, _) in results.items()}
        return kept, hashlib.sha256(lines.encode()).hexdigest()

    def _replaced(self, found: str) -> CheckpointError:
        folders = sorted({str(path.parent) for path, _ in self.tensors.values()})
        return CheckpointError(
            f"the weights in {' and '.join(folders)} were replaced since this encoder hashed them ({found}), so no "
            "features are made under their digest; put the old files back, or start again with the new ones"
        )

    @contextmanager
    def _opened(self) -> Iterator[dict[Path, Any]]:
        with ExitStack() as stack:
            paths = dict.fromkeys(path for path, _ in self.tensors.values())
            yield {path: stack.enter_context(open_tensors(path)) for path in paths}


def _hash_values(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256()
    values = tensor.reshape(-1)
    for start in range(0, len(values), HASH_VALUES):
        block = values[start : start + HASH_VALUES].float()  # exact for each of FLOATS
        digest.update(block.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
