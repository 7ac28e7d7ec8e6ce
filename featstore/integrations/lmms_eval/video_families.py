"""What lmms-eval's own classes do by default: `qwen2_5_vl` and `qwen3_vl`, and `llava_hf` for LLaVA-OneVision.

Where such a class has a variant for chats, that one is followed, for lmms-eval takes it unless --force_simple is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featstore.checkpoints.config_fields import read_config
from featstore.checkpoints.files import open_files
from featstore.sampling import Sampling

_FRAMES = 32
_SYSTEM = "You are a helpful assistant."
# Pixels of a frame that theirs give qwen-vl-utils, whatever the patch's side.
_MIN_PIXELS, _MAX_PIXELS = 256 * 28 * 28, 1_605_632
# What qwen-vl-utils takes at most: of a frame in cells of a token, and of frames of a video by time.
_MAX_CELLS, _MAX_FRAMES = 768, 768
_CELL = {"qwen2_5_vl": 28, "qwen3_vl": 32}
_SAMPLING_ONLY = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class Manner:
    """How a family is asked.

    Attributes:
        system: the system's part of the conversation; None for the template's own.
        placeholder: what in a question would be a place for an image; left out.
        max_new_tokens: of an answer, unless the task says.
    """

    system: str | None
    placeholder: str | None
    max_new_tokens: int

    def prompt(self, context: str) -> str:
        """Return the question of a task's context."""
        return context.replace(self.placeholder, "") if self.placeholder else context

    def generating(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return options of generating: tokens are sampled if the temperature is above 0; `until` is not followed."""
        sampled = (asked.get("temperature") or 0) > 0
        found = {"max_new_tokens": self.max_new_tokens, "num_beams": 1, "do_sample": sampled}
        named = ("max_new_tokens", "num_beams", *_SAMPLING_ONLY * sampled)
        return found | {name: asked[name] for name in named if asked.get(name) is not None}


def choose_options(checkpoint: str, given: dict[str, Any]) -> tuple[Manner, dict[str, Any]]:
    """Return how a checkpoint is asked, and the options of CachedVideoModel.

    Args:
        checkpoint: a folder, or a name on the Hub.
        given: lmms-eval's arguments, those of its own classes among them.

    Raises:
        CheckpointError: there is no checkpoint.
        ValueError: a number of frames or a rule of sampling is invalid.
    """
    files = open_files(checkpoint, "Qwen/Qwen2.5-VL-7B-Instruct")
    model_type = read_config(files).text("model_type")
    options = dict(given)
    # `max_num_frames` of Qwen-VL's classes is `max_frames_num` in the others.
    frames = options.pop("max_frames_num", _FRAMES)
    frames = options.pop("max_num_frames", frames)
    if model_type not in _CELL:
        rule = options.pop("sampling", "linspace")
        manner = Manner(options.pop("system_prompt", None), "<image>", 1024)
        return manner, {**options, "sampling": Sampling.parse(str(rule), frames)}
    least = options.setdefault("min_pixels", _MIN_PIXELS)
    limit = max(_MAX_CELLS * _CELL[model_type] ** 2, int(least * 1.05))
    options["max_pixels"] = min(options.get("max_pixels", _MAX_PIXELS), limit)
    fps = options.pop("fps", None)
    if fps is None and model_type == "qwen3_vl" and "total_pixels" in options:
        fps = 2  # as qwen-vl-utils, which is then told the most frames only
    if rule := options.pop("sampling", None):
        sampling = Sampling.parse(str(rule), frames)
    elif fps is not None:
        most = frames if model_type == "qwen3_vl" else _MAX_FRAMES
        sampling = Sampling(most, "qwen", float(fps))
    else:
        sampling = Sampling(frames - frames % 2 * (model_type == "qwen2_5_vl"), "qwen")
    manner = Manner(options.pop("system_prompt", _SYSTEM), None, 128)
    return manner, {**options, "sampling": sampling}
