"""Memory of ours made page-locked, so that a GPU reads and writes it by itself while the host does other things."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import numpy as np
import torch

log = logging.getLogger("featstore.torch")
_PORTABLE = 0x01  # for every GPU


class PageLock:
    """Writable memory registered with CUDA until `close`; where CUDA refuses, copies only take longer."""

    def __init__(self, memory: memoryview, device: torch.device) -> None:
        """Register it with the context of `device`, a GPU; its pages are taken now."""
        self._address = np.frombuffer(memory, np.uint8).ctypes.data
        self._device = device
        with torch.cuda.device(device):  # or the first GPU would get a context, of some 500 MB
            code = int(_cudart().cudaHostRegister(self._address, len(memory), _PORTABLE))
        self.held = code == 0
        if not self.held:
            log.info("%d bytes are not page-locked: CUDA error %d", len(memory), code)
            self._clear_error()

    def close(self) -> None:
        """Let go of it; nothing may be on its way to or from it."""
        if self.held:
            with torch.cuda.device(self._device):
                _cudart().cudaHostUnregister(self._address)
            self.held = False

    def _clear_error(self) -> None:
        # A refused registration stays the runtime's last error until a launch reports it: let that be ours.
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=self._device)


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
