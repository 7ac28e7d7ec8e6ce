"""The videos of lmms-eval's tasks, from their own lists."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.decoding.video_file import Video
from featstore.errors import ListingError
from featstore.integrations.lmms_eval import MODELS, importing_lmms_eval
from featstore.integrations.lmms_eval.names import locate, visuals_of
from featstore.pipeline.listing import Listing, check_listing

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class TaskVideos:
    """The videos of the tasks that one dataset in the store serves, and how many questions they ask about them."""

    dataset: str
    videos: Listing
    questions: int


def list_task_videos(names: Sequence[str]) -> list[TaskVideos]:
    """Return the videos of tasks or groups of tasks, by their dataset in the store.

    lmms-eval may download a task's data first.

    Args:
        names: as lmms-eval's --tasks takes them.

    Raises:
        ListingError: there is no such task, it has no data here, or it shows no videos.
        MissingExtra: lmms-eval cannot be loaded.
    """
    videos: dict[str, list[Video]] = {}
    questions: dict[str, int] = {}
    for name, task in _load(names).items():
        before = sum(questions.values())
        for doc in task.eval_docs_no_media:
            for path in _paths(name, task.doc_to_visual, doc):
                dataset, video = locate(name, doc, path)
                videos.setdefault(dataset, []).append(Video(video, path))
                questions[dataset] = questions.get(dataset, 0) + 1
        if sum(questions.values()) == before:
            raise ListingError(f"lmms-eval's task {name} shows no video: leave it out")
    return [
        TaskVideos(dataset, check_listing(listed), questions[dataset])
        for dataset, listed in videos.items()
    ]


def _paths(name: str, ask: Any, doc: Any) -> list[str]:
    try:
        return [os.path.abspath(item) for item in visuals_of(ask, doc) if isinstance(item, str)]
    except (OSError, KeyError, ValueError) as exc:
        raise ListingError(
            f"lmms-eval's task {name} does not name a question's video: {exc}; download its videos as the task "
            "describes, below $HF_HOME"
        ) from exc


def _load(names: Sequence[str]) -> dict[str, Any]:
    """Return the tasks by name; groups are taken apart."""
    if "HF_HOME" not in os.environ:  # several tasks end in a KeyError, or look in a folder called ~
        raise ListingError("HF_HOME is not set; name the folder that lmms-eval's videos are in")
    with importing_lmms_eval():
        from lmms_eval.evaluator_utils import get_task_list
        from lmms_eval.tasks import TaskManager, get_task_dict
        from loguru import logger
    logger.disable("lmms_eval")  # what it says of each task file
    # As an evaluation of a model from here does: a task may have prompts, or videos, of its own for a model.
    manager = TaskManager(model_name=next(iter(MODELS)))
    known = manager.match_tasks(list(names))
    if missing := [name for name in names if "*" not in name and name not in known]:
        raise ListingError(f"lmms-eval has no task {missing[0]!r}; list them: lmms-eval tasks list")
    try:
        found = get_task_list(get_task_dict(known, manager, "simple"))
    except Exception as exc:  # of the libraries that load data, and of tasks when they are imported
        raise ListingError(
            f"lmms-eval cannot load {' '.join(names)}: {type(exc).__name__}: {exc.__cause__ or exc}"
        ) from exc
    return {output.task_name: output.task for output in found}
