"""Options that several commands share."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import click

from featstore.errors import FeatstoreError, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)}


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what an encoder says of its options, a ValueError of nobody's, into wrong usage."""
    try:
        yield
    except FeatstoreError:
        raise
    except ValueError as exc:
        raise click.UsageError(plain(str(exc))) from exc


def size(text: str) -> int:
    """Return the bytes that `500MB`, `2GiB` or a plain number stand for."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise click.BadParameter(f"{text!r} is no size; write 500MB, 2GiB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2]])


def not_empty(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse an empty path, as of a variable that is not set: it would stand for the current folder."""
    if value == "":
        raise click.BadParameter("it is empty; name a folder")
    return value


cache_dir_option = click.option(
    "--cache-dir",
    required=True,
    callback=not_empty,
    type=click.Path(file_okay=False),
    help="The folder that holds the store, one folder in it a dataset.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
model_option = click.option(
    "--model-path",
    metavar="CHECKPOINT",
    help="A LongVA checkpoint: a local folder, or an id on the Hugging Face Hub.",
)
tower_option = click.option(
    "--vision-tower",
    type=click.Path(exists=True, file_okay=False),
    help="The CLIP folder that the checkpoint names, where it cannot be found by that name.",
)
nframe_option = click.option(
    "--nframe",
    type=click.IntRange(1, 65536),
    default=128,
    show_default=True,
    help="Frames a video; with fps sampling the most that are taken.",
)


def digits(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse first digits that are none, as of a variable that is not set: they would stand for everything."""
    if value == "":
        raise click.BadParameter(
            "it is empty; give 4 or more first digits of a feature set's digest"
        )
    return value


spec_option = click.option(
    "--spec",
    callback=digits,
    help="First digits (4 or more) of a feature set's digest, where a dataset has several.",
)
