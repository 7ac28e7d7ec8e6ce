"""One greedy answer, and how far the model is from it with other features: the same tokens, the same distribution?

The model is led along the answer, so that the distributions of each step are for the same text. Where its own choice
is that of the answer in every step, its own greedy answer is the same: one run tells both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from featstore.models.compare import AnswersFromFeatures


class GreedyAnswer:
    """The greedy answer of a model to a question about a video.

    Attributes:
        ids: its tokens.
    """

    def __init__(
        self, model: AnswersFromFeatures, prompt: str, max_new_tokens: int, features: torch.Tensor
    ) -> None:
        """Ask the model.

        Args:
            model: the model.
            prompt: the question.
            max_new_tokens: maximum number of tokens of the answer.
            features: (rows, width) of the video.
        """
        self._model = model
        self._prompt = prompt
        steps = _Steps(None)
        self.ids = self._ask(features, steps, max_new_tokens)
        self._expected = steps.log_probabilities

    def compare(self, features: torch.Tensor) -> tuple[float, bool]:
        """Return what the model makes of other features of the same video.

        Args:
            features: (rows, width).

        Returns:
            The Kullback-Leibler divergence from the answer's distributions of the next token to these, in nats, on
            average over the answer; and whether the greedy answer is the same.
        """
        steps = _Steps(self.ids)
        self._ask(features, steps, len(self.ids))
        divergences = [
            float(torch.where(p > -torch.inf, p.exp() * (p - q), 0).sum())
            for p, q in zip(self._expected, steps.log_probabilities, strict=True)
        ]
        return sum(divergences) / len(divergences), steps.chosen == self.ids

    def _ask(self, features: torch.Tensor, steps: _Steps, most: int) -> list[int]:
        return self._model.answer_features(
            self._prompt, features, max_new_tokens=most, num_beams=1, logits_processor=[steps]
        )


class _Steps:
    """Stands last among transformers' logits processors: notes what the model would choose from, and may decide."""

    def __init__(self, decided: list[int] | None) -> None:
        self._decided = decided
        self.log_probabilities: list[torch.Tensor] = []  # float64 (vocabulary,), a step each
        self.chosen: list[int] = []  # the model's own choice

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.chosen.append(int(scores[0].argmax()))
        self.log_probabilities.append(scores[0].double().log_softmax(-1))
        if self._decided is None:
            return scores
        led = torch.full_like(scores, -torch.inf)
        led[0, self._decided[len(self.chosen) - 1]] = 0
        return led
