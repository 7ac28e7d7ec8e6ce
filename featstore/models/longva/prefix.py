"""What several questions on one video share, computed once: keys and values of the prompt up to the video's end.

At 128 frames the shared part is 18,452 of some 18,500 rows, and 1.06 GB of a 7B model's keys and values. It is computed
apart from the question, for the first question as for the later ones, so that one video's questions are all answered by
the same arithmetic, in whatever order they come. In float32 the tokens are those of a prompt computed at once. In half
precision the last bits of keys and values differ, as they do between batch sizes: of two tokens nearly as likely the
other one may win.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.generation.configuration_utils import GenerationMode

from featstore.models.longva.generation import CACHE

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from transformers import GenerationConfig


class PrefixCache:
    """The prefixes of the last few videos, the least recently used given up first."""

    def __init__(self, model: Any, videos: int) -> None:
        """Keep prefixes of so many videos on the device of `model`, a Qwen2ForCausalLM; 0 keeps none."""
        self._model = model.model  # without the head: no logits of a prefix are wanted
        full = all(kind == "full_attention" for kind in model.config.layer_types)
        self._videos = videos if full else 0  # a sliding window forgets what would be cut back to
        self._kept: OrderedDict[Hashable, DynamicCache] = OrderedDict()

    def serves(self, config: GenerationConfig) -> bool:
        """Return whether generating so can begin from a prefix: one token at a time, on one sequence."""
        return (
            self._videos > 0
            and config.get_generation_mode()
            in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
            and (config.num_return_sequences or 1) == 1
            and config.guidance_scale is None
            and config.cache_implementation is None
            and config.prefill_chunk_size is None
        )

    @torch.inference_mode()
    def prefill(self, embeds: torch.Tensor) -> DynamicCache:
        """Return the keys and values of the prefix `embeds` (1, P, D)."""
        cache = DynamicCache()
        self._model(inputs_embeds=embeds, use_cache=True, **{CACHE: cache})
        return cache

    @contextmanager
    def extended(self, key: Hashable, make: Callable[[], DynamicCache]) -> Iterator[DynamicCache]:
        """Give the keys and values of the prefix `key`, to be extended inside; they are cut back after.

        make: called where they are not kept; see `prefill`. After an exception nothing of them is kept.
        """
        cache = self._kept.pop(key, None)
        if cache is None:
            while len(self._kept) >= self._videos:
                self._kept.popitem(last=False)  # before the new one is made: a gigabyte each
            cache = make()
        length = cache.get_seq_length()
        yield cache
        grown = cache.get_seq_length() - length
        if grown:
            cache.crop(-grown)  # as all of transformers 5 read it: so many off the end
        self._kept[key] = cache

    def clear(self) -> None:
        """Give up all prefixes."""
        self._kept.clear()

    def __len__(self) -> int:
        """Return the number of videos whose prefix is kept."""
        return len(self._kept)
