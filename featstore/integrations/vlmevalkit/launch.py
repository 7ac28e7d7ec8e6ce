"""Runs VLMEvalKit's own run.py with the cached models and benchmarks registered; none of its files is edited."""

from __future__ import annotations

import importlib.util
import os
import sys
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError, MissingExtra, did_you_mean
from featstore.integrations.vlmevalkit.find_vlmevalkit import find_run_py, import_vlmevalkit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType


def run_vlmevalkit(
    arguments: Sequence[str], run_py: str | os.PathLike[str] | None = None, **options: Any
) -> None:
    """Run VLMEvalKit's run.py with the registered models.

    Args:
        arguments: The command line of run.py.
        run_py: Path of run.py, as `find_run_py` takes it.
        **options: Options of `register`.

    Raises:
        MissingExtra: If run.py is not found, or is too old.
        FeatstoreError: If there is no model of a name, or if after the run a question has no answer or scoring failed,
            which VLMEvalKit itself only logs.
    """
    path = find_run_py(run_py)
    run = _load(path)
    from featstore.integrations.vlmevalkit.model import unanswerable
    from featstore.integrations.vlmevalkit.outcome import Outcome
    from featstore.integrations.vlmevalkit.predictions import let_reuse_go_on
    from featstore.integrations.vlmevalkit.registry import register

    register(**options)
    _refuse_unknown(arguments)
    outcome = Outcome(run)
    let_reuse_go_on(run)
    unanswerable.clear()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from featstore.integrations.vlmevalkit.ranks import join_ranks

        join_ranks(run, unanswerable)
    before = sys.argv
    sys.argv = [str(path), *arguments]
    try:
        run.load_env()
        run.main()
    finally:
        sys.argv = before
    if int(os.environ.get("RANK", "0")) > 0:
        return  # rank 0 writes the predictions, and reports for all
    if problems := outcome.problems():
        raise FeatstoreError(_message(problems, unanswerable))


def _refuse_unknown(arguments: Sequence[str]) -> None:
    """Raise FeatstoreError for a model of `--model` that VLMEvalKit does not have: run.py would end in a KeyError."""
    from featstore.integrations.vlmevalkit.registry import CACHED, MODELS, VIDEO_MODELS

    if "--model" not in arguments or any(word.startswith("--base-url") for word in arguments):
        return  # at a URL any name is a model
    asked = arguments[arguments.index("--model") + 1 :]
    there = import_vlmevalkit("vlmeval.config").supported_VLM
    for name in takewhile(lambda word: not word.startswith("-"), asked):
        if name not in there:
            ours = ", ".join(known + CACHED for known in (*MODELS, *VIDEO_MODELS))
            raise FeatstoreError(
                f"VLMEvalKit has no model {name!r}; {did_you_mean(name, there)}those that answer from stored features "
                f"are {ours}; --checkpoint NAME=CHECKPOINT adds others of LongVA"
            )


def _message(problems: list[str], unanswerable: dict[str, str]) -> str:
    lines = ["VLMEvalKit has not finished:", *(f"  {problem}" for problem in problems)]
    if unanswerable:
        lines.append("what could not be read:")
        lines += [f"  {video}: {why}" for video, why in sorted(unanswerable.items())]
    return "\n".join((*lines, "repair what is named, then run the same command with --reuse"))


def _load(path: Path) -> ModuleType:
    # Its top level assigns the GPUs to the ranks, so it must run before anything loads torch; and as a module called
    # `run`, because its functions are pickled by name.
    sys.path.insert(0, str(path.parent))  # as running the file itself would have it
    spec = importlib.util.spec_from_file_location("run", path)
    if spec is None:
        raise MissingExtra(f"{path} is not a Python file; name VLMEvalKit's run.py with --run-py")
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run"] = module
    spec.loader.exec_module(module)
    return module
