"""Compare answers of tiny video models from int8 features with those from the encoder's own; weights are random."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from make_sample_clips import make_sample_clips
from make_tiny_video_model import FAMILIES, make_tiny_video_model

from featstore.models import CachedVideoModel
from featstore.records.storage import Storage
from featstore.sampling import Sampling

QUESTIONS = ("What color is the ball?", "Does the eye close?", "Which bar is the widest?")
SEEDS = (0, 1)


@click.command()
@click.option("--max-new-tokens", default=24, show_default=True, help="Tokens of an answer.")
def main(max_new_tokens: int) -> None:
    """Print for each family how many greedy answers are the same, and the mean KL of the next token."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        clips = sorted(make_sample_clips(root / "clips"))
        for family in FAMILIES:
            same, divergences = 0, []
            for seed in SEEDS:
                checkpoint = make_tiny_video_model(root / f"{family}-{seed}", family, seed=seed)
                options = _options(family)
                wanted = _answers(CachedVideoModel(checkpoint, **options), clips, max_new_tokens)
                options |= {"dataset": "demo", "storage": Storage("int8", "channel_token")}
                cache = root / f"cache-{family}-{seed}"
                _answers(CachedVideoModel(checkpoint, cache, on_miss="encode", **options), clips, 1)
                model = CachedVideoModel(checkpoint, cache, **options)
                found = _answers(model, clips, max_new_tokens)
                if model.statistics.misses:
                    raise click.ClickException("features were not stored")
                for (ids, logits), (other, theirs) in zip(wanted, found, strict=True):
                    same += ids == other
                    divergences.append(_divergence(ids, logits, other, theirs))
            mean = sum(divergences) / len(divergences)
            click.echo(
                f"{family}: {same} of {len(divergences)} answers the same, mean KL {mean:.1e}"
            )


def _options(family: str) -> dict[str, Any]:
    if family == "llava_onevision":
        return {"device": "cpu", "sampling": Sampling(8, "linspace"), "prefix_cache": 0}
    small = {"min_pixels": 4 * 1024, "max_pixels": 12 * 1024}
    return {"device": "cpu", "sampling": Sampling(8, "qwen"), "prefix_cache": 0, **small}


def _answers(
    model: CachedVideoModel, clips: list[Path], length: int
) -> list[tuple[list[int], torch.Tensor]]:
    """Return ids and logits of the greedy answer to each question on each clip."""
    answers = []
    with model:
        for path in clips:
            for question in QUESTIONS:
                steps: list[torch.Tensor] = []

                def keep(_: Any, scores: Any, steps: list[torch.Tensor] = steps) -> Any:
                    steps.append(scores.clone())
                    return scores

                ids = model.generate_ids(
                    question,
                    path.stem,
                    path=path,
                    max_new_tokens=length,
                    logits_processor=[keep],
                )
                answers.append((ids, torch.cat(steps)))
    return answers


def _divergence(
    ids: list[int], logits: torch.Tensor, other: list[int], theirs: torch.Tensor
) -> float:
    """Return the mean KL in nats of the steps up to the first token that differs, whose contexts are the same."""
    pairs = zip(ids, other, strict=False)
    steps = next((i + 1 for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(other)))
    p, q = (torch.log_softmax(values[:steps].double(), dim=-1) for values in (logits, theirs))
    return float((p.exp() * (p - q)).sum(-1).mean())


if __name__ == "__main__":
    main()
