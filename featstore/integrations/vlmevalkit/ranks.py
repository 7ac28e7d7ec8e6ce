"""VLMEvalKit on several ranks."""

from __future__ import annotations

import fcntl
import functools
import os
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def join_ranks(run: ModuleType) -> None:
    """Make run.py's ranks work together."""
    _let_cpus_meet()
    _build_in_turn(run)


def _let_cpus_meet() -> None:
    """Have the ranks meet over gloo where there is no GPU: run.py asks for NCCL, which needs one."""
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        return
    init: Callable[..., None] = dist.init_process_group

    @functools.wraps(init)
    def init_process_group(*args: Any, **options: Any) -> None:
        if options.get("backend") == "nccl":
            options["backend"] = "gloo"
        init(*args, **options)

    dist.init_process_group = init_process_group


def _build_in_turn(run: ModuleType) -> None:
    """Have the ranks of a machine build a dataset one after another.

    A benchmark whose table has not the expected checksum, as Video_Holmes' never has, writes it again in each rank; one
    rank would read what another has half written.
    """
    place = os.path.join(tempfile.gettempdir(), f"featstore-vlmeval-{os.getuid()}.lock")
    ours = False

    def in_turn(build: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(build)
        def build_in_turn(*args: Any, **options: Any) -> Any:
            nonlocal ours
            if ours:  # one of these functions calls the other
                return build(*args, **options)
            with open(place, "a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                ours = True
                try:
                    return build(*args, **options)
                finally:
                    ours = False

        return build_in_turn

    for name in ("build_dataset_from_cli", "build_dataset_from_config"):
        if hasattr(run, name):
            setattr(run, name, in_turn(getattr(run, name)))
