"""Converts a message of VLMEvalKit to what LongVA takes: the video first, then the images, then all text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Question:
    """The text of a message, and the files it shows."""

    prompt: str
    video: str | None
    images: tuple[str, ...]


def read_message(message: Iterable[dict[str, Any]]) -> Question:
    """Return the question in a message.

    Args:
        message: Items `{type, value}`. Texts are joined by newlines, as VLMEvalKit's BaseModel.message_to_promptvideo
            joins them; their roles make no difference, and empty texts are left out.

    Raises:
        FeatstoreError: If there are several videos, or an item of another type.
    """
    found: dict[str, list[str]] = {"text": [], "video": [], "image": []}
    for item in message:
        if item["type"] not in found:
            raise FeatstoreError(
                f"the message holds an item of type {item['type']!r}; LongVA takes text, one video and images: "
                "leave this dataset out"
            )
        found[item["type"]].append(str(item["value"]))
    videos = found["video"]
    if len(videos) > 1:
        raise FeatstoreError(
            f"the message holds {len(videos)} videos, {', '.join(videos)}; LongVA answers about one: "
            "leave this dataset out"
        )
    # Files come as separate items, so `<image>` in a question is a word and not a placeholder for features.
    prompt = "\n".join(text for text in found["text"] if text).replace("<image>", "<image >")
    return Question(prompt, videos[0] if videos else None, tuple(found["image"]))
