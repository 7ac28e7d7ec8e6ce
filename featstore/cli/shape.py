"""featstore shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from featstore import defaults
from featstore.cli._options import json_option, model_option, tower_option
from featstore.cli._printing import print_facts, print_json, print_table
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from featstore.encoders.alike import Sight

_WEIGHTS_DIGITS = 12


@click.command()
@click.argument("checkpoints", nargs=-1, metavar="[CHECKPOINT]...")
@model_option
@tower_option
@click.option(
    "--nframe",
    type=click.IntRange(1, 65536),
    default=defaults.NFRAME,
    help="Number of frames of the video.",
)
@json_option
@click.pass_context
def shape(
    context: click.Context,
    checkpoints: tuple[str, ...],
    model_path: str | None,
    vision_tower: str | None,
    nframe: int,
    as_json: bool,
) -> None:
    """Show the shape and size of a checkpoint's features without reading its weights.

    Given two or more CHECKPOINTs, of LongVA or of the video models that featstore knows, show which of them see alike:
    whose vision weights are equal, so that features are stored once for all. Only the vision weights are read.
    """
    if checkpoints:
        given = context.get_parameter_source("nframe") is not click.core.ParameterSource.DEFAULT
        if model_path or vision_tower or given:
            raise click.UsageError(
                "several checkpoints are compared without --model-path, --vision-tower and --nframe"
            )
        if len(checkpoints) == 1:
            raise click.UsageError(
                "name two checkpoints or more to compare, or one with --model-path"
            )
        from featstore.encoders.alike import compare_sight

        _print_sights(compare_sight(checkpoints), as_json)
        return
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


def _print_sights(sights: list[Sight], as_json: bool) -> None:
    if as_json:
        print_json([sight.to_dict() for sight in sights])
        return
    rows = [
        (
            sight.checkpoint,
            sight.encoder,
            sight.weights[:_WEIGHTS_DIGITS],
            "" if sight.like == sight.checkpoint else sight.like,
            ", ".join(sight.differing),
        )
        for sight in sights
    ]
    print_table(("checkpoint", "encoder", "vision weights", "sees like", "but for"), rows)
