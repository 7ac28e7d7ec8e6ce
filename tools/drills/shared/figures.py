"""The figures a drill prints: what was counted, on which machine, when; text for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.measure import describe, machine, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST_PROBLEMS = 20  # that are printed
PACKAGES = ("featstore", "lmdb", "msgpack", "numpy", "decord")


def report(
    place: Path,
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    facts: dict[str, Any],
    problems: Sequence[str],
    as_json: bool,
) -> None:
    """Print the figures, then what went wrong, and exit with 1 if anything did.

    place: where the drill worked, for the disk's name. facts: seed, seconds and the like, by name.
    """
    about = machine(PACKAGES, place)
    if as_json:
        plain = {"machine": about, **facts, "problems": list(problems)}
        plain["rows"] = [dict(zip(head, row, strict=True)) for row in rows]
        print(json.dumps(plain, indent=1))
    else:
        print(table(head, [[str(cell) for cell in row] for row in rows]))
        print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
        print(describe(about))
        for problem in problems[:MOST_PROBLEMS]:
            print(f"WRONG: {problem}")
        print(
            f"{len(problems)} problems" if problems else "nothing lost, nothing half, nothing wrong"
        )
    sys.exit(1 if problems else 0)
