"""VLMEvalKit on several ranks: a dataset that fails on one rank fails on all, and all start the next together."""

from __future__ import annotations

import fcntl
import functools
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    Place = tuple[str, int]

_END: Place = ("the end", 0)


def join_ranks(run: ModuleType, shared: dict[str, str]) -> None:
    """Synchronize the ranks of run.py.

    Args:
        run: The module run.py.
        shared: Updated at the end with the entries of all ranks.
    """
    _let_cpus_meet()
    _build_in_turn(run)
    _Meetings(shared).attend(run)


class _Meetings:
    """Barriers at which each rank says where it is.

    Plain barriers only count. A rank that leaves a dataset by an exception goes to the first barrier of the next one
    and releases the others, which are still inside: from then on all wait at different places, and the next dataset
    fails too. Here, ranks inside a dataset that another rank has left leave it as well, and the one that left waits.
    """

    def __init__(self, shared: dict[str, str]) -> None:
        self._shared = shared
        # Places between two datasets: run.py's first barrier is the one before each of them.
        self._outside: set[Place] = {_END}
        self._why = ""  # why this rank left the dataset

    def attend(self, run: ModuleType) -> None:
        import torch.distributed as dist

        destroy = dist.destroy_process_group
        world = os.environ["WORLD_SIZE"]

        def barrier(*_: Any, **__: Any) -> None:
            caller = sys._getframe(1)
            self._meet((caller.f_code.co_filename, caller.f_lineno))

        @functools.wraps(destroy)
        def destroy_process_group(*args: Any, **options: Any) -> None:
            self._meet(_END)
            for theirs in _gather(self._shared):
                self._shared.update(theirs)
            destroy(*args, **options)

        infer = run.infer_data_job_video

        @functools.wraps(infer)
        def infer_data_job_video(*args: Any, **options: Any) -> Any:
            # VLMEvalKit hides it while a model is built, and permanently if that fails.
            os.environ["WORLD_SIZE"] = world
            try:
                return infer(*args, **options)
            except Exception as exc:
                self._why = self._why or str(exc) or type(exc).__name__
                raise

        dist.barrier = barrier
        dist.destroy_process_group = destroy_process_group
        run.infer_data_job_video = infer_data_job_video  # type: ignore[attr-defined]

    def _meet(self, here: Place) -> None:
        if len(self._outside) == 1:
            self._outside.add(here)
        while True:
            found = _gather((here, self._why))
            if all(there == here for there, _ in found):
                self._why = ""
                return
            if here not in self._outside:
                left = {rank: why for rank, (there, why) in enumerate(found) if there != here}
                rank, why = next(iter(left.items()))
                raise FeatstoreError(f"rank {rank} has left this dataset: {why or 'see its log'}")


def _gather(mine: Any) -> list[Any]:
    import torch.distributed as dist

    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def _let_cpus_meet() -> None:
    """Use gloo if there is no GPU: run.py asks for NCCL, which needs one."""
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
    """Let the ranks of a machine build a dataset one after another.

    A benchmark whose table does not have the expected checksum, as is always so for Video_Holmes, writes it again in
    each rank; one rank would read what another has half written.
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
