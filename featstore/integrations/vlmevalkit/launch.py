"""VLMEvalKit's own run.py, with LongVA's models and benchmarks registered and no file of it edited."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError, MissingExtra
from featstore.integrations.vlmevalkit.kit import find_run_py

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import ModuleType


def run_vlmevalkit(
    arguments: Sequence[str], run_py: str | os.PathLike[str] | None = None, **options: Any
) -> None:
    """Run VLMEvalKit with the command line `arguments`; options: those of `register`.

    Raises MissingExtra where run.py is not found, and FeatstoreError where a model failed on a dataset: VLMEvalKit
    itself logs that and goes on.
    """
    path = find_run_py(run_py)
    run = _load(path)
    from featstore.integrations.vlmevalkit.registry import register

    register(**options)
    failures = _collect_failures(run)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _let_cpus_meet()
        _build_in_turn(run)
    before = sys.argv
    sys.argv = [str(path), *arguments]
    try:
        run.load_env()
        run.main()
    finally:
        sys.argv = before
    if failures:
        listed = "".join(f"\n  {what}: {why}" for what, why in failures.items())
        raise FeatstoreError(f"VLMEvalKit failed on {len(failures)}, see its log above:{listed}")


def _load(path: Path) -> ModuleType:
    # Its top level hands each rank its GPUs, so it must run before anything loads torch; and as a module called `run`,
    # since functions of it are pickled by name.
    sys.path.insert(0, str(path.parent))  # as running the file itself would have it
    spec = importlib.util.spec_from_file_location("run", path)
    if spec is None:
        raise MissingExtra(f"{path} is no Python file; name VLMEvalKit's run.py with --run-py")
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run"] = module
    spec.loader.exec_module(module)
    return module


def _collect_failures(run: ModuleType) -> dict[str, str]:
    """Return what will hold each failure, by model and dataset, as run.py writes it into its status file."""
    failures: dict[str, str] = {}
    write = getattr(run, "upsert_dataset_status", None)
    if write is None:
        return failures

    @functools.wraps(write)
    def upsert_dataset_status(*args: Any, **status: Any) -> Any:
        reason = status.get("error_message")
        if status.get("skip_reason") == "invalid_dataset":
            reason = "VLMEvalKit knows no such dataset"
        if reason:
            failures[f"{status.get('model_name')} x {status.get('dataset_name')}"] = str(reason)
        return write(*args, **status)

    run.upsert_dataset_status = upsert_dataset_status  # type: ignore[attr-defined]
    return failures


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

    A benchmark whose table has not the expected checksum, as Video_Holmes' never has, writes it anew in each rank; one
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
