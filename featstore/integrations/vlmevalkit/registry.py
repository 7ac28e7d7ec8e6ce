"""register(): LongVA's models and benchmarks put where VLMEvalKit looks for them."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from featstore.integrations.vlmevalkit.datasets import add_datasets
from featstore.integrations.vlmevalkit.kit import import_kit
from featstore.integrations.vlmevalkit.model import longva_cached

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    Table = MutableMapping[str, Callable[..., Any]]

CACHE_VARIABLE = "FEATSTORE_CACHE_DIR"
# name on VLMEvalKit's command line -> checkpoint, and the variable that may name another place of it
MODELS = {
    "LongVA-7B-Cached": ("lmms-lab/LongVA-7B", "FEATSTORE_LONGVA_7B"),
    "Temporal-v1-Cached": ("Eculid/Temporal-v1", "FEATSTORE_TEMPORAL_V1"),
    "Temporal-v2-Cached": ("Eculid/Temporal-v2", "FEATSTORE_TEMPORAL_V2"),
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
    """Add the models of MODELS and the benchmarks at 128 frames to VLMEvalKit's tables, in place.

    supported_VLM, supported_video_datasets: VLMEvalKit's own tables by default. cache_dir: the store, else the variable
    FEATSTORE_CACHE_DIR. checkpoints: folders or Hub ids by model name, in place of those in MODELS and their variables;
    a name that is not in MODELS becomes a model too. options: LongVA_Cached's, for all. Doing it again replaces the
    models and changes nothing else. LongVA_Cached also becomes a class that VLMEvalKit's --config finds.
    """
    if supported_VLM is None:
        supported_VLM = import_kit("vlmeval.config").supported_VLM
    if supported_video_datasets is None:
        configs = import_kit("vlmeval.dataset.video_dataset_config")
        supported_video_datasets = configs.supported_video_datasets
    model = longva_cached()
    import_kit("vlmeval.vlm").LongVA_Cached = model  # type: ignore[attr-defined]
    cache_dir = cache_dir or os.environ.get(CACHE_VARIABLE) or None
    known = {name: os.environ.get(place) or hub for name, (hub, place) in MODELS.items()}
    for name, checkpoint in (known | dict(checkpoints or {})).items():
        supported_VLM[name] = functools.partial(
            model,
            model_path=checkpoint,
            cache_dir=cache_dir,
            enable_cache=enable_cache,
            **options,
        )
    add_datasets(supported_video_datasets)
