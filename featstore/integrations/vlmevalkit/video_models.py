"""Qwen-VL and LLaVA-OneVision as models of VLMEvalKit, with prompts, frames and options of its own classes of them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from featstore.errors import FeatstoreError
from featstore.integrations.benchmarks import canonical_dataset, video_id
from featstore.integrations.harness_model import choose_storage
from featstore.integrations.vlmevalkit.find_vlmevalkit import import_vlmevalkit
from featstore.integrations.vlmevalkit.model import GENERATION, AnsweringMixin, choose_store
from featstore.sampling import Sampling

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from featstore.models.visual_input import SampledClip

    Parts = list[dict[str, Any]]

# qwen-vl-utils takes so many frames of a video at most, by time.
_MOST_FRAMES = 768
# VLMEvalKit tells transformers' processor nothing of a video's rate, which then takes this one.
_UNKNOWN_FPS = 24.0


class VideoModelMixin(AnsweringMixin):
    """A model of transformers without VLMEvalKit's BaseModel.

    Attributes:
        nframe: Number of frames. VLMEvalKit sets it before a question, and `fps` if there is one: to the dataset's, or
            to None if the dataset states the other.
    """

    INTERLEAVE = True
    GENERATION: ClassVar[dict[str, Any]]
    nframe: int | None

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        enable_cache: bool = True,
        *,
        system_prompt: str | None = None,
        post_process: bool = False,
        quantize: str | None = None,
        scale: str | None = None,
        codec: str | None = None,
        keep_going: bool = False,
        **options: Any,
    ) -> None:
        """Load the language side of a checkpoint.

        Args:
            model_path: Folder of the checkpoint, or its id on the Hub.
            cache_dir: As for LongVA_Cached, and so are `enable_cache`, `quantize`, `scale`, `codec` and `keep_going`.
            enable_cache: False for the uncached model in the same code.
            system_prompt: The system's part of the conversation, in place of the chat template's own.
            post_process: Whether the answer is what is in its last `\\boxed{}`, if it has one.
            quantize: How features are stored if a miss makes their feature set.
            scale: Granularity of int8's scales.
            codec: How the payload is compressed.
            keep_going: Whether questions may fail one by one.
            **options: `nframe`, or `fps`; those in GENERATION apply to each answer, the others, such as `max_pixels`,
                to featstore.models.CachedVideoModel.

        Raises:
            FeatstoreError: Another engine than transformers is asked for, or no store.
        """
        super().__init__()
        for engine in ("use_vllm", "use_lmdeploy"):
            if options.pop(engine, False):
                raise FeatstoreError(
                    f"{engine}=True, but stored features go into transformers' model only; leave it out, or choose "
                    "VLMEvalKit's own model, without a store"
                )
        store = choose_store(type(self).__name__, cache_dir, enable_cache)
        from featstore.models.transformers_video.model import CachedVideoModel

        for name in ("nframe", "fps"):
            if hasattr(self, name):
                setattr(self, name, options.pop(name, getattr(self, name)))
        self._keep_going, self._post_process = keep_going, post_process
        self._system = system_prompt
        asked = {name: options.pop(name) for name in GENERATION & options.keys()}
        self._generation = {**self.GENERATION, **asked}
        if not self._generation.get("temperature", 1):
            self._generation["do_sample"] = False
        self.model = CachedVideoModel(
            model_path, store, storage=choose_storage(quantize, scale, codec), **options
        )

    def generate_inner(self, message: Parts, dataset: str | None = None) -> str:
        """Return the answer to a message about one video."""
        name, path = canonical_dataset(dataset or ""), _video_of(message)
        answer: str = self.model.generate(
            self.content(message),
            video_id(name, path),
            dataset=name or None,
            path=path,
            sampling=self.sampling(),
            sampled_fps=_UNKNOWN_FPS,
            system=self._system,
            **self._generation,
        )
        return _boxed(answer) if self._post_process else answer

    def content(self, message: Parts) -> Callable[[SampledClip], Parts]:
        """Return what makes the user's part of the conversation of a message."""
        raise NotImplementedError

    def sampling(self) -> Sampling:
        """Return which frames are taken now."""
        raise NotImplementedError


class QwenVLMixin(VideoModelMixin):
    """Qwen2.5-VL and Qwen3-VL as VLMEvalKit's Qwen2VLChat and Qwen3VLChat ask them, with transformers."""

    GENERATION: ClassVar[dict[str, Any]] = {
        "max_new_tokens": 2048,
        "do_sample": True,
        "top_p": 0.001,
        "top_k": 1,
        "temperature": 0.01,
        "repetition_penalty": 1.0,
    }
    nframe = 128
    fps: float | None = 2

    def content(self, message: Parts) -> Callable[[SampledClip], Parts]:
        """Return the texts and the video in the message's order."""
        parts = [
            {"type": "video"}
            if item["type"] == "video"
            else {"type": "text", "text": item["value"]}
            for item in message
        ]
        return lambda clip: parts

    def sampling(self) -> Sampling:
        """Return so many frames a second; a number of frames if `fps` is None."""
        if self.fps is None and self.nframe is not None:
            return Sampling(self.nframe, "qwen")
        return Sampling(_MOST_FRAMES, "qwen", self.fps or 2)


class LlavaOnevisionMixin(VideoModelMixin):
    """LLaVA-OneVision as VLMEvalKit's LLaVA_OneVision_HF asks it."""

    GENERATION: ClassVar[dict[str, Any]] = {"max_new_tokens": 2048}
    nframe = 8

    def content(self, message: Parts) -> Callable[[SampledClip], Parts]:
        """Return when the frames were, and then all texts; the chat template puts the video first."""
        texts = "".join(item["value"] for item in message if item["type"] == "text")

        def content(clip: SampledClip) -> Parts:
            times = ", ".join(f"{index / clip.fps:.2f}s" for index in clip.frames)
            told = (
                f"The video lasts for {clip.total_frames / clip.fps:.2f} seconds, and {len(clip.frames)} frames are "
                f"uniformly sampled from it. These frames are located at {times}. "
                "Please answer the following questions related to this video.\n"
            )
            # Its class puts this word before them; it stays a token of the text.
            return [{"type": "text", "text": f"<image>\n{told}{texts}"}, {"type": "video"}]

        return content

    def sampling(self) -> Sampling:
        """Return a frame a second, and evenly spaced ones if there are more than `nframe`."""
        if self.nframe is None:
            raise FeatstoreError(
                "LLaVA-OneVision takes a number of frames; choose a benchmark with one, as MLVU_64frame"
            )
        return Sampling(self.nframe, "llava-ov")


@lru_cache(maxsize=1)
def video_classes() -> dict[str, Any]:
    """Return the classes by name: the mixins with VLMEvalKit's BaseModel. Raises MissingExtra without VLMEvalKit."""
    base = import_vlmevalkit("vlmeval.vlm.base").BaseModel
    named = {"QwenVL_Cached": QwenVLMixin, "LLaVA_OneVision_Cached": LlavaOnevisionMixin}
    return {
        name: type(name, (mixin, base), {"__module__": __name__}) for name, mixin in named.items()
    }


def _video_of(message: Parts) -> str:
    """Return the path of the one video of a message."""
    shown = [item for item in message if item["type"] != "text"]
    if len(shown) != 1 or shown[0]["type"] != "video":
        kinds = ", ".join(item["type"] for item in shown) or "none"
        raise FeatstoreError(
            f"the message shows {kinds}; this model answers about one video and text: leave this dataset out"
        )
    return str(shown[0]["value"])


def _boxed(answer: str) -> str:
    """Return what VLMEvalKit's post-processing leaves of an answer: what is in its last `\\boxed{}`."""
    inside, depth = answer.split("\\boxed{")[-1], 1
    for place, char in enumerate(inside):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return inside[:place]
    return inside or answer
