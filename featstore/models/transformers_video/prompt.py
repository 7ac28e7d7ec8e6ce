"""A question's token ids: the checkpoint's chat template, and its processor's own expansion of a video's token.

Processors of transformers expand it while they prepare pixels. What they need for it is in a record, too: the grid, the
frames and their rate; so the processor's methods are called on an object that has nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featstore.checkpoints.config_fields import AS_PUBLISHED, read_json
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from featstore.checkpoints.files import Files
    from featstore.models.visual_input import SampledClip


@dataclass(frozen=True)
class VideoPrompt:
    """A prompt about a video.

    Attributes:
        ids: (1, L) token ids.
        shared: number of tokens up to the video's end.
        facts: further arguments of the model: grid, timing, kinds of tokens.
    """

    ids: torch.Tensor
    shared: int
    facts: dict[str, torch.Tensor]


class Prompter:
    """Makes the prompts of one checkpoint."""

    def __init__(self, files: Files, config: Any, tokenizer: Any) -> None:
        """Read the template; CheckpointError if there is none, or it cannot be followed."""
        self._tokenizer, self._config = tokenizer, config
        self._template, self._template_file = _template(files, tokenizer)
        vision = config.vision_config
        self._merge = getattr(vision, "spatial_merge_size", 1)
        self._pair = getattr(vision, "temporal_patch_size", 1)
        self._video_id: int = config.video_token_id
        self._processor = _processor(config, tokenizer)
        shown = [{"type": "video"}, {"type": "text", "text": "What is this?"}]
        if self._processor.video_token not in self.text([{"role": "user", "content": shown}]):
            raise self._no_place()

    def text(self, messages: list[dict[str, Any]]) -> str:
        """Return the conversation as the template writes it; CheckpointError if the template fails."""
        try:
            written: str = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        except Exception as exc:  # it is a program: jinja's errors, and Python's
            raise CheckpointError(
                f"the chat template in {self._template_file} cannot be followed ({type(exc).__name__}: {exc!s:.300}); "
                f"{AS_PUBLISHED}"
            ) from exc
        return written

    def prompt(self, text: str, clip: SampledClip, sampled_fps: float | None = None) -> VideoPrompt:
        """Return the prompt of a conversation with one video.

        Args:
            text: as `text` returns it.
            clip: what is known of the video.
            sampled_fps: the rate by which Qwen2.5-VL places frames in time; by default that of those taken.

        Raises:
            CheckpointError: the template has no place for a video.
            ValueError: the conversation has several, or `sampled_fps` is no rate.
        """
        if sampled_fps is not None and not 0 < sampled_fps < math.inf:
            raise ValueError(f"sampled_fps is {sampled_fps!r:.80}; give frames per second, or None")
        token = self._processor.video_token
        if text.count(token) > 1:
            raise ValueError(
                f"the conversation has {text.count(token)} places for a video, and one video is asked about; ask "
                f"without {token!r} in words of your own"
            )
        units, height, width = clip.grid or (len(clip.frames), 0, 0)
        grid = np.array([[units, height * self._merge, width * self._merge]])
        videos = {
            "video_grid_thw": grid,
            "video_metadata": [SimpleNamespace(fps=clip.fps, frames_indices=list(clip.frames))],
            "pixel_values_videos": [SimpleNamespace(shape=(len(clip.frames),))],
        }
        replacement = self._processor.replace_video_token(videos, 0)
        (whole,), _ = self._processor.get_text_with_replacements(
            [text], videos_replacements=[replacement]
        )
        ids = torch.tensor([self._tokenizer(whole).input_ids])
        places = (ids[0] == self._video_id).nonzero()
        if not len(places):
            raise self._no_place()
        facts = {"attention_mask": torch.ones_like(ids)}
        if clip.grid is not None and hasattr(self._config.vision_config, "temporal_patch_size"):
            rate = sampled_fps or len(clip.frames) / clip.total_frames * clip.fps
            facts |= {
                "mm_token_type_ids": 2 * (ids == self._video_id).int(),
                "video_grid_thw": torch.from_numpy(grid),
            }
            if hasattr(
                self._config.vision_config, "tokens_per_second"
            ):  # Qwen2.5-VL places tokens in time
                facts["second_per_grid_ts"] = torch.tensor([self._pair / rate])
        return VideoPrompt(ids, int(places[-1]) + 1, facts)

    def _no_place(self) -> CheckpointError:
        return CheckpointError(
            f"the chat template in {self._template_file} has no place for a video; {AS_PUBLISHED}"
        )


def _processor(config: Any, tokenizer: Any) -> Any:
    """Return the processor's methods on what they need of it; building one would need torchvision."""
    kind = config.model_type
    module = import_module(f"transformers.models.{kind}.processing_{kind}")
    name = next(name for name in module.__all__ if name.endswith("Processor"))
    processor = object.__new__(getattr(module, name))
    size = config.vision_config
    side = getattr(size, "image_size", 0) // size.patch_size
    vars(processor).update(
        num_image_tokens=side**2,  # of a frame, before pooling
        video_processor=SimpleNamespace(
            merge_size=getattr(size, "spatial_merge_size", 1),
            temporal_patch_size=getattr(size, "temporal_patch_size", 1),
        ),
        image_token=tokenizer.convert_ids_to_tokens(config.image_token_id),
        video_token=tokenizer.convert_ids_to_tokens(config.video_token_id),
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )
    return processor


def _template(files: Files, tokenizer: Any) -> tuple[str, str]:
    """Return the chat template and the file that it is in."""
    path = files.find("chat_template.jinja")
    if path is not None:
        return path.read_text(encoding="utf-8"), str(path)
    stated = read_json(files, "chat_template.json")
    if stated is not None:
        return stated.text("chat_template"), stated.origin
    if not isinstance(tokenizer.chat_template, str):
        raise CheckpointError(
            f"{files} has no chat template; fetch chat_template.jinja or chat_template.json"
        )
    return tokenizer.chat_template, f"{files}/tokenizer_config.json"
