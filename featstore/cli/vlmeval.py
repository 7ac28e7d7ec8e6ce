"""featstore vlmeval."""

from __future__ import annotations

import click

from featstore import defaults
from featstore.cli._log_options import log_options
from featstore.cli._options import json_or_text, named_values, not_empty


@click.command()
@click.option(
    "--run-py",
    type=click.Path(exists=True, dir_okay=False),
    help="VLMEvalKit's run.py.  [default: the one in $VLMEVALKIT_ROOT, or beside the installed package]",
)
@click.option(
    "--cache-dir",
    envvar=defaults.CACHE_DIR_VARIABLE,
    show_envvar=True,
    callback=not_empty,
    type=click.Path(file_okay=False),
    help="The cache directory; missing features are added to it.",
)
@click.option(
    "--no-cache",
    is_flag=True,
    help="Decode and encode the video for every question, and store nothing.",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="NAME=CHECKPOINT",
    callback=named_values("NAME=VALUE"),
    help="Checkpoint of a model, as in LongVA-7B=/models/LongVA-7B-DPO; the same for NAME and NAME-Cached. A new name "
    "adds these two models. Repeatable.",
)
@click.option(
    "--decoder",
    type=click.Choice(["auto", "exact"]),
    help="Whose frames the models see: auto, those of the original models, or exact, those that a player shows. Each "
    "has feature sets of its own, made with --decoder of featstore ingest.  [default: auto]",
)
@click.option(
    "--option",
    "model_options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=named_values("NAME=VALUE"),
    help="An option of the model, as in dtype=fp16, on_miss=error or max_new_tokens=64. Repeatable.",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="If a video cannot be read, answer its questions with VLMEvalKit's failure message and go on. The videos are "
    "listed at the end, the exit code is 1, and run.py's --reuse asks the questions again. Without this option such a "
    "video ends its dataset.",
)
@log_options
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def vlmeval(
    run_py: str | None,
    cache_dir: str | None,
    no_cache: bool,
    checkpoints: dict[str, str],
    decoder: str | None,
    model_options: dict[str, str],
    keep_going: bool,
    arguments: tuple[str, ...],
) -> None:
    """Run VLMEvalKit on models that answer from stored features.

    ARGUMENTS are those of run.py, after two dashes: featstore vlmeval --cache-dir vision_cache -- --model
    LongVA-7B-Cached --data Video-MME_128frame. The models are LongVA-7B-Cached, LongVA-Temporal-v1-Cached,
    LongVA-Temporal-v2-Cached, Qwen2_5-VL-7B-Cached, Qwen3_VL-8B-Cached and llava-onevision-qwen2-7b-Cached, and
    without -Cached the same models without a store. On several GPUs: torchrun --nproc-per-node 8 -m featstore vlmeval
    ... The exit code is 0 if every question has an answer.
    """
    from featstore.integrations.vlmevalkit.launch import run_vlmevalkit

    if cache_dir is None and not no_cache:
        raise click.UsageError("name the store with --cache-dir, or pass --no-cache")
    options = {name: json_or_text(text) for name, text in model_options.items()}
    if decoder:
        options["decoder"] = decoder
    if keep_going:
        options["keep_going"] = True
    run_vlmevalkit(
        arguments,
        run_py,
        cache_dir=cache_dir,
        enable_cache=not no_cache,
        checkpoints=checkpoints,
        **options,
    )
