"""Page-locked memory, which a GPU reads and writes directly while the host does other things."""

from __future__ import annotations

import logging

import numpy as np
import torch

from featstore.torch.upload.cudart import register, unregister

log = logging.getLogger("featstore.torch")


class PageLock:
    """Writable memory registered with CUDA until `close`; if CUDA refuses, copies only take longer."""

    def __init__(self, memory: memoryview, device: torch.device) -> None:
        """Register `memory` with the context of `device`, a GPU; its pages are allocated now."""
        self._address = np.frombuffer(memory, np.uint8).ctypes.data
        self._device = device
        with torch.cuda.device(device):  # or the first GPU would get a context, of some 500 MB
            code = register(self._address, len(memory))
        self.held = code == 0
        if not self.held:
            log.info("%d bytes are not page-locked: CUDA error %d", len(memory), code)

    def close(self) -> None:
        """Unregister the memory; no copy to or from it may be running."""
        if self.held:
            with torch.cuda.device(self._device):
                unregister(self._address)
            self.held = False
