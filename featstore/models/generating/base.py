"""What answers prompts, one at a time, with prefixes kept between them; a family says how a prompt is computed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from featstore.models.generating.prefix import PrefixCache
from featstore.system.forks import tell_of_forks

if TYPE_CHECKING:
    from featstore.models.generating.settings import GenerationSettings
    from featstore.models.statistics import CacheStatistics


class PromptAnswerer:
    """Answers one prompt at a time; threads take turns.

    Attributes:
        prefixes: keys and values kept between prompts.
    """

    def __init__(self, model: Any, statistics: CacheStatistics, *, prefix_cache: int) -> None:
        """Start with no prefix.

        Args:
            model: the model of transformers.
            statistics: counts the seconds of generating.
            prefix_cache: number of videos whose prefixes are kept.
        """
        self._lock = threading.RLock()
        self._statistics = statistics
        self.prefixes = PrefixCache(model, prefix_cache)
        tell_of_forks(self)

    def after_fork(self) -> None:
        """Let go of a lock that a thread of the parent may hold."""
        self._lock = threading.RLock()

    def close(self) -> None:
        """Let go of the prefixes."""
        with self._lock:
            self.prefixes.clear()


def generate_options(settings: GenerationSettings, tokenizer: Any) -> dict[str, Any]:
    """Return what `generate` of transformers takes beside a prompt and a cache."""
    options = {"generation_config": settings.config, **settings.hooks}
    if settings.config.stop_strings is not None:
        options["tokenizer"] = tokenizer
    return options
