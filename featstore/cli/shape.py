"""featstore shape."""

from __future__ import annotations

import click

from featstore import defaults
from featstore.cli._options import json_option, model_option, tower_option
from featstore.cli._printing import print_facts, print_json, print_table
from featstore.system.filesystems import format_bytes


@click.command()
@model_option
@tower_option
@click.option(
    "--nframe",
    type=click.IntRange(1, 65536),
    default=defaults.NFRAME,
    help="Number of frames of the video.",
)
@json_option
def shape(model_path: str | None, vision_tower: str | None, nframe: int, as_json: bool) -> None:
    """Show the shape and size of a checkpoint's features without reading its weights."""
    from featstore.encoders.longva.shape import feature_shape

    if not model_path:
        raise click.UsageError("name the checkpoint with --model-path")
    found = feature_shape(model_path, nframe, vision_tower=vision_tower)
    if as_json:
        print_json(found.to_dict())
        return
    print_facts(
        {
            "frames": found.frames,
            "tokens a frame": found.tokens_per_frame,
            "rows": found.rows,
            "width": found.width,
        }
    )
    click.echo("bytes a video:")
    rows = [(name, size, format_bytes(size)) for name, size in found.stored_bytes().items()]
    print_table(("stored as", "bytes", ""), rows)
