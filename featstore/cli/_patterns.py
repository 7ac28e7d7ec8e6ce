"""Patterns of video ids, as `sub/*`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def fits(video: str, patterns: Iterable[str]) -> bool:
    """Return whether an id is one of the patterns, or fits one: `*` is any text, slashes too, `?` a character."""
    return any(video == pattern or fnmatchcase(video, pattern) for pattern in patterns)


def expand(patterns: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the ids that are meant, each once, for what cannot be undone: a pattern that is an id means only that.

    Args:
        patterns: ids and patterns; one that fits nothing is returned itself.
        known: all ids.
    """
    there = dict.fromkeys(known)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        fitting = () if pattern in there else [v for v in there if fnmatchcase(v, pattern)]
        chosen |= dict.fromkeys(fitting or [pattern])
    return [*chosen]
