"""Finds out what a run of VLMEvalKit did not finish, from the predictions it wrote.

run.py logs errors, goes on and exits with 0. Its status file is not reliable either: an assertion without a message
leaves an empty one there, and an evaluation without predictions counts as done. So a dataset is finished only if its
file of predictions contains an answer to every question.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featstore.errors import MissingExtra
from featstore.integrations.vlmevalkit.predictions import FAILED_ANSWER, as_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_SHOWN = 5  # videos named per line


@dataclass
class _Pair:
    """A model on a dataset. `rows`: (index, video) of each question; `error`: run.py's for the whole dataset."""

    file: str = ""
    rows: list[tuple[str, str]] = field(default_factory=list)
    error: str = ""


class Outcome:
    """Records which datasets run.py runs for which model, and lists afterwards what is missing."""

    def __init__(self, run: ModuleType) -> None:
        """Wrap two functions of the module `run`; raise MissingExtra if it is too old to have them."""
        self._load = getattr(run, "load", None)
        self._pairs: dict[tuple[str, str], _Pair] = {}
        for name, note in (
            ("upsert_dataset_status", self._note_status),
            ("prepare_reuse_files", self._note_rows),
        ):
            if self._load is None or not hasattr(run, name):
                raise MissingExtra(
                    f"{run.__file__} has no {name}, which is needed to find out what a run has finished: "
                    "update VLMEvalKit to a version of August 2026 (e8e78f05) or newer"
                )
            setattr(run, name, _before(getattr(run, name), note))

    def problems(self) -> list[str]:
        """Return what is not finished, one line per model and dataset. Only rank 0 knows."""
        if not self._pairs:
            return ["it ran no model and no dataset"]
        return [
            f"{model} x {dataset}: {problem}"
            for (model, dataset), pair in self._pairs.items()
            if (problem := pair.error or self._unanswered(pair))
        ]

    def _note_status(self, *, model_name: str, dataset_name: str, **status: Any) -> None:
        pair = self._pairs.setdefault((model_name, dataset_name), _Pair())
        if "error_message" in status:
            pair.error = status["error_message"] or _wordless(sys.exc_info()[1])
        elif status.get("skip_reason") == "invalid_dataset":
            pair.error = "VLMEvalKit does not have this dataset"

    def _note_rows(
        self, *, model_name: str, dataset_name: str, dataset: Any, result_file: Any, **_: Any
    ) -> None:
        pair = self._pairs.setdefault((model_name, dataset_name), _Pair())
        pair.file = os.fspath(result_file)
        table = dataset.data
        about = table["video"] if "video" in table else table["index"]
        pair.rows = list(zip(map(str, table["index"]), map(str, about), strict=True))

    def _unanswered(self, pair: _Pair) -> str:
        answers = self._answers(pair.file)
        rows = [row for row in pair.rows if FAILED_ANSWER in answers.get(row[0], FAILED_ANSWER)]
        if not rows:
            return ""
        videos = list(dict.fromkeys(video for _, video in rows))
        more = f" and {len(videos) - _SHOWN} more" if len(videos) > _SHOWN else ""
        found = f"{len(rows)} of {len(pair.rows)} questions have no answer"
        return f"{found}, about {', '.join(videos[:_SHOWN])}{more}"

    def _answers(self, file: str) -> dict[str, str]:
        if not os.path.exists(file):
            return {}
        assert self._load is not None
        table = as_table(self._load(file))
        return dict(zip(map(str, table["index"]), map(str, table["prediction"]), strict=True))


def _before(call: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(call)
    def noted(**words: Any) -> Any:
        note(**words)
        return call(**words)

    return noted


def _wordless(error: BaseException | None) -> str:
    """Return type and place of an exception without a message: `AssertionError at base.py:97: assert x == y`."""
    if error is None:
        return "it failed without a message; see its log"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {os.path.basename(last.filename)}:{last.lineno}: {last.line}"
