from __future__ import annotations

import pytest

from featstore.errors import FeatstoreError
from featstore.integrations.vlmevalkit.message import Question, read_message


def text(value: str, **more: str) -> dict[str, str]:
    return {"type": "text", "value": value, **more}


VIDEO = {"type": "video", "value": "/videos/a.mp4"}
IMAGE = {"type": "image", "value": "/images/a.png"}


def test_the_video_comes_first_then_all_text_in_its_order():
    found = read_message([text("Why?"), VIDEO, text("Answer.")])
    assert found == Question("Why?\nAnswer.", "/videos/a.mp4", ())


def test_a_systems_text_is_text_and_an_empty_one_is_none():
    assert (
        read_message([text("Watch.", role="system"), text(""), VIDEO, text("Why?")]).prompt
        == "Watch.\nWhy?"
    )


def test_images_are_handed_on():
    found = read_message([VIDEO, IMAGE, text("Solve <image 1>.")])
    assert found == Question("Solve <image 1>.", "/videos/a.mp4", ("/images/a.png",))


def test_a_placeholder_in_a_question_is_only_a_word():
    assert "<image>" not in read_message([VIDEO, text("What does <image> mean in HTML?")]).prompt


def test_a_message_may_hold_no_video():
    assert read_message([text("Why?")]) == Question("Why?", None, ())


def test_several_videos_are_refused():
    with pytest.raises(
        FeatstoreError, match=r"holds 2 videos, /videos/a\.mp4, /videos/a\.mp4; LongVA"
    ):
        read_message([VIDEO, VIDEO])


def test_other_items_are_refused():
    with pytest.raises(FeatstoreError, match="type 'audio'"):
        read_message([{"type": "audio", "value": "a.wav"}])
