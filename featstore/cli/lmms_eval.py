"""featstore lmms-eval."""

from __future__ import annotations

import click


@click.command("lmms-eval")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lmms_eval(arguments: tuple[str, ...]) -> None:
    """Run lmms-eval, with an exit code that tells whether each question has an answer.

    ARGUMENTS are those of lmms-eval, after two dashes: featstore lmms-eval -- --model longva_cached --model_args
    pretrained=lmms-lab/LongVA-7B-DPO,cache_dir=vision_cache --tasks videomme,mlvu_dev. On several GPUs: torchrun
    --nproc-per-node 8 -m featstore lmms-eval -- ... lmms-eval's own command takes the same model, and exits with 0
    whatever failed.
    """
    from featstore.integrations.lmms_eval.launch import run_lmms_eval

    run_lmms_eval(arguments)
