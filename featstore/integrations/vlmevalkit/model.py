"""CachedLongVA as VLMEvalKit sees a model."""

from __future__ import annotations

import gc
import os
import sys
from functools import lru_cache
from typing import Any

from featstore.defaults import BENCHMARK_MAX_NEW_TOKENS, NFRAME, SAMPLING
from featstore.errors import (
    CheckpointError,
    FeatstoreError,
    MissingExtra,
    StoreError,
    VideoError,
)
from featstore.integrations.benchmarks import canonical_dataset, video_id
from featstore.integrations.vlmevalkit.find_vlmevalkit import import_vlmevalkit
from featstore.integrations.vlmevalkit.message import read_message
from featstore.sampling import Sampling

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
# Errors about more than the question that is asked; the next one would fail, too.
_LASTING = (CheckpointError, MissingExtra, StoreError)

# What the models of this process could not be asked about and left out, `dataset/video`, and why.
unanswerable: dict[str, str] = {}


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
        sampling: str = SAMPLING,
        keep_going: bool = False,
        **options: Any,
    ) -> None:
        """Load the language side of the checkpoint `model_path`.

        enable_cache: False for the uncached model, by the same code; cache_dir is not looked at then. sampling: which
        frames, as `featstore ingest --sampling` says it. keep_going: answer a question whose video or image cannot be
        had with VLMEvalKit's word for a failure, FAIL_MSG, which its --reuse asks again, where otherwise the exception
        ends the whole dataset. options: those of GENERATION go to each answer, the others
        to featstore.models.CachedLongVA.
        """
        super().__init__()
        if enable_cache and cache_dir is None:
            raise FeatstoreError(
                "LongVA_Cached has cache_dir=None; name the folder of the store, or pass enable_cache=False to "
                "decode and encode for every question"
            )
        from featstore.models.longva.model import CachedLongVA

        self.nframe = nframe
        self._keep_going = keep_going
        self._generation = {"max_new_tokens": BENCHMARK_MAX_NEW_TOKENS} | {
            name: options.pop(name) for name in GENERATION & options.keys()
        }
        gc.collect()  # VLMEvalKit builds a model again after a dataset that failed; the first may hang in its traceback
        self.model = CachedLongVA(
            model_path,
            cache_dir if enable_cache else None,
            sampling=Sampling.parse(sampling, nframe),
            **options,
        )

    def generate(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """Return the answer to a message; FAIL_MSG where there can be none and the model is to keep going."""
        try:
            return self._generate(message, dataset)
        except _LASTING:
            raise
        except FeatstoreError as exc:
            if not self._keep_going:
                raise
            return _fail(message, canonical_dataset(dataset or ""), exc)

    def _generate(self, message: list[dict[str, Any]], dataset: str | None) -> str:
        try:
            answer: str = super().generate(message, dataset)  # type: ignore[misc]
            return answer
        except AssertionError as exc:  # VLMEvalKit's, without a word, where a file is not there
            for item in _shown(message):
                if not os.path.isfile(item["value"]):
                    path = item["value"]
                    raise VideoError(f"{path} is not there, or no file; put it back", path) from exc
            raise

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


def _shown(message: Any) -> list[dict[str, Any]]:
    return [item for item in message if isinstance(item, dict) and item.get("type") != "text"]


def _fail(message: list[dict[str, Any]], dataset: str, error: FeatstoreError) -> str:
    """Note why there is no answer, once a video, and return what VLMEvalKit writes in its place."""
    about = next((video_id(dataset, item["value"]) for item in _shown(message)), "text")
    if f"{dataset}/{about}" not in unanswerable:
        print(f"featstore: {error}; left unanswered: questions about it", file=sys.stderr)
        unanswerable[f"{dataset}/{about}"] = str(error)
    answer: str = import_vlmevalkit("vlmeval.inference_video").FAIL_MSG
    return answer


@lru_cache(maxsize=1)
def longva_cached() -> Any:
    """Return LongVA_Cached, the mixin on VLMEvalKit's BaseModel; MissingExtra where there is no VLMEvalKit."""
    base = import_vlmevalkit("vlmeval.vlm.base").BaseModel
    return type("LongVA_Cached", (LongVAMixin, base), {"__module__": __name__, "__doc__": _DOC})


_DOC = """LongVA in VLMEvalKit, answering from stored features; see LongVAMixin."""
