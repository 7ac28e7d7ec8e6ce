"""featstore inside VLMEvalKit: models that answer from stored features, and benchmarks at 128 frames.

VLMEvalKit itself is loaded only when a model's class or `register` is used, so its own files can import this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore.system.forks import import_attribute

if TYPE_CHECKING:
    from featstore.integrations.benchmarks import canonical_dataset, video_id
    from featstore.integrations.vlmevalkit.datasets import leave_out_frames
    from featstore.integrations.vlmevalkit.model import LongVAMixin
    from featstore.integrations.vlmevalkit.registry import register

__all__ = [
    "LLaVA_OneVision_Cached",
    "LongVAMixin",
    "LongVA_Cached",
    "QwenVL_Cached",
    "canonical_dataset",
    "leave_out_frames",
    "register",
    "video_id",
]

_HOMES = {
    "LongVAMixin": "featstore.integrations.vlmevalkit.model",
    "canonical_dataset": "featstore.integrations.benchmarks",
    "leave_out_frames": "featstore.integrations.vlmevalkit.datasets",
    "register": "featstore.integrations.vlmevalkit.registry",
    "video_id": "featstore.integrations.benchmarks",
}


def __getattr__(name: str) -> Any:
    if name == "LongVA_Cached":
        value = import_attribute("featstore.integrations.vlmevalkit.model", "longva_cached")()
    elif name in ("LLaVA_OneVision_Cached", "QwenVL_Cached"):
        classes = import_attribute(
            "featstore.integrations.vlmevalkit.video_models", "video_classes"
        )
        value = classes()[name]
    elif name in _HOMES:
        value = import_attribute(_HOMES[name], name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
