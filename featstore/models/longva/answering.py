"""From a prompt's parts and features to an answer, beginning from a kept prefix where one serves."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from featstore.models.longva.generation import Manner, generate
from featstore.models.longva.prefix import PrefixCache
from featstore.models.longva.prompt import splice
from featstore.system.forks import tell_of_forks
from featstore.torch.forked import computing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import DynamicCache

    from featstore.models.longva.language import Language
    from featstore.models.source import Visual
    from featstore.models.statistics import CacheStatistics


class Answerer:
    """Answers one prompt at a time, for whichever thread's turn it is.

    prefixes: keys and values kept between prompts.
    """

    def __init__(
        self,
        language: Language,
        device: torch.device,
        statistics: CacheStatistics,
        *,
        prefix_cache: int,
    ) -> None:
        """Keep prefixes of `prefix_cache` videos; seconds go into `statistics`."""
        self._lock = threading.RLock()
        self.prefixes = PrefixCache(language.model, prefix_cache)
        self._language = language
        self._device = device
        self._statistics = statistics
        tell_of_forks(self)

    def after_fork(self) -> None:
        """Let go of a lock that a thread of the parent may hold."""
        self._lock = threading.RLock()

    def close(self) -> None:
        """Let go of the prefixes."""
        with self._lock:
            self.prefixes.clear()

    def answer(
        self, parts: Sequence[list[int]], visuals: Sequence[Visual], manner: Manner
    ) -> list[int]:
        """Return the ids that answer the prompt `parts`, one of `visuals` after each but the last."""
        with self._lock, computing(self._device):
            return self._answer(parts, visuals, manner)

    def _answer(
        self, parts: Sequence[list[int]], visuals: Sequence[Visual], manner: Manner
    ) -> list[int]:
        rows = sum(map(len, parts)) + sum(visual.rows for visual in visuals)
        if not self._begins_alike(visuals, rows) or not self.prefixes.serves(manner.config):
            return self._generate(self._embed(parts, visuals), manner)
        (shared, *others), (video, *images) = parts, visuals
        kind = self._device.type
        cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        key = (tuple(shared), video.identity, cast)  # in other numbers it is another prefix
        with self.prefixes.extended(key, lambda: self._prefix(shared, video)) as cache:
            embeds = self._embed(others, images)
            # transformers wants embeddings for the rows in the cache as well, and never reads them.
            unread = embeds.new_zeros(1, rows - embeds.shape[1], embeds.shape[2])
            return self._generate(torch.cat((unread, embeds), dim=1), manner, cache)

    def _begins_alike(self, visuals: Sequence[Visual], rows: int) -> bool:
        """Return whether another prompt may begin with the same rows: those of a known video, nothing cut off."""
        limit = self._language.max_length
        return (
            bool(visuals) and visuals[0].identity is not None and (limit is None or rows <= limit)
        )

    def _prefix(self, shared: list[int], video: Visual) -> DynamicCache:
        embeds = self._embed([shared, []], [video])
        with self._statistics.timed("seconds_generating"):
            return self.prefixes.prefill(embeds)

    def _embed(self, parts: Sequence[list[int]], visuals: Sequence[Visual]) -> torch.Tensor:
        features = [visual.load() for visual in visuals]  # each (rows, D)
        language = self._language
        return splice(
            language.embed, parts, features, device=self._device, max_length=language.max_length
        )

    def _generate(self, embeds: torch.Tensor, manner: Manner, cache: Any = None) -> list[int]:
        with self._statistics.timed("seconds_generating"):
            return generate(self._language, embeds, manner, cache)
