"""register(): adds LongVA's models and benchmarks to VLMEvalKit's tables."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from featstore.defaults import CACHE_DIR_VARIABLE
from featstore.integrations.vlmevalkit.datasets import add_datasets
from featstore.integrations.vlmevalkit.find_vlmevalkit import import_vlmevalkit
from featstore.integrations.vlmevalkit.model import longva_cached

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    Table = MutableMapping[str, Callable[..., Any]]

CACHED = "-Cached"
# Name on VLMEvalKit's command line -> checkpoint, and the variable that may name another place of it. With the suffix
# CACHED a model uses the store; without it, the same code decodes and encodes for every question.
MODELS = {
    "LongVA-7B": ("lmms-lab/LongVA-7B-DPO", "FEATSTORE_LONGVA_7B"),
    "LongVA-Temporal-v1": ("Eculid/Temporal-v1", "FEATSTORE_TEMPORAL_V1"),
    "LongVA-Temporal-v2": ("Eculid/Temporal-v2", "FEATSTORE_TEMPORAL_V2"),
}


def register(
    supported_VLM: Table | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    supported_video_datasets: Table | None = None,
    enable_cache: bool = True,
    checkpoints: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Add the models of MODELS, with and without the store, and the benchmarks at 128 frames to VLMEvalKit's tables.

    A second call replaces the models and changes nothing else. LongVA_Cached also becomes a class that VLMEvalKit's
    --config finds.

    Args:
        supported_VLM: VLMEvalKit's table of models, changed in place; its own by default.
        cache_dir: The cache directory; by default the value of the variable FEATSTORE_CACHE_DIR.
        supported_video_datasets: VLMEvalKit's table of video datasets, changed in place; its own by default.
        enable_cache: False makes all models work without the store.
        checkpoints: Folders or Hub ids by model name, with or without the suffix CACHED, which replace those in MODELS
            and their variables. A name that is not in MODELS adds two models.
        **options: Options of LongVA_Cached, for all models.
    """
    if supported_VLM is None:
        supported_VLM = import_vlmevalkit("vlmeval.config").supported_VLM
    if supported_video_datasets is None:
        configs = import_vlmevalkit("vlmeval.dataset.video_dataset_config")
        supported_video_datasets = configs.supported_video_datasets
    model = longva_cached()
    import_vlmevalkit("vlmeval.vlm").LongVA_Cached = model  # type: ignore[attr-defined]
    cache_dir = cache_dir or os.environ.get(CACHE_DIR_VARIABLE) or None
    known = {name: os.environ.get(place) or hub for name, (hub, place) in MODELS.items()}
    known |= {name.removesuffix(CACHED): place for name, place in (checkpoints or {}).items()}
    for name, checkpoint in known.items():
        build = functools.partial(model, model_path=checkpoint, **options)
        supported_VLM[name] = functools.partial(build, cache_dir=None, enable_cache=False)
        supported_VLM[name + CACHED] = functools.partial(
            build, cache_dir=cache_dir, enable_cache=enable_cache
        )
    add_datasets(supported_video_datasets)
