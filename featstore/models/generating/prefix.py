"""What several questions on one video share, computed once: keys and values of the prompt up to the video's end.

At 128 frames the shared part is 18,452 of some 18,500 rows, and 1.06 GB of a 7B model's keys and values. It is computed
apart from the question, for the first question as for later ones, so that all questions on a video are answered by the
same arithmetic, in any order. In float32 the tokens are those of a prompt computed at once. In half precision the last
bits of keys and values differ, as they do between batch sizes: of two almost equally likely tokens the other one may
win.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import Qwen2Model
from transformers.generation.configuration_utils import GenerationMode

from featstore.models.generating.growing import growing_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from transformers import DynamicCache, GenerationConfig

# The argument of a model's forward that takes keys and values: `cache` from transformers 5.24 on.
CACHE = (
    "cache" if "cache" in inspect.signature(Qwen2Model.forward).parameters else "past_key_values"
)


class PrefixCache:
    """The prefixes of the last few videos; the least recently used is dropped first."""

    def __init__(self, model: Any, videos: int) -> None:
        """Start empty.

        Args:
            model: a model with a head; prefixes are kept on its device.
            videos: maximum number of prefixes, 0 for none.
        """
        self._model = model.model  # without the head: a prefix needs no logits
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
        full = all(kind == "full_attention" for kind in kinds)
        self._full = full  # a sliding window forgets what would be cut back to
        self._videos = videos if full else 0
        self._kept: OrderedDict[Hashable, DynamicCache] = OrderedDict()

    def serves(self, config: GenerationConfig) -> bool:
        """Return whether generating with `config` can start from a prefix: one token at a time, on one sequence."""
        return self._videos > 0 and self.extends(config)

    def extends(self, config: GenerationConfig) -> bool:
        """Return whether generating with `config` extends one cache, that of `growing_cache` if it is given one."""
        return (
            self._full
            and config.use_cache is not False
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
        cache = growing_cache()
        self._model(inputs_embeds=embeds, use_cache=True, **{CACHE: cache})
        return cache

    @contextmanager
    def extended(self, key: Hashable, make: Callable[[], DynamicCache]) -> Iterator[DynamicCache]:
        """Give the keys and values of a prefix, which the block may extend; they are cut back when it ends.

        After an exception the prefix is dropped.

        Args:
            key: identifies the prefix.
            make: makes it if it is not cached; see `prefill`.
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
            cache.crop(-grown)  # as all of transformers 5 read it: this many off the end
        self._kept[key] = cache

    def clear(self) -> None:
        """Drop all prefixes."""
        self._kept.clear()

    def __len__(self) -> int:
        """Return the number of cached prefixes."""
        return len(self._kept)
