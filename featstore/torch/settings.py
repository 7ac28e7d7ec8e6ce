"""An encoder's arithmetic, whatever the caller set in torch: autocast, TF32, cuDNN's flags, a default device.

Autocast and the default device are a thread's own. The rest is the whole process's: it is changed for as long as a
thread is inside, and put back by the last one that leaves.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from featstore.system.forks import tell_of_forks

if TYPE_CHECKING:
    from collections.abc import Iterator

# Since torch 2.9 each operation has a precision of its own beside the older flags, and both must say the same.
_PRECISIONS = ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")


@contextmanager
def own_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute on `device` as in a process that changed no setting of torch, and float32 in whole floats.

    TF32 made a tower's features 50 times less exact on an H200 (relative L2 5e-5, not 1e-6), autocast 1,000 times.
    """
    with torch.autocast(device.type, enabled=False), device, _flags.changed():
        yield


class _Flags:
    """The flags of the whole process, changed while at least one thread wants them so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = ExitStack()
        tell_of_forks(self)

    def after_fork(self) -> None:
        """Put back what threads of the parent changed, and let go of a lock they may hold."""
        self._lock = threading.Lock()
        self._inside = 0
        self._undo.close()

    @contextmanager
    def changed(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._undo = _change()
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._undo.close()


_flags = _Flags()


def _change() -> ExitStack:
    """Set the flags, and return what puts back those that were otherwise."""
    undo = ExitStack()
    for name in _PRECISIONS:  # put back last: the older flags write over them
        with suppress(AttributeError):
            place = attrgetter(name)(torch.backends)
            undo.callback(setattr, place, "fp32_precision", place.fp32_precision)
    with suppress(RuntimeError):  # where only the newer ones were used, the older cannot be read
        undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
    cudnn: Any = torch.backends.cudnn
    for flag, wanted in (("allow_tf32", False), ("benchmark", False), ("enabled", True)):
        with suppress(RuntimeError):
            undo.callback(partial(setattr, cudnn, flag, getattr(cudnn, flag)))
            setattr(cudnn, flag, wanted)
    for name in _PRECISIONS:
        with suppress(AttributeError):
            place = attrgetter(name)(torch.backends)
            if place.fp32_precision not in ("ieee", "none"):
                place.fp32_precision = "ieee"
    return undo
