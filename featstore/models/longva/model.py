"""CachedLongVA: LongVA's answers, from features that are computed once a video instead of once a question."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from PIL import Image

from featstore import defaults
from featstore.decoding.video_file import identity_of
from featstore.encoders.longva.encoder import LongVAEncoder
from featstore.models.finite import refuse_not_finite, refuse_too_large
from featstore.models.generating.settings import read_options
from featstore.models.longva.generation import Answerer
from featstore.models.longva.images import Tiling, read_tiling
from featstore.models.longva.language import check_attention, load_language
from featstore.models.longva.prompt import build_prompt, split, tokenize
from featstore.models.lookup import FeatureRequest, serving_set
from featstore.models.source import FeatureSource
from featstore.models.source_options import SourceOptions
from featstore.models.statistics import CacheStatistics, report_at_exit
from featstore.models.visual_input import VisualInput
from featstore.sampling import Sampling, check_nframe
from featstore.spec import FeatureSpec
from featstore.store.dataset import Dataset
from featstore.store.paths import check_video_id, dataset_path
from featstore.torch.forked import about_to_compute

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from featstore.records.storage import Storage


class CachedLongVA:
    """A LongVA model whose videos come from a store; it answers one question at a time.

    Threads may share it: they look videos up concurrently, and take turns to encode and to answer. A forked child may
    use it too, with a decoder of its own, unless the model is on a GPU: CUDA needs a model of the child's own. Usable
    in `with`; `close` stops the decoder and lets go of the store.

    Attributes:
        spec: the feature set that it makes, and looks for: weights, sampling, decoder, preprocessing, dtype.
        model_signature: its digest, as `featstore ls` and exported `.pt` files have it.
        statistics: what the model asked of the store; the process logs their sum, at INFO, when it ends.
    """

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
        # What costs nothing to refuse comes first: a checkpoint takes minutes to read.
        if prefix_cache < 0:
            raise ValueError(f"prefix_cache is {prefix_cache}; it must be 0 or more")
        if cache_dir is not None and dataset is not None:
            dataset_path(cache_dir, dataset)
        options = SourceOptions(
            cache_dir, on_miss, decoder, decode_timeout, storage, accept_imported
        )
        check_attention(attn_implementation)
        checkpoint = os.fspath(checkpoint)
        tower = None if vision_tower is None else os.fspath(vision_tower)
        encoder = LongVAEncoder(checkpoint, vision_tower=tower, device=device, dtype=dtype)
        self.spec = FeatureSpec(
            encoder.identity, sampling or Sampling(), identity_of(decoder), encoder.preprocessing
        )
        self.model_signature = self.spec.digest
        self.statistics = CacheStatistics(decoders=frozenset({decoder}))
        self._source = FeatureSource(
            encoder, options, device=encoder.device, dtype=encoder.dtype, statistics=self.statistics
        )
        place, kind, attn = encoder.device, encoder.dtype, attn_implementation
        found = encoder.checkpoint
        self._language = load_language(found, device=place, dtype=kind, attn_implementation=attn)
        self._answerer = Answerer(
            self._language, encoder.device, self.statistics, prefix_cache=prefix_cache
        )
        self._encoder = encoder
        self._cache_dir = cache_dir
        self._decoder = decoder
        self._dataset = dataset
        self._accept_imported = accept_imported
        self._tiling: Tiling | None = None
        if self._cache_dir is not None:
            report_at_exit(self.statistics)

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
        text: str = self._language.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

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

    def feature_set(self, dataset: str | None = None) -> Dataset:
        """Return the stored features that the model answers from, a Mapping of videos to features.

        Args:
            dataset: the dataset, by default the model's own.

        Raises:
            StoreNotFound: there is no such dataset.
            StoreMismatch: it has no features that serve; the message says what differs.
            ValueError: the model has no store, or no dataset is named.
        """
        name = dataset or self._dataset
        if self._cache_dir is None or name is None:
            raise ValueError("no store or no dataset is named; pass cache_dir= and dataset=")
        stored = Dataset(self._cache_dir, name)
        return serving_set(stored, self.spec, accept_imported=self._accept_imported)

    def close(self) -> None:
        """Stop the decoder and let go of the store and the prefixes; the model can still be asked."""
        self._source.close()
        self._answerer.close()

    def __repr__(self) -> str:
        """Return checkpoint, device, dtype, decoder and store."""
        encoder = self._encoder
        store = "no store" if self._cache_dir is None else repr(os.fspath(self._cache_dir))
        about = f"{encoder.device}, {encoder.identity.dtype}, decoder {self._decoder}, {store}"
        return f"<featstore.CachedLongVA {encoder.origin!r}: {about}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to pickle: weights stay on their device."""
        raise TypeError(
            "a CachedLongVA is not pickled, for its weights are on a device; load it in each process, with "
            f"CachedLongVA({self._encoder.origin!r}, ...)"
        )

    def __enter__(self) -> CachedLongVA:
        """Return the model itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    def _request(
        self,
        video: str,
        dataset: str | None,
        path: str | os.PathLike[str] | None,
        nframe: int | None,
    ) -> FeatureRequest:
        dataset = dataset or self._dataset
        if self._cache_dir is not None:
            check_video_id(video)
            if dataset is None:
                raise ValueError(
                    f"no dataset is named for video {video!r}; pass dataset=, here or to CachedLongVA"
                )
        spec = self.spec
        if nframe is not None and check_nframe(nframe) != spec.sampling.nframe:
            spec = replace(spec, sampling=replace(spec.sampling, nframe=nframe))
        return FeatureRequest(
            dataset or "", video, None if path is None else os.path.abspath(path), spec
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
