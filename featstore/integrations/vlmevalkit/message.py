"""A message of VLMEvalKit as LongVA takes it: the video first, then the images, then all text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Question:
    """What a message asks, and the files it shows."""

    prompt: str
    video: str | None
    images: tuple[str, ...]


def read_message(message: Iterable[dict[str, Any]]) -> Question:
    """Return the question that a list of `{type, value}` items asks.

    Texts are joined by newlines, as BaseModel.message_to_promptvideo of VLMEvalKit joins them; a text's role makes no
    difference, an empty text is none. Raises FeatstoreError where there are several videos, or an item of another type.
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
    # What is shown comes in items of its own: `<image>` in a question is a word, and no place to put features.
    prompt = "\n".join(text for text in found["text"] if text).replace("<image>", "<image >")
    return Question(prompt, videos[0] if videos else None, tuple(found["image"]))
