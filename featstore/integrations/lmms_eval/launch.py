"""Runs lmms-eval's own command line, and tells by an error what it did not finish: its exit code is 0 all the same."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError
from featstore.integrations.lmms_eval import importing_lmms_eval

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NAMED = 10


def run_lmms_eval(arguments: Sequence[str]) -> None:
    """Run lmms-eval.

    Args:
        arguments: its command line.

    Raises:
        MissingExtra: it cannot be loaded.
        FeatstoreError: an evaluation ended in an error, or a question of any process has no answer.
    """
    with importing_lmms_eval():
        import lmms_eval.__main__ as program
        from lmms_eval.cli.dispatch import main
    from featstore.integrations.lmms_eval.model import unanswered

    errors: list[str] = []
    unanswered.clear()
    before, single = sys.argv, program.cli_evaluate_single
    sys.argv = ["lmms-eval", *arguments]
    program.cli_evaluate_single = _noting(single, errors)
    try:
        main()
    except SystemExit as exc:
        if exc.code:
            raise
    finally:
        sys.argv, program.cli_evaluate_single = before, single
    # A process that failed does not wait for the others, which may wait for it: its launcher ends them.
    problems = errors or _of_all_processes(sorted(unanswered))
    if problems:
        more = f"\n  and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:_NAMED])
        what = "ended in an error" if errors else "left questions unanswered, about"
        raise FeatstoreError(
            f"lmms-eval {what}:{lines}{more}\nrepair what is named, then run the same command"
        )


def _noting(call: Callable[..., Any], errors: list[str]) -> Callable[..., Any]:
    @functools.wraps(call)
    def noted(*args: Any, **words: Any) -> Any:
        try:
            return call(*args, **words)
        except Exception as exc:
            errors.append(f"{type(exc).__name__}: {exc}")
            raise

    return noted


def _of_all_processes(mine: list[str]) -> list[str]:
    """Return what any process left unanswered, in the first one; nothing in the others, so that they end well."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return mine
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, mine)
    return sorted(set().union(*found)) if distributed.get_rank() == 0 else []
