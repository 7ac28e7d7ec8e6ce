"""The dataset and the id of a question's video, as VLMEvalKit's benchmarks have them: one ingest serves both."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from featstore.integrations.benchmarks import video_id
from featstore.pipeline.listing import name_video

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# A task's name, or what it begins with before an underscore -> the dataset in the store; the longest one counts.
_DATASETS = {
    "longvideobench": "LongVideoBench",
    "mlvu_dev": "MLVU",
    "mlvu_test": "MLVU_Test",  # other videos
    "tempcompass": "TempCompass",
    "video_holmes": "Video_Holmes",
    "video_mmmu": "VideoMMMU",
    "videomme": "Video-MME",
    "videomme_v2": "",  # another benchmark
}
# Folders of MLVU by the kind of question, in the release that VLMEvalKit reads; lmms-eval's may name only the file.
_MLVU_FOLDERS = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "findNeedle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
# What a task says before it ends the program because a file is missing.
_MISSING = re.compile(r"video path:(.+) does not exist")


def locate(task: str, doc: Mapping[str, Any], path: str) -> tuple[str, str]:
    """Return the dataset and the id under which the features of a question's video are stored.

    A task that is in no benchmark of VLMEvalKit's has the dataset of the folder below HF_HOME that holds its videos,
    in which an id is the path; or of its own name, if they lie elsewhere.

    Args:
        task: the task's name.
        doc: the row of the question.
        path: of the video's file; it need not exist.

    >>> locate("videomme_w_subtitle", {}, "/hf/videomme/data/fFjv93ACGo8.mp4")
    ('Video-MME', 'fFjv93ACGo8')
    >>> locate("mlvu_dev", {"task_type": "needle"}, "/hf/mlvu/needle_32.mp4")
    ('MLVU', '2_needle/needle_32')
    """
    dataset = _dataset(task)
    if not dataset:
        return _elsewhere(task, path)
    *folders, name = PurePosixPath(os.path.normpath(path)).parts
    kept: list[str] = []
    if dataset == "VideoMMMU":
        kept = folders[-1:]  # the discipline
    elif dataset == "MLVU":
        named = [part for part in folders[-1:] if part in _MLVU_FOLDERS.values()]
        found = _MLVU_FOLDERS.get(str(doc.get("task_type")))
        kept = named or ([found] if found else [])
    return dataset, name_video(PurePosixPath(*kept, name))


def visuals_of(ask: Callable[[Any], Any], doc: Any) -> list[Any]:
    """Return what a question shows: the paths of videos, and pictures.

    Args:
        ask: the task's doc_to_visual.
        doc: the row.

    Raises:
        FileNotFoundError: if the task would end the program, because there is no file, and does not say which.
    """
    try:
        return list(ask(doc) or [])
    except SystemExit as exc:
        # The features of a file that is gone may be stored; if not, its path says what is missing.
        if found := _MISSING.search(str(exc.code)):
            return [found[1]]
        raise FileNotFoundError(f"the task ends the program: {exc.code}") from exc


def _dataset(task: str) -> str:
    fitting = [name for name in _DATASETS if task == name or task.startswith(f"{name}_")]
    return _DATASETS[max(fitting, key=len)] if fitting else ""


def _elsewhere(task: str, path: str) -> tuple[str, str]:
    home = os.environ.get("HF_HOME")
    if home:
        below = PurePosixPath(os.path.relpath(os.path.abspath(path), os.path.abspath(home)))
        folder, *kept = below.parts
        if folder != ".." and kept and "snapshots" not in kept:
            return folder, name_video(PurePosixPath(*kept))
    return task, video_id(task, path)
