"""Files of predictions, and what VLMEvalKit lacks to go on from one in which some questions have no answer.

Under --reuse it takes the answers of an earlier run and asks what failed then. It stumbles where the file is JSON, and
on several ranks where one of them has nothing left to ask.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from featstore.integrations.vlmevalkit.find_vlmevalkit import import_vlmevalkit

if TYPE_CHECKING:
    from types import ModuleType

# What a prediction holds that is none; all of VLMEvalKit's words for it begin so.
FAILED_ANSWER = "Failed to obtain answer"


class Rows(list[dict[str, Any]]):
    """A table as a .json holds it, a list of rows, whose columns are had by name as those of .xlsx and .tsv are."""

    def __getitem__(self, key: Any) -> Any:
        """Return a column by its name, anything else as a list does."""
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def as_table(loaded: Any) -> Any:
    """Return what VLMEvalKit's `load` gave, its columns to be had by name."""
    return Rows(loaded) if isinstance(loaded, list) else loaded


def let_reuse_go_on(run: ModuleType) -> None:
    """Mend what keeps VLMEvalKit from asking the failed questions of a run again, and no others."""
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
        if retry_failed and os.path.exists(out_file):  # of a run that was ended in the middle
            dump({row: text for row, text in load(out_file).items() if not failed(text)}, out_file)
        about = {"model_name": model_name, "work_dir": work_dir, "dataset": dataset}
        model = infer_data(**about, out_file=out_file, retry_failed=retry_failed, **more)
        # A rank that has nothing to ask writes no file, and rank 0 reads one of each.
        if not os.path.exists(out_file):
            earlier = f"{work_dir}/{model_name}_{dataset.dataset_name}_PREV.pkl"
            dump(load(earlier) if os.path.exists(earlier) else {}, out_file)
        return model

    @functools.wraps(infer)
    def infer_data_job_video(
        model: Any, *, result_file: str, retry_failed: bool = True, **more: Any
    ) -> Any:
        # Rank 0 alone would see that nothing is left, and the others wait for it.
        if retry_failed and os.path.exists(result_file) and nothing_failed(result_file):
            return model
        return infer(model, result_file=result_file, retry_failed=retry_failed, **more)

    inference.load = lambda *args, **options: as_table(load(*args, **options))  # type: ignore[attr-defined]
    inference.infer_data = infer_data_of_rank  # type: ignore[attr-defined]
    run.infer_data_job_video = infer_data_job_video  # type: ignore[attr-defined]
