"""Facts, tables and JSON on stdout."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from featstore.errors import plain_line


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


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print names and values, aligned."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{indent}{name:<{width}}  {plain_line(str(value))}")


def print_table(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as a table with column names, numbers aligned right; or as JSON."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        return
    names = list(rows[0])
    cells = [names, *([plain_line(str(row[name])) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    numeric = [isinstance(rows[0][name], (int, float)) for name in names]
    for line in cells:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        click.echo("  ".join(parts).rstrip())
