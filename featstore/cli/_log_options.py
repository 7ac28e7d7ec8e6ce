"""`--quiet`, `--verbose` and `--log-file`, which the commands that take long have."""

from __future__ import annotations

import logging
from functools import partial

import click

from featstore.cli._options import option_group
from featstore.cli._streams import keep_log, show_log

_SHOWN = "featstore.shown"


def _choose_level(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        if ctx.meta.setdefault(_SHOWN, option.name) != option.name:
            raise click.UsageError("--quiet and --verbose are opposites: pass one of them")
        show_log(logging.WARNING if option.name == "quiet" else logging.DEBUG)


def _open_file(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None:
        try:
            keep_log(value)
        except OSError as exc:
            raise click.BadParameter(f"{value} cannot be written: {exc.strerror}") from exc


_level_option = partial(click.option, is_flag=True, expose_value=False, callback=_choose_level)

# What they say is done before the command starts.
log_options = option_group(
    _level_option(
        "--quiet", "-q", help="Show warnings and errors on stderr, and neither progress nor notes."
    ),
    _level_option(
        "--verbose",
        "-v",
        help="Also show details on stderr, such as a line for each video that is ingested.",
    ),
    click.option(
        "--log-file",
        type=click.Path(dir_okay=False),
        expose_value=False,
        callback=_open_file,
        help="Add all of this to a file, each line with its time in UTC, also if --quiet shows less.",
    ),
)
