"""CachedLongVA: LongVA's answers, from features that are computed once a video instead of once a question."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from featstore import defaults
from featstore.encoders.longva.encoder import LongVAEncoder
from featstore.errors import explain_keywords
from featstore.models.base import CHOOSES_FRAMES, CachedModel, check_options
from featstore.models.finite import refuse_not_finite, refuse_too_large
from featstore.models.generating.settings import read_options
from featstore.models.longva.generation import Answerer
from featstore.models.longva.images import Tiling, read_tiling
from featstore.models.longva.language import check_attention, load_language
from featstore.models.longva.prompt import build_prompt, split, tokenize
from featstore.models.source_options import SourceOptions
from featstore.models.visual_input import VisualInput
from featstore.sampling import Sampling
from featstore.torch.forked import about_to_compute

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from featstore.records.storage import Storage


class CachedLongVA(CachedModel):
    """A LongVA model whose videos come from a store; it answers one question at a time.

    Threads may share it: they look videos up concurrently, and take turns to encode and to answer. A forked child may
    use it too, with a decoder of its own, unless the model is on a GPU: CUDA needs a model of the child's own. Usable
    in `with`; `close` stops the decoder and lets go of the store.

    Attributes:
        spec: the feature set that it makes, and looks for: weights, sampling, decoder, preprocessing, dtype.
        model_signature: its digest, as `featstore ls` and exported `.pt` files have it.
        statistics: what the model asked of the store; the process logs their sum, at INFO, when it ends.
    """

    _encoder: LongVAEncoder
    _answerer: Answerer

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
        vision_tower: str | os.PathLike[str] | None = None,
        on_miss: str = defaults.ON_MISS,
        decoder: str = defaults.DECODER,
        prefix_cache: int = defaults.PREFIX_CACHE,
        storage: Storage | None = None,
        decode_timeout: float = defaults.DECODE_TIMEOUT,
        accept_imported: bool = False,
    ) -> None:
        """Load the language side of a checkpoint and hash its vision weights.

        Args:
            checkpoint: a folder, or a name on the Hub.
            cache_dir: the store; None for the uncached model, which encodes a video for each question.
            dataset: the dataset in which videos are looked up if a question names none.
            sampling: which frames of a video; by default 128, linspace.
            device: a torch device; `auto` is CUDA if there is a GPU, else the CPU.
            dtype: fp16, bf16 or fp32, of features and model; by default fp16 on CUDA and fp32 elsewhere.
            attn_implementation: as transformers takes it, such as `sdpa` or `flash_attention_2`.
            vision_tower: a CLIP folder or name to use in place of the one that the checkpoint's config names.
            on_miss: what to do about a video that is not stored. `encode` makes its features, stores them and answers
                from the stored ones, as later questions do; `encode-only` makes them for this question only; `error`
                raises.
            decoder: whose frames the features are of, which makes other feature sets. `auto` is the original model's;
                `exact` takes the frames that a player shows. See featstore.decoding.video_file.decode.
            prefix_cache: number of videos whose keys and values stay on the device, so that a further question on one
                computes only its own text; a gigabyte each at 128 frames of a 7B model, 0 for none.
            storage: how features are stored if a miss makes their feature set, which every later miss follows; by
                default as `Storage()` says.
            decode_timeout: seconds that decoding a video may take.
            accept_imported: take imported features of the right shape if the store has no others.

        Raises:
            CheckpointError: the checkpoint is not LongVA's, is incomplete, or needs something featstore does not do.
            StoreMismatch: the dataset's name cannot be one.
            StoreError: `cache_dir` is a file.
            FeatstoreError: the device or the attention implementation is not available.
            ValueError: an option is invalid.
        """
        options = SourceOptions(
            cache_dir, on_miss, decoder, decode_timeout, storage, accept_imported
        )
        check_options(options, dataset, prefix_cache)
        check_attention(attn_implementation)
        checkpoint = os.fspath(checkpoint)
        tower = None if vision_tower is None else os.fspath(vision_tower)
        encoder = LongVAEncoder(checkpoint, vision_tower=tower, device=device, dtype=dtype)
        self._open(encoder, options, sampling or Sampling(), dataset)
        language = load_language(
            encoder.checkpoint,
            device=encoder.device,
            dtype=encoder.dtype,
            attn_implementation=attn_implementation,
        )
        answerer = Answerer(language, encoder.device, self.statistics, prefix_cache=prefix_cache)
        self._start(language, answerer)
        self._tiling: Tiling | None = None

    def generate(
        self,
        prompt: str,
        video: str | None = None,
        *,
        dataset: str | None = None,
        path: str | os.PathLike[str] | None = None,
        nframe: int | None = None,
        images: Sequence[str | os.PathLike[str] | Image.Image] = (),
        **options: Any,
    ) -> str:
        """Return the answer to a question about a video, images, both or neither.

        Args:
            prompt: the question. Features go where it has an `<image>`, the video's first; if it has none, before its
                text.
            video: the video's id in the store.
            dataset: the dataset to look in, in place of the model's own.
            path: the video's file, needed on a miss. If it is another file than the stored features were made from,
                that is a miss too.
            nframe: number of frames, in place of the model's own.
            images: files or pictures.
            options: fields of transformers' GenerationConfig; by default greedy, at most 1024 new tokens, and otherwise
                the checkpoint's generation_config.json.

        Raises:
            VideoError: the file cannot be decoded.
            NotFinite: its features are NaN or infinite, or beyond the range of the model's dtype.
            StoreMismatch: several feature sets serve, or the dataset's file is none of featstore's; under
                on_miss="error" also if no set serves.
            FeatureNotFound: the video is not stored, under on_miss="error" or without a path.
            StoreNotFound: there is no such dataset, under on_miss="error"; or it was lost, likewise.
            RecordError, StoreDamaged: what is stored is damaged, likewise.
        """
        ids = self.generate_ids(
            prompt, video, dataset=dataset, path=path, nframe=nframe, images=images, **options
        )
        return self._text(ids)

    def generate_ids(
        self,
        prompt: str,
        video: str | None = None,
        *,
        dataset: str | None = None,
        path: str | os.PathLike[str] | None = None,
        nframe: int | None = None,
        images: Sequence[str | os.PathLike[str] | Image.Image] = (),
        **options: Any,
    ) -> list[int]:
        """Return the token ids of the answer, including its end token; arguments and errors are those of `generate`."""
        about_to_compute(self._encoder.device)
        settings = read_options(self._language.generation, options)
        text = build_prompt(prompt, len(images) + (video is not None))
        parts = split(tokenize(self._language.tokenizer, text))
        tiles = [self._cut(image) for image in images]  # refused before a video is encoded in vain
        visuals = []
        if video is not None:
            visuals.append(self._source.get(self._request(video, dataset, path, nframe)))
        elif path is not None:
            raise ValueError(f"path is {os.fspath(path)!r} but no video is named; pass its id too")
        visuals += [self._image(*pair) for pair in zip(images, tiles, strict=True)]
        return self._answerer.answer(parts, visuals, settings)

    def answer_features(self, prompt: str, features: torch.Tensor, **options: Any) -> list[int]:
        """Return the token ids of the answer to a question about a video given by its features.

        Args:
            prompt: the question, as for `generate`.
            features: (rows, width), of any float dtype, on any device.
            options: as for `generate`.

        Raises:
            NotFinite: a feature is NaN or infinite, or beyond the range of the model's dtype.
        """
        about_to_compute(self._encoder.device)
        settings = read_options(self._language.generation, options)
        parts = split(tokenize(self._language.tokenizer, build_prompt(prompt, 1)))
        refuse_not_finite(features, "the features given")
        features = features.to(self._encoder.device, self._encoder.dtype)
        refuse_too_large(features, "the features given")
        return self._answerer.answer(
            parts, [VisualInput(len(features), lambda: features)], settings
        )

    def _cut(self, image: str | os.PathLike[str] | Image.Image) -> NDArray[np.uint8]:
        if self._tiling is None:
            encoder = self._encoder
            self._tiling = read_tiling(encoder.checkpoint.config, encoder.preprocessing)
        return self._tiling.cut(image)

    def _image(
        self, image: str | os.PathLike[str] | Image.Image, tiles: NDArray[np.uint8]
    ) -> VisualInput:
        name = "an image" if isinstance(image, Image.Image) else os.fspath(image)
        parts = self._source.on_demand.encode_frames(tiles, name, image=True)
        features = torch.cat(parts).flatten(0, 1)  # (N, T, D) -> (N * T, D)
        return VisualInput(len(features), lambda: features)
