"""CachedLongVA as a model of VLMEvalKit, and what its models of other families share with it."""

from __future__ import annotations

import gc
import os
from functools import lru_cache
from typing import Any

from featstore.defaults import BENCHMARK_MAX_NEW_TOKENS, NFRAME, SAMPLING
from featstore.errors import FeatstoreError, VideoError
from featstore.integrations.benchmarks import canonical_dataset, video_id
from featstore.integrations.harness_model import LASTING_ERRORS, choose_storage, note_unanswered
from featstore.integrations.vlmevalkit.find_vlmevalkit import import_vlmevalkit
from featstore.integrations.vlmevalkit.message import read_message
from featstore.sampling import Sampling
from featstore.system.logs import show_on_stderr

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

# Videos that the models of this process left out, as `dataset/video`, and the reasons.
unanswerable: dict[str, str] = {}


class AnsweringMixin:
    """A video model whose questions may fail one by one, if `keep_going` is set."""

    VIDEO_LLM = True
    INTERLEAVE = False
    _keep_going = False

    def generate(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """Return the answer to a message; FAIL_MSG if it cannot be answered and `keep_going` is set."""
        try:
            return self._generate(message, dataset)
        except LASTING_ERRORS:
            raise
        except FeatstoreError as exc:
            if not self._keep_going:
                raise
            return _fail(message, canonical_dataset(dataset or ""), exc)

    def _generate(self, message: list[dict[str, Any]], dataset: str | None) -> str:
        try:
            answer: str = super().generate(message, dataset)  # type: ignore[misc]
            return answer
        except AssertionError as exc:  # VLMEvalKit's, without a message, if a file is missing
            for item in _shown(message):
                if not os.path.isfile(item["value"]):
                    path = item["value"]
                    raise VideoError(
                        f"{path} is missing or is not a file; put it back", path
                    ) from exc
            raise


class LongVAMixin(AnsweringMixin):
    """LongVA_Cached without VLMEvalKit's BaseModel.

    Attributes:
        nframe: Number of frames. VLMEvalKit sets it to the dataset's before a question, if it is above 0.
    """

    nframe: int

    def __init__(
        self,
        model_path: str | os.PathLike[str] = "lmms-lab/LongVA-7B",
        cache_dir: str | os.PathLike[str] | None = None,
        enable_cache: bool = True,
        *,
        nframe: int = NFRAME,
        sampling: str = SAMPLING,
        quantize: str | None = None,
        scale: str | None = None,
        codec: str | None = None,
        keep_going: bool = False,
        **options: Any,
    ) -> None:
        """Load the language model of a checkpoint.

        Args:
            model_path: Folder of the checkpoint, or its id on the Hub.
            cache_dir: The cache directory; required unless `enable_cache` is False.
            enable_cache: False for the uncached model in the same code; `cache_dir` is then ignored.
            nframe: Number of frames per video.
            sampling: Which frames, as for `featstore ingest --sampling`.
            quantize: How features are stored if a miss makes their feature set, which every later miss follows; with
                `scale` and `codec` as for `featstore ingest`.
            scale: Granularity of int8's scales.
            codec: How the payload is compressed.
            keep_going: If a video or image cannot be read, answer with VLMEvalKit's FAIL_MSG, which its --reuse asks
                again, instead of raising an exception that ends the whole dataset.
            **options: Those in GENERATION apply to each answer, the others, such as `decoder`, to
                featstore.models.CachedLongVA.
        """
        super().__init__()
        store = choose_store("LongVA_Cached", cache_dir, enable_cache)
        from featstore.models.longva.model import CachedLongVA

        self.nframe = nframe
        self._keep_going = keep_going
        self._generation = {"max_new_tokens": BENCHMARK_MAX_NEW_TOKENS} | {
            name: options.pop(name) for name in GENERATION & options.keys()
        }
        self.model = CachedLongVA(
            model_path,
            store,
            sampling=Sampling.parse(sampling, nframe),
            storage=choose_storage(quantize, scale, codec),
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


def choose_store(
    name: str, cache_dir: str | os.PathLike[str] | None, enable_cache: bool
) -> str | os.PathLike[str] | None:
    """Return the cache directory of a model called `name` that is about to be loaded, None for no store."""
    show_on_stderr()
    if enable_cache and cache_dir is None:
        raise FeatstoreError(
            f"{name} has cache_dir=None; name the cache directory, or pass enable_cache=False to "
            "decode and encode for every question"
        )
    # After a failed dataset VLMEvalKit builds the model again; a traceback may still refer to the first one.
    gc.collect()
    return cache_dir if enable_cache else None


def _shown(message: Any) -> list[dict[str, Any]]:
    return [item for item in message if isinstance(item, dict) and item.get("type") != "text"]


def _fail(message: list[dict[str, Any]], dataset: str, error: FeatstoreError) -> str:
    """Record the reason once per video, and return what VLMEvalKit writes in place of the answer."""
    about = next((video_id(dataset, item["value"]) for item in _shown(message)), "text")
    note_unanswered(unanswerable, f"{dataset}/{about}", error)
    answer: str = import_vlmevalkit("vlmeval.inference_video").FAIL_MSG
    return answer


@lru_cache(maxsize=1)
def longva_cached() -> Any:
    """Return LongVA_Cached: the mixin with VLMEvalKit's BaseModel. Raises MissingExtra without VLMEvalKit."""
    base = import_vlmevalkit("vlmeval.vlm.base").BaseModel
    return type("LongVA_Cached", (LongVAMixin, base), {"__module__": __name__, "__doc__": _DOC})


_DOC = """LongVA in VLMEvalKit, answering from stored features; see LongVAMixin."""
