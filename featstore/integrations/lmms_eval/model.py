"""longva_cached and featstore_video: models of lmms-eval that answer from stored features."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from featstore.defaults import NFRAME, SAMPLING
from featstore.errors import FeatstoreError, VideoError
from featstore.integrations.harness_model import LASTING_ERRORS, choose_storage, note_unanswered
from featstore.integrations.lmms_eval import importing_lmms_eval
from featstore.integrations.lmms_eval.arguments import (
    LONGVA,
    VIDEO,
    Followed,
    check_pooling,
    choose_device,
    choose_store,
    leave_out_stock,
)
from featstore.integrations.lmms_eval.names import locate, visuals_of
from featstore.integrations.lmms_eval.video_families import choose_options
from featstore.sampling import Sampling
from featstore.system.logs import show_on_stderr, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

# What tasks say beside fields of transformers' GenerationConfig; `longva` leaves them out for a video, too.
_NOT_OF_GENERATING = ("image_aspect_ratio", "until")
_PLACEHOLDER = "<image>"

# What the models of this process could not answer about, as `dataset/video` or `task row`, and the reasons.
unanswered: dict[str, str] = {}


class CachedRequests:
    """A model without lmms-eval's base class; a subclass says what it loads, and how it is asked."""

    is_simple = True
    task_dict: dict[str, Any]
    _followed: ClassVar[Followed]

    def __init__(
        self,
        pretrained: str,
        cache_dir: str | None = None,
        *,
        enable_cache: bool = True,
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
            device: A torch device; of several processes each takes the GPU of its own number.
            device_map: The same, as lmms-eval's own classes call it.
            quantize: How features are stored if a miss makes their feature set; with `scale` and `codec` as for
                `featstore ingest`.
            scale: Granularity of int8's scales.
            codec: How the payload is compressed.
            keep_going: Whether a question whose video cannot be read has the answer "", which lmms-eval's response
                cache does not keep; otherwise it ends the run.
            **options: Those of lmms-eval's own class that are followed anyway, and those of the cached model.
        """
        super().__init__()
        show_on_stderr()
        options = leave_out_stock(options, self._followed)
        store = choose_store(cache_dir, enable_cache=enable_cache)
        import torch

        place = choose_device(device, device_map)
        options |= {"device": place, "storage": choose_storage(quantize, scale, codec)}
        self.model = self._load(str(pretrained), store, options)  # a name of digits is a number
        self._device = torch.device(place)
        self._keep_going = keep_going

    def _load(self, checkpoint: str, store: str | None, options: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _ask(
        self, context: str, shown: Sequence[Any], about: dict[str, Any], generating: dict[str, Any]
    ) -> str:
        """Return the answer; about: the id of the video, its dataset and path."""
        raise NotImplementedError

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
            "a task asks in rounds, and questions are answered one at a time; leave it out"
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: answers are generated."""
        raise FeatstoreError(
            "a task asks how likely given answers are, and answers are generated; leave it out"
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
            path = videos[0] if videos else None
            where = {"video": video, "dataset": dataset, "path": path}
            return self._ask(context, shown, where, options)
        except LASTING_ERRORS:
            raise
        except (FeatstoreError, FileNotFoundError) as exc:
            if not self._keep_going:
                raise
            note_unanswered(unanswered, about, exc)
            return ""


class LongVARequests(CachedRequests):
    """LongVA, asked as lmms-eval's `longva` asks it."""

    _followed = LONGVA

    def __init__(self, pretrained: str = "lmms-lab/LongVA-7B", *args: Any, **options: Any) -> None:
        """Take `longva`'s checkpoint by default."""
        super().__init__(pretrained, *args, **options)

    def _load(self, checkpoint: str, store: str | None, options: dict[str, Any]) -> Any:
        from featstore.models import CachedLongVA

        rule = str(options.pop("sampling", SAMPLING)), options.pop("max_frames_num", NFRAME)
        pooling = {name: options.pop(name) for name in list(options) if "spatial_pool" in name}
        model = CachedLongVA(checkpoint, store, sampling=Sampling.parse(*rule), **options)
        check_pooling(pooling, str(model.spec.encoder.settings["pooling"]))
        return model

    def _ask(
        self, context: str, shown: Sequence[Any], about: dict[str, Any], generating: dict[str, Any]
    ) -> str:
        images = [item for item in shown if not isinstance(item, str)]
        kept = {name: generating[name] for name in generating if name not in _NOT_OF_GENERATING}
        answer: str = self.model.generate(
            _prompt(context, len(shown)), images=images, **about, **kept
        )
        return answer


class VideoRequests(CachedRequests):
    """A video model of transformers, asked as lmms-eval's own class for its family asks it."""

    _followed = VIDEO

    def _load(self, checkpoint: str, store: str | None, options: dict[str, Any]) -> Any:
        from featstore.models import CachedVideoModel

        self._manner, options = choose_options(checkpoint, options)
        return CachedVideoModel(checkpoint, store, **options)

    def _ask(
        self, context: str, shown: Sequence[Any], about: dict[str, Any], generating: dict[str, Any]
    ) -> str:
        if about["video"] is None or len(shown) > 1:
            raise FeatstoreError("a question is not about one video, and nothing else is answered")
        answer: str = self.model.generate(
            self._manner.prompt(context),
            system=self._manner.system,
            **about,
            **self._manner.generating(generating),
        )
        return answer


def _check_shown(shown: Sequence[Any], videos: Sequence[str], about: str) -> None:
    if len(videos) > 1:
        raise VideoError(
            f"a question shows {len(videos)} videos, and those about one are answered", videos[1]
        )
    if not shown and about.startswith("video_holmes"):  # which goes on without it
        raise FeatstoreError("its video is missing; download the benchmark again")
    if any(isinstance(item, dict) for item in shown):
        raise FeatstoreError("a question has sound; text, one video and pictures are taken")


def _prompt(context: str, visuals: int) -> str:
    """Return the question; `<image>` is a place for features if there is one for each, and else a word."""
    found = context.count(_PLACEHOLDER)
    return context if found in (0, visuals) else context.replace(_PLACEHOLDER, "<image >")


_CLASSES = {"LongVACached": LongVARequests, "FeatstoreVideo": VideoRequests}


@lru_cache
def lmms_class(name: str) -> Any:
    """Return a class of _CLASSES with lmms-eval's base class; MissingExtra without lmms-eval."""
    with importing_lmms_eval():
        from lmms_eval.api.model import lmms
    return type(name, (_CLASSES[name], lmms), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    if name in _CLASSES:  # where lmms-eval looks for it
        return lmms_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
