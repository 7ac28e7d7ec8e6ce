"""Memory of ours made page-locked, so that a GPU reads and writes it by itself while the host does other things."""

from __future__ import annotations

import logging

import numpy as np
import torch

from featstore.torch.upload.cudart import register, unregister

log = logging.getLogger("featstore.torch")


class PageLock:
    """Writable memory registered with CUDA until `close`; where CUDA refuses, copies only take longer."""

    def __init__(self, memory: memoryview, device: torch.device) -> None:
        """Register it with the context of `device`, a GPU; its pages are taken now."""
        self._address = np.frombuffer(memory, np.uint8).ctypes.data
        self._device = device
        with torch.cuda.device(device):  # or the first GPU would get a context, of some 500 MB
            code = register(self._address, len(memory))
        self.held = code == 0
        if not self.held:
            log.info("%d bytes are not page-locked: CUDA error %d", len(memory), code)

    def close(self) -> None:
        """Let go of it; nothing may be on its way to or from it."""
        if self.held:
            with torch.cuda.device(self._device):
                unregister(self._address)
            self.held = False
