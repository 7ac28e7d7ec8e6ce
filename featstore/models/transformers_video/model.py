"""CachedVideoModel: answers of a video model of transformers, from features that are computed once a video."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featstore import defaults
from featstore.checkpoints.config_fields import read_config
from featstore.checkpoints.files import open_files
from featstore.encoders.registry import get_encoder
from featstore.errors import explain_keywords
from featstore.models.base import CHOOSES_FRAMES, CachedModel, check_options
from featstore.models.generating.settings import read_options
from featstore.models.source_options import SourceOptions
from featstore.models.transformers_video.answering import VideoAnswerer
from featstore.models.transformers_video.families import find_family
from featstore.models.transformers_video.language import load_video_language
from featstore.models.transformers_video.prompt import Prompter
from featstore.torch.forked import about_to_compute

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from featstore.models.visual_input import SampledClip
    from featstore.records.storage import Storage
    from featstore.sampling import Sampling

    Content = Callable[[SampledClip], list[dict[str, Any]]]


class CachedVideoModel(CachedModel):
    """A video model of transformers whose videos come from a store; it answers one question at a time.

    Threads may share it, and a forked child may use it too unless it is on a GPU. Usable in `with`; `close` stops the
    decoder and lets go of the store.

    Attributes:
        spec: the feature set that it makes, and looks for.
        model_signature: its digest.
        statistics: what the model asked of the store; the process logs their sum, at INFO, when it ends.
    """

    _answerer: VideoAnswerer

    @explain_keywords(nframe=CHOOSES_FRAMES, fps=CHOOSES_FRAMES)
    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        dataset: str | None = None,
        sampling: Sampling | None = None,
        device: str | torch.device = defaults.DEVICE,
        dtype: str | None = None,
        attn_implementation: str = defaults.ATTENTION,
        on_miss: str = defaults.ON_MISS,
        decoder: str = defaults.DECODER,
        prefix_cache: int = defaults.PREFIX_CACHE,
        storage: Storage | None = None,
        decode_timeout: float = defaults.DECODE_TIMEOUT,
        accept_imported: bool = False,
        **encoder_options: Any,
    ) -> None:
        """Load the language side of a checkpoint and hash its vision weights.

        Args:
            checkpoint: a folder, or a name on the Hub.
            cache_dir: the store; None for the uncached model, which encodes a video for each question.
            dataset: the dataset in which videos are looked up if a question names none.
            sampling: which frames of a video; by default of Qwen-VL as qwen-vl-utils takes 2 a second, 128 at most; of
                LLaVA-OneVision one a second, 32 at most.
            device: a torch device; `auto` is CUDA if there is a GPU, else the CPU.
            dtype: fp16, bf16 or fp32, of features and model; by default bf16 on CUDA and fp32 elsewhere.
            attn_implementation: as transformers takes it.
            on_miss: as for CachedLongVA, and so are the options after it.
            decoder: whose frames the features are of.
            prefix_cache: number of videos whose keys and values stay on the device, 0 for none.
            storage: how features are stored if a miss makes their feature set.
            decode_timeout: seconds that decoding a video may take.
            accept_imported: take imported features of the right shape if the store has no others.
            encoder_options: further options of the family's encoder, as `max_pixels`.

        Raises:
            CheckpointError: the checkpoint is incomplete, or needs something featstore does not do.
            MissingExtra: transformers is older than 5.18.
            FeatstoreError: the model cannot be answered from stored features; the message says why.
            ValueError: an option is invalid.
        """
        options = SourceOptions(
            cache_dir, on_miss, decoder, decode_timeout, storage, accept_imported
        )
        check_options(options, dataset, prefix_cache)
        name = os.fspath(checkpoint)
        files = open_files(name, "Qwen/Qwen2.5-VL-7B-Instruct")
        family = find_family(read_config(files).text("model_type"))
        encoder: Any = get_encoder(
            family.encoder, checkpoint=name, device=device, dtype=dtype, **encoder_options
        )
        self._open(encoder, options, sampling or family.sampling, dataset)
        language = load_video_language(
            files,
            family,
            device=encoder.device,
            dtype=encoder.dtype,
            attention=attn_implementation,
        )
        self._prompter = Prompter(files, language.model.config, language.tokenizer)
        width = encoder.identity.geometry.hidden_dim
        answerer = VideoAnswerer(
            language, family, width, self.statistics, prefix_cache=prefix_cache
        )
        self._start(language, answerer)

    def generate(
        self,
        prompt: str | Content,
        video: str,
        *,
        dataset: str | None = None,
        path: str | os.PathLike[str] | None = None,
        nframe: int | None = None,
        sampling: Sampling | None = None,
        sampled_fps: float | None = None,
        system: str | None = None,
        **options: Any,
    ) -> str:
        """Return the answer to a question about a video.

        Args:
            prompt: the question; the video comes before it. Or a function that makes a user's message of what is known
                of the video: parts as chat templates take them, texts and one `{"type": "video"}`.
            video: the video's id in the store.
            dataset: the dataset to look in, in place of the model's own.
            path: the video's file, needed on a miss.
            nframe: number of frames, in place of the model's own.
            sampling: which frames, in place of the model's own.
            sampled_fps: frames per second by which Qwen2.5-VL places frames in time; by default of those taken.
            system: the system's part of the conversation, in place of the chat template's own.
            options: fields of transformers' GenerationConfig; by default greedy, at most 1024 new tokens.

        Raises:
            as CachedLongVA.generate.
        """
        named: dict[str, Any] = {"dataset": dataset, "path": path, "nframe": nframe}
        named |= {"sampling": sampling, "sampled_fps": sampled_fps, "system": system}
        return self._text(self.generate_ids(prompt, video, **named, **options))

    def generate_ids(
        self,
        prompt: str | Content,
        video: str,
        *,
        dataset: str | None = None,
        path: str | os.PathLike[str] | None = None,
        nframe: int | None = None,
        sampling: Sampling | None = None,
        sampled_fps: float | None = None,
        system: str | None = None,
        **options: Any,
    ) -> list[int]:
        """Return the token ids of the answer; arguments and errors are those of `generate`."""
        about_to_compute(self._encoder.device)
        settings = read_options(self._language.generation, options)
        request = self._request(video, dataset, path, nframe)
        if sampling is not None:
            request = replace(request, spec=replace(self.spec, sampling=sampling))
        visual = self._source.get(request)
        assert visual.clip is not None
        content: Any = [{"type": "video"}, {"type": "text", "text": prompt}]
        if not isinstance(prompt, str):
            content = prompt(visual.clip)
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        found = self._prompter.prompt(self._prompter.text(messages), visual.clip, sampled_fps)
        return self._answerer.answer(found, visual, settings)
