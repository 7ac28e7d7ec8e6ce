"""The prompt as LongVA builds it: the embeddings of its text with the features in between, in one row.

Template, tokenizing, splicing and truncation are the original's, in its order. A prompt that is too long loses its end,
which is the question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PLACEHOLDER = "<image>"  # where the features of a video or an image go in a text
IMAGE_TOKEN = -200  # where they go among token ids

# The conversation `qwen_1_5` of longva/conversation.py.
_BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"


def build_prompt(question: str, visuals: int) -> str:
    """Return the conversation that asks a question about videos and images.

    Args:
        question: may hold an `<image>` for each; if it holds none, they are put before its text, as lmms-eval does.
        visuals: number of videos and images.

    Raises:
        ValueError: the question holds another number of `<image>`.

    >>> build_prompt("What is this?", 1).splitlines()[2:4]
    ['<|im_start|>user', '<image>']
    """
    found = question.count(PLACEHOLDER)
    if visuals and not found:
        question = f"{' '.join([PLACEHOLDER] * visuals)}\n{question}"
    elif found != visuals:
        raise ValueError(
            f"the prompt holds {found} {PLACEHOLDER}, but {visuals} videos and images came with it; write one for "
            "each, or none at all"
        )
    return f"{_BEFORE}{question}{_AFTER}"


def tokenize(tokenizer: Any, prompt: str) -> list[int]:
    """Return the token ids of `prompt`, with IMAGE_TOKEN for each placeholder.

    The texts around a placeholder are tokenized separately, so no token spans it.
    """
    first, *others = [list(tokenizer(text).input_ids) for text in prompt.split(PLACEHOLDER)]
    return sum(([IMAGE_TOKEN, *other] for other in others), first)


def split(ids: Sequence[int]) -> list[list[int]]:
    """Return the token ids before, between and after the features.

    >>> split([5, 6, IMAGE_TOKEN, 7])
    [[5, 6], [7]]
    """
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == IMAGE_TOKEN:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def splice(
    embed: Callable[[torch.Tensor], torch.Tensor],
    parts: Sequence[Sequence[int]],
    features: Sequence[torch.Tensor],
    *,
    device: torch.device,
    max_length: int | None = None,
) -> torch.Tensor:
    """Return the embeddings (1, L, D) of a prompt with its features in place.

    Args:
        embed: token ids (n,) -> embeddings (n, D).
        parts: the token ids before, between and after the features.
        features: each (rows, D), one after each of `parts` but the last.
        device: the device of the embeddings.
        max_length: maximum number of rows, of which the first are kept; None for any number.
    """
    rows = []
    for index, part in enumerate(parts):
        rows.append(embed(torch.tensor(part, dtype=torch.long, device=device)))  # (n,) -> (n, D)
        rows += features[index : index + 1]
    return torch.cat(rows)[:max_length].unsqueeze(0)  # (L, D) -> (1, L, D)
