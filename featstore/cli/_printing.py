"""Facts, tables and JSON on stdout; lists of a million rows too."""

from __future__ import annotations

import json
import time
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from featstore.errors import plain_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_LINES = 1024  # printed at once


def clock(seconds: float) -> str:
    """Return a duration for people: `0:42`, `2:03:59`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def date(seconds: float) -> str:
    """Return a time for people, in local time; the number itself if it is outside the calendar."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return repr(seconds)


def print_json(value: Any) -> None:
    """Print a value for scripts."""
    click.echo(json.dumps(value, indent=2))


def print_json_rows(rows: Iterable[dict[str, Any]]) -> None:
    """Print a list for scripts, a line a row, as the rows come."""
    click.echo("[", nl=False)
    before = "\n"
    for lines in _portions(map(json.dumps, rows)):
        click.echo(before + ",\n".join(lines), nl=False)
        before = ",\n"
    click.echo("\n]" if before != "\n" else "]")


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print names and values, aligned; without those that are empty."""
    width = max(map(len, facts))
    for name, value in facts.items():
        if value != "":
            click.echo(f"{indent}{plain_line(name):<{width}}  {plain_line(str(value))}")


def print_table(
    names: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
    formats: Mapping[str, Callable[[Any], str]] | None = None,
) -> None:
    """Print rows of values below the names of their columns, numbers aligned right; nothing if there is no row.

    Args:
        names: name of each column.
        rows: a value for each column.
        formats: by name of a column, what makes a value text; by default floats have six places.
    """
    if not rows:
        return
    shown = {names.index(name): to_text for name, to_text in (formats or {}).items()}
    head, line = [], []
    for i, name in enumerate(names):
        side, kind, to_text = _style(rows[0][i], shown.get(i))
        width = len(name)
        if side != "-" or i < len(names) - 1:  # at the end of a line, text needs no width
            width = max(width, max(map(len, map(to_text, map(itemgetter(i), rows)))))
        head.append(f"%{side}{width}s")
        line.append(f"%{side}{width}{kind}")
    click.echo(("  ".join(head) % tuple(names)).rstrip())
    form = "  ".join(line)
    for lines in _portions(plain_line((form % _texts(row, shown)).rstrip()) for row in rows):
        click.echo("\n".join(lines))


def _style(
    value: Any, to_text: Callable[[Any], str] | None
) -> tuple[str, str, Callable[[Any], str]]:
    """Return alignment, conversion and text of the values of a column, given one of them."""
    if to_text is not None:
        return "-", "s", to_text
    if isinstance(value, float):
        return "", ".6f", "%.6f".__mod__
    return ("", "d", str) if isinstance(value, int) else ("-", "s", str)


def _texts(row: tuple[Any, ...], shown: dict[int, Callable[[Any], str]]) -> tuple[Any, ...]:
    if not shown:
        return row
    return tuple([shown[i](value) if i in shown else value for i, value in enumerate(row)])


def _portions(lines: Iterable[str]) -> Iterable[list[str]]:
    lines = iter(lines)
    while portion := list(islice(lines, _LINES)):
        yield portion
