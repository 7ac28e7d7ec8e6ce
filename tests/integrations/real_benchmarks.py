"""The seven benchmarks as VLMEvalKit's own classes read them: the Hub's offline cache, with tiny tables and clips.

Questions, files and ids are the stand-in's; this writes the tables that the real classes make theirs from.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

# By its file: a folder on the path would make the stand-in importable, too.
_spec = importlib.util.spec_from_file_location(
    "standin_rows_of_the_real", Path(__file__).parent / "standin" / "standin_rows.py"
)
about = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(about)

CHOICES = ["A. red", "B. green", "C. blue", "D. none"]


def lay_out(home: Path, clips: Path) -> Path:
    """Write the benchmarks below `home`, an HF_HOME, each video a copy of a clip; return the hub's folder."""
    hub = home / "hub"
    found = sorted(clips.glob("*.mp4"))
    for count, (dataset, files) in enumerate(about.FILES.items()):
        folder = snapshot(home, dataset)
        for place, name in enumerate(files):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found[(count + place) % len(found)], path)
        refs = folder.parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text(about.REVISION)  # a newline would belong to the name
        (folder.parents[1] / "blobs").mkdir()
        TABLES[dataset](folder, about.rows(dataset))
    return hub


def snapshot(home: Path, dataset: str) -> Path:
    folder = "datasets--" + about.REPOSITORIES[dataset].replace("/", "--")
    return home / "hub" / folder / "snapshots" / about.REVISION


def _video_mme(folder: Path, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    (folder / "subtitle").mkdir()
    (folder / "videomme").mkdir()
    more = dict.fromkeys(("duration", "domain", "sub_category", "task_type"), "short")
    table = [
        {"videoID": row["video"], "options": CHOICES, "question": row["question"], "answer": "A"}
        | more
        for row in rows
    ]
    pd.DataFrame(table).to_parquet(folder / "videomme" / "test-00000-of-00001.parquet")


def _video_holmes(folder: Path, rows: list[dict[str, Any]]) -> None:
    table = [
        {
            "video ID": row["video"],
            "Options": {"A": "the cook", "B": "the gardener"},
            "Question": row["question"],
            "Answer": "A",
            "Question ID": number,
            "Question Type": "SR",
            "Explanation": "none",
        }
        for number, row in enumerate(rows)
    ]
    _write(folder / "test_Video-Holmes.json", table)


def _tempcompass(folder: Path, rows: list[dict[str, Any]]) -> None:
    files = {
        "TempCompass_MCQ": "multi-choice",
        "TempCompass_Captioning": "captioning",
        "TempCompass_YorN": "yes_no",
    }
    for table, file in {**files, "caption_matching": "caption_matching"}.items():
        mine = [row for row in rows if row["SUB_DATASET"] == table]
        if table == "TempCompass_MCQ":  # its two tasks have a file each
            mine = mine[:1]
        if table == "caption_matching":
            mine = rows[1:2]
        more = {"answer": "A. left", "dim": "direction", "mc_question": "Where?", "mc_answer": "A"}
        question = "Which way?\nA. left\nB. right"
        _write(
            folder / f"{file}.json",
            [{"video_id": Path(row["video"]).stem, "question": question} | more for row in mine],
        )


def _mlvu(folder: Path, rows: list[dict[str, Any]]) -> None:
    first = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
    tasks = (*first, "sub_scene", "summary")
    (folder / "MLVU" / "json").mkdir()
    more = {
        "duration": 8.0,
        "answer": "left",
        "candidates": ["left", "right"],
        "scoring_points": "",
    }
    for number, task in enumerate(tasks, 1):
        name = f"{number}_{task}"
        mine = [row for row in rows if row["prefix"].endswith(f"/{name}")]
        table = [{"video": row["video"], "question": row["question"]} | more for row in mine]
        _write(folder / "MLVU" / "json" / f"{name}.json", table)


def _videommmu(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Its table has no checksum, so it is taken as it is: the twin in question_only can be asked about."""
    import pandas as pd
    from PIL import Image

    (folder / "images").mkdir()
    Image.new("RGB", (400, 300), "white").save(folder / "images" / "dev_Art_Theory_1.png")
    table = [
        {
            "index": number,
            "id": "dev_Art_Theory_1",
            "category": "Adaptation" if "image" in row else "Perception",
            "options": json.dumps(CHOICES),
            "answer": "A",
            "question_type": "multiple-choice",
            "image": None,
        }
        | row
        for number, row in enumerate(rows)
    ]
    pd.DataFrame(table).to_csv(folder / "VideoMMMU.tsv", sep="\t", index=False)


def _mmbench_video(folder: Path, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    (folder / "video_pkl").mkdir()
    table = [
        {
            "index": number,
            "video_path": f"./video/{row['video']}.mp4",
            "answer": "a ball",
            "dimensions": "[]",
        }
        | row
        for number, row in enumerate(rows)
    ]
    pd.DataFrame(table).to_csv(folder / "MMBench-Video.tsv", sep="\t", index=False)


def _longvideobench(folder: Path, rows: list[dict[str, Any]]) -> None:
    table = [
        {
            "video_id": Path(row["video_path"]).stem,
            "video_path": Path(row["video_path"]).name,
            "question": row["question"],
            "candidates": ["now", "later"],
            "correct_choice": 0,
            "duration": 8.0,
            "starting_timestamp_for_subtitles": 0.0,
            "subtitle_path": "none.json",
        }
        for row in rows
    ]
    _write(folder / "lvb_val.json", table)


def _write(path: Path, table: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(table))


TABLES = {
    "Video-MME": _video_mme,
    "Video_Holmes": _video_holmes,
    "TempCompass": _tempcompass,
    "MLVU": _mlvu,
    "VideoMMMU": _videommmu,
    "MMBench-Video": _mmbench_video,
    "LongVideoBench": _longvideobench,
}
