"""Memory of the map under a name torch accepts; for this folder alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Alias:
    """Read-only memory under a writable name: torch takes no other. Nothing in this folder writes to it."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._keep = values
        interface = dict(values.__array_interface__)
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def alias(values: NDArray[Any]) -> torch.Tensor:
    """Return a tensor on the memory of `values`; never hand it to a caller, never write to it."""
    return torch.from_numpy(np.asarray(_Alias(values)))
