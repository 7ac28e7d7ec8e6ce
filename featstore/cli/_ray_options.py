"""The options of `featstore ingest` for a Ray cluster, and what they mean together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featstore import defaults
from featstore.cli._encoder_options import encoder_recipe
from featstore.cli._ingest_options import choose_encoder
from featstore.cli._options import FiniteRange, option_group, usage_errors
from featstore.cli._sources import option_of

if TYPE_CHECKING:
    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.cluster.ray_engine import RayEngine

ray_options = option_group(
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default=defaults.ENGINE,
        help="What decodes and encodes: processes of this machine, or workers on a Ray cluster; this machine writes. "
        "ray needs featstore[ray], and the videos under the same paths on all nodes.",
    ),
    click.option(
        "--address",
        help="With --engine ray: the cluster to join, auto for the one of this machine.  "
        "[default: RAY_ADDRESS, or a cluster of this machine alone that ends with the ingest]",
    ),
    click.option(
        "--workers",
        "ray_workers",
        type=click.IntRange(1),
        help="With --engine ray: number of workers.  [default: as many as fit]",
    ),
    click.option(
        "--gpus-per-worker",
        type=FiniteRange(0, 1),
        help="With --engine ray: GPUs that a worker takes, 0 to encode on the CPU, 0.5 for two workers a GPU; "
        "--decode-workers is then the decoders of a worker.  [default: 1; 0 with --device cpu or --encoder toy]",
    ),
)


def choose_engine(
    options: dict[str, Any],
) -> tuple[Encoder | list[EncoderRecipe], RayEngine | None]:
    """Return the encoder, or recipes, and the engine; no engine for processes of this machine."""
    names = ("address", "ray_workers", "gpus_per_worker")
    if options["engine"] == "local":
        given = [name for name in names if options[name] is not None]
        if given:
            option = option_of(given[0].removeprefix("ray_"))
            raise click.UsageError(f"{option} is for workers of Ray: add --engine ray")
        return choose_encoder(options), None
    from featstore.encoders.registry import encoder_class
    from featstore.pipeline.cluster.ray_engine import RayEngine

    device, gpus = options["devices"], options["gpus_per_worker"]
    if device not in ("auto", "cpu", "cuda"):
        raise click.BadParameter(
            f"{device!r}: under Ray each worker has the GPU that it is given; leave it out, or write cpu",
            param_hint="--device",
        )
    if gpus is None:
        gpus = 0.0 if device == "cpu" or options["encoder_name"] == "toy" else 1.0
    if gpus and device == "cpu":
        raise click.UsageError("--device cpu leaves GPUs idle: take --gpus-per-worker 0")
    # This machine may have no GPU, and must expect what the workers make on theirs.
    dtype = options["dtype"]
    if gpus and dtype == "auto":
        with usage_errors():
            dtype = getattr(encoder_class(options["encoder_name"]), "cuda_dtype", "auto")
    options = {**options, "dtype": dtype, "devices": "cpu"}
    recipe = encoder_recipe(options, "cuda" if gpus else "cpu")
    engine = RayEngine(recipe, options["address"], options["ray_workers"], gpus)
    return choose_encoder(options), engine
