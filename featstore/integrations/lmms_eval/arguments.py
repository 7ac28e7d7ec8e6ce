"""What lmms-eval's --model_args mean here: those of its own model classes, and featstore's.

Of theirs, values that a model here follows by itself are taken, others are refused: they would be other answers than
those that were asked for.
"""

from __future__ import annotations

import os
from typing import Any

from featstore.defaults import CACHE_DIR_VARIABLE
from featstore.errors import FeatstoreError

# Argument -> the values that change nothing here, and why no other is taken.
Followed = dict[str, tuple[tuple[Any, ...], str]]

_PROMPT = "the prompt is LongVA's own"
_COMMON: Followed = {
    "batch_size": ((1,), "questions are answered one by one"),
    "use_cache": ((True,), "answers are made with keys and values kept"),
}
LONGVA: Followed = {
    **_COMMON,
    "conv_template": (("qwen_1_5",), _PROMPT),
    "customized_config": ((None,), "the checkpoint's own config.json is followed"),
    "token_strategy": (("single",), _PROMPT),
    "truncate_context": ((False,), _PROMPT),
    "truncation": ((True,), _PROMPT),
    "video_decode_backend": (
        ("decord",),
        "frames are LongVA's own, as decord gives them: pyav takes fewer of a clip that is shorter than "
        "max_frames_num, and all of an MKV or WebM",
    ),
}
VIDEO: Followed = {
    **_COMMON,
    "chat_template": ((None,), "the checkpoint's own is followed"),
    "enable_thinking": ((None,), "the chat template is followed as it is"),
    "interleave_visuals": ((False,), "the video comes before the question"),
    "reasoning_prompt": ((None,), "the question is asked as the task states it"),
    "revision": (("main",), "a folder, or the newest on the Hub, is read"),
    "trust_remote_code": ((False,), "no code of the Hub's is run"),
}
# That change nothing, whatever they are: a name that picks code in LongVA's own, and a limit of other models.
_UNUSED = ("max_batch_size", "model_name")
_POOLING = ("mm_spatial_pool_mode", "mm_spatial_pool_stride")


def leave_out_stock(given: dict[str, Any], followed: Followed) -> dict[str, Any]:
    """Return the arguments without those of lmms-eval's own class that are followed anyway.

    Raises:
        FeatstoreError: for a value that is not followed.
    """
    kept = {name: value for name, value in given.items() if name not in _UNUSED}
    for name in kept.keys() & followed.keys():
        value = kept.pop(name)
        taken, why = followed[name]
        if name == "batch_size" and str(value) == "1":  # a word if it is given on the command line
            continue
        if value not in taken or isinstance(value, bool) != isinstance(taken[0], bool):
            raise FeatstoreError(
                f"{name}={value} cannot be followed: {why}; leave it out, or pass {name}={taken[0]}"
            )
    return kept


def check_pooling(given: dict[str, Any], pooling: str) -> None:
    """Take arguments on pooling out of `given`; FeatstoreError if the checkpoint pools in another way.

    Args:
        given: the arguments; changed in place.
        pooling: the checkpoint's, such as `average:2`.
    """
    mode, _, stride = pooling.partition(":")
    for name, own in zip(_POOLING, (mode, stride or "1"), strict=True):
        value = given.pop(name, None)
        if value is not None and str(value) != own:
            raise FeatstoreError(
                f"{name}={value} is not the checkpoint's, which pools {pooling}; leave it out, or state it in the "
                "checkpoint's config.json"
            )


def choose_store(cache_dir: Any, *, enable_cache: bool) -> str | None:
    """Return the cache directory: the argument, or the variable's; None without a store.

    Raises:
        FeatstoreError: none is named.
    """
    if not enable_cache:
        return None
    named = cache_dir if cache_dir is not None else os.environ.get(CACHE_DIR_VARIABLE)
    if not named:
        raise FeatstoreError(
            f"no store is named; pass cache_dir= in --model_args, or set {CACHE_DIR_VARIABLE}; enable_cache=False "
            "decodes and encodes for every question"
        )
    return str(named)


def choose_device(device: Any, device_map: Any) -> str:
    """Return the torch device: with several processes each takes the GPU of its own number."""
    import torch

    asked = str(device or device_map or "auto")
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    local = os.environ.get("LOCAL_RANK")
    if local is None or int(os.environ.get("WORLD_SIZE", "1")) < 2 or asked[:4] != "cuda":
        return asked
    return f"cuda:{local}"
