"""One prompt's way to its answer: features in place of pixels, positions computed once for the whole prompt.

Positions come from the model's own function. They are given to each call, and so is `rope_deltas`, which is state of
the model: after a question on another video it would be that one's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from xxhash import xxh3_128_digest

from featstore.models.generating.base import PromptAnswerer, generate_options
from featstore.models.generating.prefix import CACHE
from featstore.models.generating.restoring import configs_restored
from featstore.torch.forked import computing

if TYPE_CHECKING:
    from featstore.models.generating.settings import GenerationSettings
    from featstore.models.statistics import CacheStatistics
    from featstore.models.transformers_video.families import VideoFamily
    from featstore.models.transformers_video.language import VideoLanguage
    from featstore.models.transformers_video.prompt import VideoPrompt
    from featstore.models.visual_input import VisualInput


class VideoAnswerer(PromptAnswerer):
    """Answers one prompt at a time; see PromptAnswerer."""

    def __init__(
        self,
        language: VideoLanguage,
        family: VideoFamily,
        width: int,
        statistics: CacheStatistics,
        *,
        prefix_cache: int,
    ) -> None:
        """Start with no prefix.

        Args:
            language: the model.
            family: its kind.
            width: values of a plane of a row of features.
            statistics: counts the seconds of generating.
            prefix_cache: number of videos whose prefixes are kept.
        """
        super().__init__(language.model, statistics, prefix_cache=prefix_cache)
        self._model, self._tokenizer = language.model, language.tokenizer
        self._family, self._width = family, width

    def answer(
        self, prompt: VideoPrompt, video: VisualInput, settings: GenerationSettings
    ) -> list[int]:
        """Return the token ids of the answer to a prompt about a video."""
        device = self._model.device
        ids = prompt.ids.to(device)
        facts = {name: value.to(device) for name, value in prompt.facts.items()}
        with self._lock, computing(device), torch.inference_mode(), configs_restored(self._model):
            positions = self._model._prepare_position_ids_for_generation(ids, {**facts})
            deltas = getattr(self._model.model, "rope_deltas", None)
            given = {"input_ids": ids, "position_ids": positions, **facts}
            if video.identity is None or not self.prefixes.serves(settings.config):
                return self._generate(settings, given, mm_encoder_outputs=self._seen(video))
            shared = ids[:, : prompt.shared]
            placed = positions[..., : prompt.shared].cpu().numpy().tobytes()  # also by the rate
            key = (tuple(shared[0].tolist()), xxh3_128_digest(placed), video.identity)
            with self.prefixes.extended(
                key, lambda: self._prefix(shared, positions[..., : prompt.shared], facts, video)
            ) as cache:
                if deltas is not None:
                    self._model.model.rope_deltas = deltas
                return self._generate(settings, given, **{CACHE: cache})

    def _seen(self, video: VisualInput) -> dict[str, Any]:
        return {"video": self._family.outputs(video.load(), self._width)}

    def _prefix(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        facts: dict[str, torch.Tensor],
        video: VisualInput,
    ) -> DynamicCache:
        seen, cache = self._seen(video), DynamicCache()
        with self._statistics.timed("seconds_generating"):
            self._model.model(
                input_ids=ids,
                position_ids=positions,
                mm_encoder_outputs=seen,
                use_cache=True,
                **{CACHE: cache},
                **{name: value for name, value in facts.items() if name == "video_grid_thw"},
            )
        return cache

    def _generate(
        self, settings: GenerationSettings, given: dict[str, Any], **more: Any
    ) -> list[int]:
        options = generate_options(settings, self._tokenizer)
        with self._statistics.timed("seconds_generating"):
            found = self._model.generate(**given, **more, **options)
        ids: list[int] = found[0, given["input_ids"].shape[1] :].tolist()
        return ids
