"""Facts, tables and JSON on stdout; lists of a million rows too."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import sys
import textwrap
import time
from functools import lru_cache, partial
from itertools import islice, zip_longest
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featstore.errors import plain_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

T = TypeVar("T")
_LINES = 1024  # printed at once
_SECONDS = [f":{second:02}" for second in range(60)]
_NUMBERS = {int: "d", float: ".6f"}  # how they are printed, aligned right


def clock(seconds: float) -> str:
    """Return a duration for people: `0:42`, `2:03:59`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def date(seconds: float) -> str:
    """Return a time for people, in local time; the number itself if it is outside the calendar."""
    try:
        minute, second = divmod(math.floor(seconds), 60)
        return _minute(minute) + _SECONDS[second]
    except (OverflowError, ValueError, OSError):
        return repr(seconds)


@lru_cache
def _minute(minutes: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(60 * minutes))


def print_json(value: Any) -> None:
    """Print a value for scripts."""
    click.echo(json.dumps(value, indent=2))


def print_json_rows(rows: Iterable[str]) -> None:
    """Print a list for scripts, of rows that are JSON, a line a row, as they come."""
    click.echo("[", nl=False)
    before = "\n"
    for lines in _portions(rows):
        click.echo(before + ",\n".join(lines), nl=False)
        before = ",\n"
    click.echo("\n]" if before != "\n" else "]")


def print_csv(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows as CSV below the names of the first one's values; nothing if there is none."""
    writer, text = None, io.StringIO()
    for portion in _portions(rows):
        if writer is None:
            writer = csv.DictWriter(text, [*portion[0]], extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
        writer.writerows(portion)
        click.echo(text.getvalue(), nl=False)
        text.seek(0)
        text.truncate()


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print names and values, aligned; without those that are empty. On a terminal they are wrapped to its width."""
    width = max(map(len, facts))
    for name, value in facts.items():
        if value == "":
            continue
        text = plain_line(str(value))
        lines = [text]
        if sys.stdout.isatty():
            room = max(20, shutil.get_terminal_size().columns - len(indent) - width - 2)
            lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
        for head, line in zip_longest([plain_line(name)], lines, fillvalue=""):
            click.echo(f"{indent}{head:<{width}}  {line}")


def print_table(
    names: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
    formats: Mapping[str, Callable[[Any], str]] | None = None,
) -> None:
    """Print rows of values below the names of their columns, numbers aligned right; nothing if there is no row.

    On a terminal that is too narrow, texts that are the same in each row are said once, at the end.

    Args:
        names: name of each column.
        rows: a value for each column.
        formats: by name of a column, what makes a value text; by default floats have six places.
    """
    if not rows:
        return
    formats = formats or {}
    same = _set_apart(names, rows, formats) if sys.stdout.isatty() and len(rows) <= _LINES else {}
    if same:
        kept = [i for i, name in enumerate(names) if name not in same]
        names, rows = [names[i] for i in kept], [tuple(row[i] for i in kept) for row in rows]
    head, line, columns = [], [], []
    for i, name in enumerate(names):
        to_text = formats.get(name)
        number = _NUMBERS.get(type(rows[0][i]))
        kind = number if number and not to_text else "s"
        side, width = "" if number else "-", len(name)
        column = partial(_column, rows, i, to_text)
        is_plain = kind != "s" or all(map(str.isascii, column()))
        cells = len if is_plain else _cells()
        if i < len(names) - 1 or number:  # at the end of a line, text needs no width
            width = max(width, _width(column(), kind, cells))
        head.append(f"%{side}{width}s")
        line.append(f"%{side}{width}{kind}" if is_plain else "%s")
        columns.append(column() if is_plain else _padded(column(), width, cells))
    click.echo(("  ".join(head) % tuple(names)).rstrip())
    # Values go from function to function and no text is kept: there may be a million rows.
    texts = map(str.rstrip, map("  ".join(line).__mod__, zip(*columns, strict=True)))
    for lines in _portions(map(plain_line, texts)):
        click.echo("\n".join(lines))
    if said := ", ".join(f"{name} {text}" for name, text in same.items() if text):
        click.echo(f"  {'all: ' * (len(rows) > 1)}{plain_line(said)}")


def _set_apart(
    names: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
    formats: Mapping[str, Callable[[Any], str]],
) -> dict[str, str]:
    """Return, by name, the texts that fill columns for which the terminal is too narrow, the last columns first."""
    texts: list[list[str]] = []
    for i, name in enumerate(names):
        to_text = formats.get(name) or f"{{:{_NUMBERS.get(type(rows[0][i]), '')}}}".format
        texts.append([*_column(rows, i, to_text)])
    widths = [
        max(map(_cells(), [name, *column])) for name, column in zip(names, texts, strict=True)
    ]
    over = sum(widths) + 2 * (len(names) - 1) - shutil.get_terminal_size().columns
    found: dict[str, str] = {}
    for i in reversed(range(1, len(names))):
        is_text = names[i] in formats or type(rows[0][i]) not in _NUMBERS
        if over > 0 and is_text and len({*texts[i]}) == 1:
            found[names[i]] = texts[i][0]
            over -= widths[i] + 2
    return found


def _column(
    rows: Sequence[tuple[Any, ...]], i: int, to_text: Callable[[Any], str] | None
) -> Iterator[Any]:
    values = map(itemgetter(i), rows)
    return map(to_text, values) if to_text else values


def _width(values: Iterator[Any], kind: str, cells: Callable[[str], int]) -> int:
    """Return the cells of a terminal that the longest of the values takes."""
    if kind == "s":
        return max(map(cells, values))
    numbers = [*values]  # of numbers it is the smallest or the largest
    return max(len(f"%{kind}" % end) for end in (min(numbers), max(numbers)))


def _padded(texts: Iterator[str], width: int, cells: Callable[[str], int]) -> Iterator[str]:
    return (text + " " * (width - cells(text)) for text in texts)


def _cells() -> Callable[[str], int]:
    """Return the function that counts the cells of a text: some characters take two, some none."""
    from rich.cells import cell_len

    return cell_len


def _portions(lines: Iterable[T]) -> Iterator[list[T]]:
    lines = iter(lines)
    while portion := list(islice(lines, _LINES)):
        yield portion
