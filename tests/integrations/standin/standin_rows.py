"""The questions of the stand-in benchmarks, and where the Hub keeps their files."""

import os
from pathlib import Path

REVISION = "8a61d3f0c5b94e7fa0c2d1e6b7f8a9d0c1e2f3a4"
REPOSITORIES = {
    "Video-MME": "lmms-lab/Video-MME",
    "Video_Holmes": "TencentARC/Video-Holmes",
    "TempCompass": "lmms-lab/TempCompass",
    "MLVU": "MLVU/MVLU",
    "VideoMMMU": "lmms-lab/VideoMMMU",
    "MMBench-Video": "opencompass/MMBench-Video",
    "LongVideoBench": "longvideobench/LongVideoBench",
}
# What the store shall call the videos.
VIDEOS = {
    "Video-MME": {"fFjv93ACGo8", "N1cdUjctpG8"},
    "Video_Holmes": {"0at001QMutY"},
    "TempCompass": {"a1021488277", "a1021488277_reverse"},
    "MLVU": {"1_plotQA/movie101_66", "2_needle/movie101_66", "9_summary/217"},
    "VideoMMMU": {"Art/dev_Art_Theory_1", "question_only/Art/dev_Art_Theory_1"},
    "MMBench-Video": {"6tQxQZoXcZA_processed"},
    "LongVideoBench": {"86CxyhFV9MI"},
}
_ROWS = {
    "Video-MME": [
        {"video": "fFjv93ACGo8", "question": "What is shown first?"},
        {"video": "fFjv93ACGo8", "question": "What is shown last?"},
        {"video": "fFjv93ACGo8", "question": "How often?"},
        {"video": "N1cdUjctpG8", "question": "Which colour?"},
    ],
    "Video_Holmes": [
        {"video": "0at001QMutY", "question": "Who did it?"},
        {"video": "0at001QMutY", "question": "Why?"},
    ],
    "TempCompass": [
        {
            "SUB_DATASET": f"TempCompass_{table}",
            "prefix": "./videos",
            "video": name,
            "question": "Which way?",
        }
        for table, name in [
            ("MCQ", "a1021488277.mp4"),
            ("MCQ", "a1021488277_reverse.mp4"),
            ("Captioning", "a1021488277.mp4"),
            ("YorN", "a1021488277_reverse.mp4"),
        ]
    ],
    "MLVU": [
        {
            "SUB_DATASET": table,
            "prefix": f"./MLVU/video/{task}",
            "video": name,
            "question": "What happens?",
        }
        for table, task, name in [
            ("MLVU_MCQ", "1_plotQA", "movie101_66.mp4"),
            ("MLVU_MCQ", "2_needle", "movie101_66.mp4"),
            ("MLVU_OpenEnded", "9_summary", "217.mp4"),
        ]
    ],
    "VideoMMMU": [
        {"video": "videos/Art/dev_Art_Theory_1.mp4", "question": "What is taught?"},
        {
            "video": "videos/question_only/Art/dev_Art_Theory_1.mp4",
            "image": "images/dev_Art_Theory_1.png",
            "question": "Solve <image 1>.",
        },
    ],
    "MMBench-Video": [
        {"video": "6tQxQZoXcZA_processed", "question": question}
        for question in ("Describe it.", "What is missing?")
    ],
    "LongVideoBench": [
        {"video_path": "./videos/86CxyhFV9MI.mp4", "question": question}
        for question in ("When?", "Where?")
    ],
}
FILES = {
    "Video-MME": [f"video/{name}.mp4" for name in ("fFjv93ACGo8", "N1cdUjctpG8")],
    "Video_Holmes": ["video/0at001QMutY.mp4"],
    "TempCompass": ["videos/a1021488277.mp4", "videos/a1021488277_reverse.mp4"],
    "MLVU": [
        f"MLVU/video/{task}.mp4"
        for task in ("1_plotQA/movie101_66", "2_needle/movie101_66", "9_summary/217")
    ],
    "VideoMMMU": [
        "videos/Art/dev_Art_Theory_1.mp4",
        "videos/question_only/Art/dev_Art_Theory_1.mp4",
    ],
    "MMBench-Video": ["video/6tQxQZoXcZA_processed.mp4"],
    "LongVideoBench": ["videos/86CxyhFV9MI.mp4"],
}


def rows(dataset):
    return [dict(row) for row in _ROWS[dataset]]


def snapshot(dataset):
    folder = "datasets--" + REPOSITORIES[dataset].replace("/", "--")
    return Path(os.environ["HF_HOME"]) / "hub" / folder / "snapshots" / REVISION
