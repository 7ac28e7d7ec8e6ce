"""lmms-eval's own classes beside featstore_video, uncached, on a tiny checkpoint.

python lmms_peers.py CLIPS FAMILY CHECKPOINT prints what both were given, and answered, as JSON. It takes a Python with
lmms-eval and torchvision.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

QUESTION = "What color is the ball?"
GENERATING = {"max_new_tokens": 6, "temperature": 0, "until": ["\n"]}
FRAMES = 4  # theirs refuses a clip that has fewer


def main(clips: str, family: str, checkpoint: str) -> None:
    """Ask both about each clip."""
    docs = sorted(map(str, Path(clips).glob("*.mp4")))
    found = {"theirs": theirs(family, checkpoint, docs), "ours": ours(checkpoint, docs)}
    print(json.dumps(found))


def theirs(family: str, checkpoint: str, docs: list[str]) -> list[dict[str, Any]]:
    """Return what lmms-eval's class asks its model, and the answers."""
    options: dict[str, Any] = {"pretrained": checkpoint, "device": "cpu"}
    if family == "llava_onevision":
        from lmms_eval.models.simple.llava_hf import LlavaHf as Model

        options |= {"max_frames_num": FRAMES, "dtype": "float32", "device_map": "cpu"}
    else:
        name = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3_VL"}[family]
        Model = getattr(import_module(f"lmms_eval.models.chat.{family}"), name)
        options |= {"max_num_frames": FRAMES, "device_map": "cpu"}
    model = Model(**options)
    model._model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    seen, generate = [], model._model.eval().generate

    def noted(**given: Any) -> Any:
        seen.append({**given, "logits": Logits()})
        return generate(**given, logits_processor=[seen[-1]["logits"]])

    model._model.generate = noted
    answers = asked(model, docs, chat=not model.is_simple)
    return [noted_of(given, text) for given, text in zip(seen, answers, strict=True)]


class Logits:
    """Keeps the logits of each step."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.steps: list[torch.Tensor] = []

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Keep the scores, and change nothing."""
        self.steps.append(scores.float().clone())
        return scores


def noted_of(given: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return what is comparable of a call."""
    named = ("input_ids", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
    kept = {name: np.asarray(given[name]).tolist() for name in named if name in given}
    logits = torch.cat(given["logits"].steps).numpy().tobytes()
    told = {"max_new_tokens": given["max_new_tokens"], "logits": hashlib.sha256(logits).hexdigest()}
    return {**kept, **told, "answer": answer}


def ours(checkpoint: str, docs: list[str]) -> list[dict[str, Any]]:
    """Return what featstore_video asks its model, and the answers."""
    from lmms_eval.models import get_model

    model = get_model("featstore_video")(
        pretrained=checkpoint, enable_cache=False, device="cpu", dtype="fp32", max_num_frames=FRAMES,
        prefix_cache=0,
    )  # fmt: skip
    seen, answer = [], model.model._answerer.answer

    def noted(prompt: Any, video: Any, settings: Any) -> Any:
        told = {"max_new_tokens": settings.config.max_new_tokens, "logits": Logits()}
        settings.hooks["logits_processor"] = [told["logits"]]
        seen.append({"input_ids": prompt.ids, **prompt.facts, **told})
        return answer(prompt, video, settings)

    model.model._answerer.answer = noted
    answers = asked(model, docs, chat=False)
    return [noted_of(given, text) for given, text in zip(seen, answers, strict=True)]


def asked(model: Any, docs: list[str], *, chat: bool) -> list[str]:
    """Return the answers to the question about each clip."""
    model.task_dict["demo"] = {"test": docs}
    answers = []
    for number, doc in enumerate(docs):
        content = [{"type": "video", "url": doc}, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}]
        if chat:
            told = (lambda _, messages=messages: messages), dict(GENERATING)
        else:
            told = dict(GENERATING), lambda doc: [doc]
        args = (QUESTION, *told, number, "demo", "test")
        [answer] = model.generate_until([SimpleNamespace(args=args)])
        answers.append(
            getattr(answer, "text", answer).strip()
        )  # as lmms-eval does before it scores
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:])
