"""Generating: one prompt's way to its answer.

An answer starts from the keys and values of a cached prefix if there is one for its video.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import torch

from featstore.models.generating.base import PromptAnswerer, generate_options
from featstore.models.generating.growing import growing_cache
from featstore.models.generating.layers import FastLayers
from featstore.models.generating.prefix import CACHE
from featstore.models.generating.restoring import configs_restored
from featstore.models.longva.prompt import splice
from featstore.torch.forked import computing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import DynamicCache

    from featstore.models.generating.settings import GenerationSettings
    from featstore.models.longva.language import Language
    from featstore.models.statistics import CacheStatistics
    from featstore.models.visual_input import VisualInput

# transformers' warning about these options beside a prompt of embeddings; the original ignores it, too.
_EXPECTED = re.compile(
    "Passing `(repetition_penalty|no_repeat_ngram_size)` with `inputs_embeds`", re.IGNORECASE
)


class Answerer(PromptAnswerer):
    """Answers one prompt at a time; see PromptAnswerer."""

    def __init__(
        self,
        language: Language,
        device: torch.device,
        statistics: CacheStatistics,
        *,
        prefix_cache: int,
    ) -> None:
        """Start with no prefix.

        Args:
            language: the language model.
            device: the device it is on.
            statistics: counts the seconds of generating.
            prefix_cache: number of videos whose prefixes are kept.
        """
        super().__init__(language.model, statistics, prefix_cache=prefix_cache)
        self._language = language
        self._device = device
        self._layers = FastLayers(language.model)
        self._layers.make()

    def answer(
        self,
        parts: Sequence[list[int]],
        visuals: Sequence[VisualInput],
        settings: GenerationSettings,
    ) -> list[int]:
        """Return the token ids of the answer to a prompt.

        Args:
            parts: the token ids before, between and after the visual inputs.
            visuals: one after each of `parts` but the last.
            settings: how to generate.
        """
        with self._lock, computing(self._device):
            rows = sum(map(len, parts)) + sum(visual.rows for visual in visuals)
            if not self._may_share(visuals, rows) or not self.prefixes.serves(settings.config):
                return self._generate(self._embed(parts, visuals), settings)
            (shared, *others), (video, *images) = parts, visuals
            kind = self._device.type
            cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
            key = (tuple(shared), video.identity, cast)  # another dtype makes another prefix
            with self.prefixes.extended(key, lambda: self._prefix(shared, video)) as cache:
                embeds = self._embed(others, images)
                # transformers wants embeddings for the cached rows as well, and never reads them.
                unread = embeds.new_zeros(1, rows - embeds.shape[1], embeds.shape[2])
                return self._generate(torch.cat((unread, embeds), dim=1), settings, cache)

    def close(self) -> None:
        """Let go of the prefixes and of graphs."""
        with self._lock:
            super().close()
            self._layers.clear()

    def _may_share(self, visuals: Sequence[VisualInput], rows: int) -> bool:
        """Return whether another prompt may start with the same rows: those of a known video, nothing cut off."""
        limit = self._language.max_length
        return (
            bool(visuals) and visuals[0].identity is not None and (limit is None or rows <= limit)
        )

    def _prefix(self, shared: list[int], video: VisualInput) -> DynamicCache:
        embeds = self._embed([shared, []], [video])
        with self._statistics.timed("seconds_generating"):
            return self.prefixes.prefill(embeds)

    def _embed(self, parts: Sequence[list[int]], visuals: Sequence[VisualInput]) -> torch.Tensor:
        features = [visual.load() for visual in visuals]  # each (rows, D)
        language = self._language
        return splice(
            language.embed, parts, features, device=self._device, max_length=language.max_length
        )

    def _generate(
        self, embeds: torch.Tensor, settings: GenerationSettings, cache: Any = None
    ) -> list[int]:
        if cache is None and self.prefixes.extends(settings.config):
            cache = growing_cache()
        with self._statistics.timed("seconds_generating"), self._layers.used():
            return generate(self._language, embeds, settings, cache)


def generate(
    language: Language, embeds: torch.Tensor, settings: GenerationSettings, cache: Any = None
) -> list[int]:
    """Return the token ids that follow a prompt, without those of the prompt.

    Args:
        language: the language model.
        embeds: the prompt's embeddings (1, L, D).
        settings: how to generate.
        cache: keys and values of the prompt's first rows, which are not computed again; the rest of the prompt and the
            answer are appended to it.
    """
    options = generate_options(settings, language.tokenizer)
    if cache is not None:
        options[CACHE] = cache
    _ignore_expected_warning()
    with torch.inference_mode(), configs_restored(language.model):
        found = language.model.generate(inputs_embeds=embeds, **options)
    ids: list[int] = found[0].tolist()
    return ids


def _ignore_expected_warning() -> None:
    # For good, and not with catch_warnings: that restores the whole process's filters to what they were when it
    # started, even if other threads have changed them.
    if not any(found[1] == _EXPECTED for found in warnings.filters):
        warnings.filterwarnings("ignore", message=_EXPECTED.pattern)
