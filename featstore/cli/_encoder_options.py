"""The options that choose an encoder, and the recipe that they mean together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featstore import defaults
from featstore.cli._options import json_or_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from featstore.encoders.registry import EncoderRecipe

# Options of `--encoder transformers` only, by the names that the encoder has for them.
FROZEN = ("layer", "pool", "clip", "stride")


def _setting(ctx: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return name -> value of NAME=VALUE; a value that is a number, true, false or null in JSON is that."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise click.BadParameter(f"{pair!r} is no NAME=VALUE with a name of its own")
        value = json_or_text(text)
        found[name] = text if isinstance(value, (list, dict)) else value
    return found


ENCODER_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--encoder",
        "encoder_name",
        default=defaults.ENCODER,
        metavar="NAME",
        help="Encoder that computes the features: longva; transformers for any frozen vision model, see "
        "docs/encoders.md; toy, which needs no checkpoint and is for trying things out; or one of another package.",
    ),
    click.option(
        "--layer",
        metavar="N[,N...]",
        help="With --encoder transformers: the hidden state; several become planes.  "
        f"[default: {defaults.LAYER}, the last]",
    ),
    click.option(
        "--pool",
        type=click.Choice(["patch", "cls", "mean", "pooler", "joint"]),
        help="With --encoder transformers: all patches of a frame or clip, its class token, the mean of its patches, "
        "the model's own pooled output, or its projection into the space of texts.  "
        f"[default: {defaults.POOL}]",
    ),
    click.option(
        "--clip",
        type=click.IntRange(1, 65536),
        help="With a transformers model of clips: frames of a clip.  [default: as its config says]",
    ),
    click.option(
        "--stride",
        type=click.IntRange(1, 65536),
        help="With a transformers model of clips: frames from the start of a clip to that of the next.  "
        "[default: those of a clip]",
    ),
    click.option(
        "--encoder-option",
        "encoder_options",
        multiple=True,
        callback=_setting,
        metavar="NAME=VALUE",
        help="An option of an encoder of another package. Repeatable.",
    ),
)


def encoder_recipe(options: dict[str, Any], device: str) -> EncoderRecipe:
    """Return how the encoder is built on a device."""
    from featstore.encoders.registry import EncoderRecipe

    name = options["encoder_name"]
    words = {option: options[option] for option in FROZEN if options[option] is not None}
    if words and name != "transformers":
        raise _unused(f"--encoder {name} has no use for them", [f"--{option}" for option in words])
    if name == "toy":
        given = {
            "--model-path": options["model_path"],
            "--vision-tower": options["vision_tower"],
            "--dtype": options["dtype"] not in ("auto", "fp32"),
            "--device": device not in ("auto", "cpu"),
        }
        if unused := [option for option, there in given.items() if there]:
            raise _unused(
                "--encoder toy reads no checkpoint, and computes in fp32 on the CPU", unused
            )
    elif name in ("longva", "transformers"):
        if not options["model_path"]:
            raise click.UsageError("name the checkpoint with --model-path")
        if name == "transformers" and options["vision_tower"]:
            raise _unused("--encoder transformers has no use for them", ["--vision-tower"])
        words |= {
            "checkpoint": options["model_path"],
            **({"vision_tower": options["vision_tower"]} if name == "longva" else {}),
            "device": device,
            "dtype": None if options["dtype"] == "auto" else options["dtype"],
        }
    else:  # of another package: what is said, and nothing that it may not know
        words |= {
            "checkpoint": options["model_path"],
            "vision_tower": options["vision_tower"],
            "device": None if device == "auto" else device,
            "dtype": None if options["dtype"] == "auto" else options["dtype"],
        }
        words = {option: value for option, value in words.items() if value is not None}
    return EncoderRecipe(name, words | options["encoder_options"], options["batch_frames"])


def _unused(why: str, names: list[str]) -> click.UsageError:
    return click.UsageError(f"{why}: leave out {' and '.join(names)}")
