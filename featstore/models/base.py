"""What cached models of all families share: their store, their feature set, and what a question asks of it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from featstore.decoding.video_file import identity_of
from featstore.models.lookup import FeatureRequest, serving_set
from featstore.models.source import FeatureSource
from featstore.models.statistics import CacheStatistics, report_at_exit
from featstore.sampling import check_nframe
from featstore.spec import FeatureSpec
from featstore.store.dataset import Dataset
from featstore.store.paths import check_video_id, dataset_path

if TYPE_CHECKING:
    from featstore.encoders.torch_encoder import TorchEncoder
    from featstore.models.generating.base import PromptAnswerer
    from featstore.models.source_options import SourceOptions
    from featstore.sampling import Sampling

CHOOSES_FRAMES = "frames are chosen by sampling=featstore.Sampling(NFRAME)"
Model = TypeVar("Model", bound="CachedModel")


def check_options(options: SourceOptions, dataset: str | None, prefix_cache: int) -> None:
    """Refuse what costs nothing to refuse, before a checkpoint is read, which takes minutes.

    Raises:
        StoreMismatch: the dataset's name cannot be one.
        ValueError: `prefix_cache` is negative.
    """
    if prefix_cache < 0:
        raise ValueError(f"prefix_cache is {prefix_cache}; it must be 0 or more")
    if options.cache_dir is not None and dataset is not None:
        dataset_path(options.cache_dir, dataset)


class CachedModel:
    """A model whose videos come from a store; a family adds its language side and its questions.

    Attributes:
        spec: the feature set that it makes, and looks for: weights, sampling, decoder, preprocessing, dtype.
        model_signature: its digest, as `featstore ls` and exported `.pt` files have it.
        statistics: what the model asked of the store; the process logs their sum, at INFO, when it ends.
    """

    _encoder: TorchEncoder
    _language: Any
    _answerer: PromptAnswerer

    def _open(
        self,
        encoder: TorchEncoder,
        options: SourceOptions,
        sampling: Sampling,
        dataset: str | None,
    ) -> None:
        """Take the encoder and the store; nothing of it is opened yet."""
        self._encoder = encoder
        self.spec = FeatureSpec(
            encoder.identity, sampling, identity_of(options.decoder), encoder.preprocessing
        )
        self.model_signature = self.spec.digest
        self.statistics = CacheStatistics(decoders=frozenset({options.decoder}))
        self._source = FeatureSource(
            encoder, options, device=encoder.device, dtype=encoder.dtype, statistics=self.statistics
        )
        self._options, self._dataset = options, dataset

    def _start(self, language: Any, answerer: PromptAnswerer) -> None:
        """Take the language side; what is asked of the store from now on is reported when the process ends."""
        self._language, self._answerer = language, answerer
        if self._options.cache_dir is not None:
            report_at_exit(self.statistics)

    def feature_set(self, dataset: str | None = None) -> Dataset:
        """Return the stored features that the model answers from, a Mapping of videos to features.

        Args:
            dataset: the dataset, by default the model's own.

        Raises:
            StoreNotFound: there is no such dataset.
            StoreMismatch: it has no features that serve; the message says what differs.
            ValueError: the model has no store, or no dataset is named.
        """
        name, cache_dir = dataset or self._dataset, self._options.cache_dir
        if cache_dir is None or name is None:
            raise ValueError("no store or no dataset is named; pass cache_dir= and dataset=")
        accept_imported = self._options.accept_imported
        return serving_set(Dataset(cache_dir, name), self.spec, accept_imported=accept_imported)

    def close(self) -> None:
        """Stop the decoder and let go of the store and the prefixes; the model can still be asked."""
        self._source.close()
        self._answerer.close()

    def __repr__(self) -> str:
        """Return checkpoint, device, dtype, decoder and store."""
        encoder, cache_dir = self._encoder, self._options.cache_dir
        store = "no store" if cache_dir is None else repr(os.fspath(cache_dir))
        about = f"{encoder.device}, {encoder.identity.dtype}, decoder {self._options.decoder}"
        return f"<featstore.{type(self).__name__} {encoder.origin!r}: {about}, {store}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to pickle: weights stay on their device."""
        name = type(self).__name__
        raise TypeError(
            f"a {name} is not pickled, for its weights are on a device; load it in each process, with "
            f"{name}({self._encoder.origin!r}, ...)"
        )

    def __enter__(self: Model) -> Model:
        """Return the model itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    def _text(self, ids: list[int]) -> str:
        """Return the answer that these token ids are."""
        text: str = self._language.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _request(
        self,
        video: str,
        dataset: str | None,
        path: str | os.PathLike[str] | None,
        nframe: int | None,
    ) -> FeatureRequest:
        """Return what is asked of the store for a question about a video."""
        dataset = dataset or self._dataset
        if self._options.cache_dir is not None:
            check_video_id(video)
            if dataset is None:
                raise ValueError(
                    f"no dataset is named for video {video!r}; pass dataset=, here or to {type(self).__name__}"
                )
        spec = self.spec
        if nframe is not None and check_nframe(nframe) != spec.sampling.nframe:
            spec = replace(spec, sampling=replace(spec.sampling, nframe=nframe))
        file = None if path is None else os.path.abspath(path)
        return FeatureRequest(dataset or "", video, file, spec)
