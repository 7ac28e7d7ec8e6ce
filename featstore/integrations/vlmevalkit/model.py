"""CachedLongVA as VLMEvalKit sees a model."""

from __future__ import annotations

import gc
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError
from featstore.integrations.vlmevalkit.message import read_message
from featstore.integrations.vlmevalkit.names import NFRAME, canonical_dataset, video_id
from featstore.sampling import Sampling

if TYPE_CHECKING:
    import os

# LLaVA's models in VLMEvalKit may answer as long; greedy, so that a score can be had twice.
MAX_NEW_TOKENS = 2048
GENERATION = frozenset(
    (
        "do_sample",
        "max_new_tokens",
        "min_new_tokens",
        "num_beams",
        "repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
    )
)


class LongVAMixin:
    """All of LongVA_Cached but VLMEvalKit's BaseModel.

    nframe: VLMEvalKit sets it to the dataset's number of frames before a question; it must be above 0 for that.
    """

    VIDEO_LLM = True
    INTERLEAVE = False
    nframe: int

    def __init__(
        self,
        model_path: str | os.PathLike[str] = "lmms-lab/LongVA-7B",
        cache_dir: str | os.PathLike[str] | None = None,
        enable_cache: bool = True,
        *,
        nframe: int = NFRAME,
        sampling: str = "linspace",
        **options: Any,
    ) -> None:
        """Load the language side of the checkpoint `model_path`.

        enable_cache: False for the uncached model, by the same code; cache_dir is not looked at then. sampling: which
        frames, as `featstore ingest --sampling` says it. options: those of GENERATION go to each answer, the others
        to featstore.longva.CachedLongVA.
        """
        super().__init__()
        if enable_cache and cache_dir is None:
            raise FeatstoreError(
                "LongVA_Cached has cache_dir=None; name the folder of the store, or pass enable_cache=False to "
                "decode and encode for every question"
            )
        from featstore.longva.cached import CachedLongVA

        self.nframe = nframe
        self._generation = {"max_new_tokens": MAX_NEW_TOKENS} | {
            name: options.pop(name) for name in GENERATION & options.keys()
        }
        gc.collect()  # VLMEvalKit builds a model again after a dataset that failed; the first may hang in its traceback
        self.model = CachedLongVA(
            model_path,
            cache_dir if enable_cache else None,
            sampling=Sampling.parse(sampling, nframe),
            **options,
        )

    def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """Return the answer to a message about at most one video."""
        question = read_message(message)
        name = canonical_dataset(dataset or "")
        return self.model.generate(
            question.prompt,
            None if question.video is None else video_id(name, question.video),
            dataset=name or None,
            path=question.video,
            nframe=self.nframe,
            images=question.images,
            **self._generation,
        )


@lru_cache(maxsize=1)
def longva_cached() -> Any:
    """Return LongVA_Cached, the mixin on VLMEvalKit's BaseModel; MissingExtra where there is no VLMEvalKit."""
    from featstore.integrations.vlmevalkit.kit import import_kit

    base = import_kit("vlmeval.vlm.base").BaseModel
    return type("LongVA_Cached", (LongVAMixin, base), {"__module__": __name__, "__doc__": _DOC})


_DOC = """LongVA in VLMEvalKit, answering from stored features; see LongVAMixin."""
