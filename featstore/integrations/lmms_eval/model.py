"""longva_cached: LongVA as a model of lmms-eval, answering from stored features."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from featstore.defaults import NFRAME, SAMPLING
from featstore.errors import FeatstoreError, VideoError
from featstore.integrations.harness_model import LASTING_ERRORS, choose_storage, note_unanswered
from featstore.integrations.lmms_eval import importing_lmms_eval
from featstore.integrations.lmms_eval.arguments import (
    check_pooling,
    choose_device,
    choose_store,
    leave_out_stock,
)
from featstore.integrations.lmms_eval.names import locate, visuals_of
from featstore.sampling import Sampling
from featstore.system.logs import show_on_stderr, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

# What tasks say beside fields of transformers' GenerationConfig; `longva` leaves them out for a video, too.
_NOT_OF_GENERATING = ("image_aspect_ratio", "until")
_PLACEHOLDER = "<image>"

# What the models of this process could not answer about, as `dataset/video` or `task row`, and the reasons.
unanswered: dict[str, str] = {}


class LongVARequests:
    """LongVACached without lmms-eval's base class."""

    is_simple = True
    task_dict: dict[str, Any]

    def __init__(
        self,
        pretrained: str = "lmms-lab/LongVA-7B",
        cache_dir: str | None = None,
        *,
        enable_cache: bool = True,
        max_frames_num: int = NFRAME,
        sampling: str = SAMPLING,
        device: str | None = None,
        device_map: str | None = None,
        quantize: str | None = None,
        scale: str | None = None,
        codec: str | None = None,
        keep_going: bool = True,
        **options: Any,
    ) -> None:
        """Load the language model of a checkpoint.

        Args:
            pretrained: Folder of the checkpoint, or its id on the Hub.
            cache_dir: The cache directory; by default that of the variable FEATSTORE_CACHE_DIR.
            enable_cache: False for the uncached model in the same code.
            max_frames_num: Number of frames per video.
            sampling: Which frames, as for `featstore ingest --sampling`.
            device: A torch device; of several processes each takes the GPU of its own number.
            device_map: The same, as `longva` calls it.
            quantize: How features are stored if a miss makes their feature set; with `scale` and `codec` as for
                `featstore ingest`.
            scale: Granularity of int8's scales.
            codec: How the payload is compressed.
            keep_going: Whether a question whose video cannot be read has the answer "", which lmms-eval's response
                cache does not keep; otherwise it ends the run.
            **options: Those of `longva` that are followed anyway, and those of featstore.models.CachedLongVA.
        """
        super().__init__()
        show_on_stderr()
        options = leave_out_stock(options)
        store = choose_store(cache_dir, enable_cache=enable_cache)
        pooling = {name: options.pop(name) for name in list(options) if "spatial_pool" in name}
        import torch

        from featstore.models import CachedLongVA

        place = choose_device(device, device_map)
        self.model = CachedLongVA(
            str(pretrained),  # lmms-eval reads a name of digits as a number
            store,
            sampling=Sampling.parse(str(sampling), max_frames_num),
            device=place,
            storage=choose_storage(quantize, scale, codec),
            **options,
        )
        check_pooling(pooling, str(self.model.spec.encoder.settings["pooling"]))
        self._device = torch.device(place)
        self._keep_going = keep_going

    @property
    def device(self) -> Any:
        """Return where lmms-eval puts what its processes tell one another."""
        return self._device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answers to questions, in their order; those about one video are asked one after the other."""
        from tqdm import tqdm

        keys = self._keys([request.args for request in requests])
        answers = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda index: (keys[index], index))
        silent = getattr(self, "rank", 0) != 0
        for index in tqdm(order, disable=silent, desc="Model Responding"):
            context, options = requests[index].args[:2]
            answers[index] = self._answer(*requests[index].args)
            self.cache_hook.add_partial("generate_until", (context, options), answers[index])  # type: ignore[attr-defined]
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: a round may show what the one before asked for."""
        raise FeatstoreError(
            "longva_cached answers one question at a time, and a task asks in rounds; leave it out"
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: answers are generated."""
        raise FeatstoreError(
            "longva_cached generates answers, and a task asks how likely given ones are; leave it out"
        )

    def clean(self) -> None:
        """Say what could not be answered, and let go of the store and the model, before judges are loaded."""
        for about, why in sorted(unanswered.items()):
            tell(__name__, f"unanswered: {about}: {why}")
        self.model.close()
        del self.model
        super().clean()  # type: ignore[misc]

    def _keys(self, requests: Sequence[tuple[Any, ...]]) -> list[tuple[str, str]]:
        """Return of each request what its questions are sorted by: dataset and video, or the task alone.

        A task's first row says whether it shows videos: pictures may be decoded to be named.
        """
        shows_videos: dict[str, bool] = {}
        keys = []
        for _, _, ask, row, task, split in requests:
            key = (task, "")
            if shows_videos.get(task, True):
                doc = self.task_dict[task][split][row]
                try:
                    shown = visuals_of(ask, doc)
                except Exception:  # said when it is asked
                    shown = [""]
                shows_videos.setdefault(task, all(isinstance(item, str) for item in shown))
                if shown and isinstance(shown[0], str) and shown[0]:
                    key = locate(task, doc, shown[0])
            keys.append(key)
        return keys

    def _answer(
        self, context: str, options: dict[str, Any], ask: Any, row: int, task: str, split: str
    ) -> str:
        doc = self.task_dict[task][split][row]
        about = f"{task} {row}"
        try:
            shown = visuals_of(ask, doc)
            videos = [item for item in shown if isinstance(item, str)]
            dataset, video = locate(task, doc, videos[0]) if videos else (None, None)
            about = f"{dataset}/{video}" if videos else about
            _check_shown(shown, videos, dataset or task)
            return self.model.generate(
                _prompt(context, len(shown)),
                video,
                dataset=dataset,
                path=videos[0] if videos else None,
                images=[item for item in shown if not isinstance(item, str)],
                **{name: options[name] for name in options if name not in _NOT_OF_GENERATING},
            )
        except LASTING_ERRORS:
            raise
        except (FeatstoreError, FileNotFoundError) as exc:
            if not self._keep_going:
                raise
            note_unanswered(unanswered, about, exc)
            return ""


def _check_shown(shown: Sequence[Any], videos: Sequence[str], about: str) -> None:
    if len(videos) > 1:
        raise VideoError(
            f"a question shows {len(videos)} videos; LongVA answers about one", videos[1]
        )
    if not shown and about.startswith("video_holmes"):  # which goes on without it
        raise FeatstoreError("its video is missing; download the benchmark again")
    others = [item for item in shown if isinstance(item, dict)]
    if others:
        raise FeatstoreError("a question has sound; LongVA takes text, one video and pictures")


def _prompt(context: str, visuals: int) -> str:
    """Return the question; `<image>` is a place for features if there is one for each, and else a word."""
    found = context.count(_PLACEHOLDER)
    return context if found in (0, visuals) else context.replace(_PLACEHOLDER, "<image >")


@lru_cache(maxsize=1)
def longva_cached() -> Any:
    """Return LongVACached, with lmms-eval's base class; MissingExtra without lmms-eval."""
    with importing_lmms_eval():
        from lmms_eval.api.model import lmms
    return type("LongVACached", (LongVARequests, lmms), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    if name == "LongVACached":  # where lmms-eval looks for it
        return longva_cached()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
