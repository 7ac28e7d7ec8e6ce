"""Reads files of predictions, and lets VLMEvalKit's --reuse go on from one in which some questions have no answer.

With --reuse VLMEvalKit takes the answers of an earlier run and asks the failed questions again. By itself that fails if
the file is JSON, or if one of several ranks has nothing left to ask.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from featstore.integrations.vlmevalkit.find_vlmevalkit import import_vlmevalkit

if TYPE_CHECKING:
    from types import ModuleType

# How all of VLMEvalKit's placeholders for a missing answer start.
FAILED_ANSWER = "Failed to obtain answer"


class Rows(list[dict[str, Any]]):
    """A table from a .json file, a list of rows, with columns by name as tables from .xlsx and .tsv have them."""

    def __getitem__(self, key: Any) -> Any:
        """Return a column by its name, or an item as a list does."""
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def as_table(loaded: Any) -> Any:
    """Return what VLMEvalKit's `load` returned, with columns by name."""
    return Rows(loaded) if isinstance(loaded, list) else loaded


def let_reuse_go_on(run: ModuleType) -> None:
    """Patch VLMEvalKit so that --reuse asks exactly the failed questions of a run again."""
    inference = import_vlmevalkit("vlmeval.inference_video")
    load, dump = inference.load, inference.dump
    infer_data, infer = inference.infer_data, run.infer_data_job_video

    def failed(text: Any) -> bool:
        return inference.FAIL_MSG in str(text)

    def nothing_failed(file: str) -> bool:
        return not any(map(failed, as_table(load(file))["prediction"]))

    @functools.wraps(infer_data)
    def infer_data_of_rank(
        *,
        model_name: str,
        work_dir: Any,
        dataset: Any,
        out_file: str,
        retry_failed: bool = True,
        **more: Any,
    ) -> Any:
        if retry_failed and os.path.exists(out_file):  # left by a run that was interrupted
            dump({row: text for row, text in load(out_file).items() if not failed(text)}, out_file)
        about = {"model_name": model_name, "work_dir": work_dir, "dataset": dataset}
        model = infer_data(**about, out_file=out_file, retry_failed=retry_failed, **more)
        # A rank with nothing to ask writes no file, but rank 0 reads one from each.
        if not os.path.exists(out_file):
            earlier = f"{work_dir}/{model_name}_{dataset.dataset_name}_PREV.pkl"
            dump(load(earlier) if os.path.exists(earlier) else {}, out_file)
        return model

    @functools.wraps(infer)
    def infer_data_job_video(
        model: Any, *, result_file: str, retry_failed: bool = True, **more: Any
    ) -> Any:
        # Otherwise only rank 0 would see that nothing is left, and the others would wait for it.
        if retry_failed and os.path.exists(result_file) and nothing_failed(result_file):
            return model
        return infer(model, result_file=result_file, retry_failed=retry_failed, **more)

    inference.load = lambda *args, **options: as_table(load(*args, **options))  # type: ignore[attr-defined]
    inference.infer_data = infer_data_of_rank  # type: ignore[attr-defined]
    run.infer_data_job_video = infer_data_job_video  # type: ignore[attr-defined]
