"""Tasks of lmms-eval over small clips: its own task files, and tables and videos where they look for them.

`datasets.load_dataset` takes a folder of a repository's name below the working directory, and lmms-eval downloads no
videos into a folder that exists.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

TASKS = ("videomme", "mlvu_dev", "video_mmmu_comprehension")
# Of each task, where the files of its videos are below HF_HOME, and the ids that VLMEvalKit's benchmarks give them.
VIDEOS = {
    "videomme": {"videomme/data/a.mp4": "a", "videomme/data/b.mp4": "b"},
    "mlvu_dev": {
        "mlvu/1_plotQA/movie.mp4": "1_plotQA/movie",
        "mlvu/movie.mp4": "2_needle/movie",
    },
    "video_mmmu_comprehension": {
        "video_mmmu/Art/validation_Art_1.mp4": "Art/validation_Art_1",
    },
}
DATASETS = {
    "videomme": "Video-MME",
    "mlvu_dev": "MLVU",
    "video_mmmu_comprehension": "VideoMMMU",
}
# The ids of the videos that each task asks about, in the order of its rows.
ASKED = {
    "videomme": ["a", "b", "a", "b"],
    "mlvu_dev": ["1_plotQA/movie", "2_needle/movie"],
    "video_mmmu_comprehension": ["Art/validation_Art_1"],
}
QUESTIONS = {task: len(videos) for task, videos in ASKED.items()}
_SOME = dict.fromkeys(("domain", "sub_category", "duration"), "short")


def lay_out(folder: Path, clips: list[Path]) -> Path:
    """Write tables and videos below `folder`; return what HF_HOME must be."""
    home = folder / "hf"
    files = [file for videos in VIDEOS.values() for file in videos]
    for number, file in enumerate(files):
        path = home / file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clips[number % len(clips)], path)
    _write(folder / "lmms-eval" / "Video-MME", [_video_mme(n) for n in range(4)])
    _write(
        folder / "sy1998" / "MLVU_dev",
        [
            _mlvu("1_plotQA/movie.mp4", "plotQA"),
            _mlvu("movie.mp4", "needle"),  # as in a release whose files lie in one folder
        ],
    )
    repository = folder / "lmms-eval" / "VideoMMMU"
    _write(repository, [_video_mmmu()])
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: Comprehension\n  data_files:\n  - split: test\n    path: test.jsonl\n---\n"
    )
    return home


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _video_mme(number: int) -> dict[str, Any]:
    return {
        "videoID": "ab"[number % 2],  # questions about a video are apart
        "question": f"What is number {number}?",
        "options": ["A. red", "B. green", "C. blue", "D. none"],
        "answer": "A",
        "question_id": str(number),
        "task_type": "Counting Problem",
        **_SOME,
    }


def _mlvu(name: str, kind: str) -> dict[str, Any]:
    return {"video_name": name, "question": f"{kind}?\n(A) x", "answer": "A", "task_type": kind}


def _video_mmmu() -> dict[str, Any]:
    return {
        "id": "validation_Art_1",
        "question": "Which one?",
        "options": ["red", "green"],
        "answer": "A",
        "question_type": "multiple-choice",
        "qa_type": "x",
    }
