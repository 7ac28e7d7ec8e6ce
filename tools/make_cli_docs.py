"""Writes docs/cli.md from the commands' own help."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from featstore.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """# The command line

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 an error, 2 wrong usage, 3 some videos
failed, 130 interrupted. This page is made by `tools/make_cli_docs.py` from each command's `--help`.
"""


def render() -> str:
    """Return the page."""
    parts = [HEAD]
    for name, command in sorted(main.commands.items()):
        context = click.Context(command, info_name=f"featstore {name}", terminal_width=100)
        parts.append(f"## featstore {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


@click.command()
@click.option("--check", is_flag=True, help="Only compare; exit 1 where the page is out of date.")
def write(check: bool) -> None:
    """Write docs/cli.md."""
    text = render()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE} is out of date; run python tools/make_cli_docs.py")


if __name__ == "__main__":
    write()
