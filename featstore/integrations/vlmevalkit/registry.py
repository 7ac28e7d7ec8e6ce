"""register(): adds the cached models, and benchmarks at 128 frames, to VLMEvalKit's tables."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from featstore.defaults import CACHE_DIR_VARIABLE
from featstore.integrations.vlmevalkit.datasets import add_datasets
from featstore.integrations.vlmevalkit.find_vlmevalkit import import_vlmevalkit
from featstore.integrations.vlmevalkit.model import longva_cached
from featstore.integrations.vlmevalkit.video_models import video_classes

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
# The same for models of transformers, with class and options. VLMEvalKit passes use_vllm to names with `Qwen2.5-VL`,
# which these avoid. The options are those of its own Qwen2.5-VL-7B-Instruct-ForVideo and Qwen3-VL-8B-Instruct.
VIDEO_MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "Qwen2_5-VL-7B": (
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "FEATSTORE_QWEN2_5_VL_7B",
        "QwenVL_Cached",
        {
            "min_pixels": 128 * 28 * 28,
            "max_pixels": 768 * 28 * 28,
            "total_pixels": 24576 * 28 * 28,
        },
    ),
    "Qwen3_VL-8B": (
        "Qwen/Qwen3-VL-8B-Instruct",
        "FEATSTORE_QWEN3_VL_8B",
        "QwenVL_Cached",
        {"max_new_tokens": 16384, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
    ),
    "llava-onevision-qwen2-7b": (
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "FEATSTORE_LLAVA_ONEVISION_7B",
        "LLaVA_OneVision_Cached",
        {},
    ),
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
    """Add the models of MODELS and VIDEO_MODELS, with and without the store, and the benchmarks to VLMEvalKit's tables.

    A second call replaces the models and changes nothing else. The models' classes also become some that VLMEvalKit's
    --config finds.

    Args:
        supported_VLM: VLMEvalKit's table of models, changed in place; its own by default.
        cache_dir: The cache directory; by default the value of the variable FEATSTORE_CACHE_DIR.
        supported_video_datasets: VLMEvalKit's table of video datasets, changed in place; its own by default.
        enable_cache: False makes all models work without the store.
        checkpoints: Folders or Hub ids by model name, with or without the suffix CACHED, which replace those in MODELS
            and their variables. A name that is in neither adds two models, of LongVA.
        **options: Options for all models, in place of those in VIDEO_MODELS.
    """
    if supported_VLM is None:
        supported_VLM = import_vlmevalkit("vlmeval.config").supported_VLM
    if supported_video_datasets is None:
        configs = import_vlmevalkit("vlmeval.dataset.video_dataset_config")
        supported_video_datasets = configs.supported_video_datasets
    classes = {"LongVA_Cached": longva_cached(), **video_classes()}
    vars(import_vlmevalkit("vlmeval.vlm")).update(classes)
    cache_dir = cache_dir or os.environ.get(CACHE_DIR_VARIABLE) or None
    video = {name: row[2:] for name, row in VIDEO_MODELS.items()}
    places = {**MODELS, **{name: row[:2] for name, row in VIDEO_MODELS.items()}}
    known = {name: os.environ.get(place) or hub for name, (hub, place) in places.items()}
    known |= {name.removesuffix(CACHED): place for name, place in (checkpoints or {}).items()}
    for name, checkpoint in known.items():
        cls, own = video.get(name, ("LongVA_Cached", {}))
        build = functools.partial(classes[cls], model_path=checkpoint, **{**own, **options})
        supported_VLM[name] = functools.partial(build, cache_dir=None, enable_cache=False)
        supported_VLM[name + CACHED] = functools.partial(
            build, cache_dir=cache_dir, enable_cache=enable_cache
        )
    add_datasets(supported_video_datasets)
