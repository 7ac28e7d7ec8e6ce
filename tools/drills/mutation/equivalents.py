"""Mutants that no test can kill: with them the code does the same, for a reason that is written down.

Each line of equivalent.jsonl is a list: the file, the function, the change, the reason. The change is the statement's
text, what became of it in brackets, so it stays known if it moves, and is forgotten if it is written anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from drills.mutation.mutants import Mutant

FILE = Path(__file__).with_name("equivalent.jsonl")
AROUND = 40  # characters that are shown on either side of a change
_WORDS = re.compile(r"\w+|[^\w\s]+|\s+")


def key_of(mutant: Mutant) -> tuple[str, str, str]:
    """Return the file, the function and the change of a mutant, as a line of equivalent.jsonl has them."""
    lines = mutant.diff.splitlines()
    old, new = (
        _WORDS.findall(" ".join(" ".join(line[1:] for line in lines if line[0] == sign).split()))
        for sign in "-+"
    )
    before = _common(old, new)
    after = _common(old[before:][::-1], new[before:][::-1])
    parts = old[before : len(old) - after], new[before : len(new) - after]
    head, tail = "".join(old[:before]), "".join(old[len(old) - after :])
    changed = " -> ".join(map("".join, parts))
    return mutant.path, mutant.function, f"{head[-AROUND:]}[{changed}]{tail[:AROUND]}"


def _common(one: list[str], other: list[str]) -> int:
    """Return how many words both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def read_equivalents() -> dict[tuple[str, str, str], str]:
    """Return the reason for each mutant of which one is known."""
    lines = (json.loads(line) for line in FILE.read_text().splitlines())
    return {(path, function, change): reason for path, function, change, reason in lines}


def stale(mutants: Iterable[Mutant]) -> list[str]:
    """Return the lines of equivalent.jsonl for the files of these, all their mutants, that are none of them."""
    there = {key_of(mutant) for mutant in mutants}
    files = {path for path, _, _ in there}
    return [
        f"{path}, {function}: {change}"
        for path, function, change in read_equivalents()
        if path in files and (path, function, change) not in there
    ]
