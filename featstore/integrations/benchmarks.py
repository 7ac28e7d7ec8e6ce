"""Names of benchmarks and ids of their videos, the same for every evaluation harness.

An ingest and a model may name a benchmark and a path differently: a harness passes the name of a sub-table, and a path
contains the revision of the Hub's snapshot and the user's home. What is stored must not depend on who asks.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from featstore.pipeline.listing import name_video

VIDEO_FOLDERS = ("video", "videos")

# Name of the dataset in the store -> other names of it, and of its parts, in the harnesses.
BENCHMARKS = {
    "Video-MME": ("Video-MME_128frame",),
    "Video_Holmes": ("Video_Holmes_128frame",),
    "TempCompass": (
        "TempCompass_128frame",
        "TempCompass_MCQ",
        "TempCompass_Captioning",
        "TempCompass_YorN",
    ),
    "MLVU": ("MLVU_128frame", "MLVU_MCQ", "MLVU_OpenEnded"),
    "VideoMMMU": ("VideoMMMU_128frame",),
    "MMBench-Video": ("MMBench_Video_128frame_nopack",),
    "LongVideoBench": ("LongVideoBench_128frame",),
}

# How many videos the lists of those have whose number never depends on a config or a download.
VIDEO_COUNTS = {"Video-MME": 900, "Video_Holmes": 270, "TempCompass": 410, "VideoMMMU": 300}

_CANONICAL = {other: name for name, others in BENCHMARKS.items() for other in others}


def canonical_dataset(name: str) -> str:
    """Return the store's name of the dataset that a harness calls `name`.

    Args:
        name: Name of a benchmark, of one of its configs or of one of its sub-tables.

    Returns:
        The name in the store; `name` itself if it is not an alias.

    >>> canonical_dataset("TempCompass_YorN"), canonical_dataset("Video-MME")
    ('TempCompass', 'Video-MME')
    """
    return _CANONICAL.get(name, name)


def video_id(dataset: str, path: str | os.PathLike[str]) -> str:
    """Return the id of the video at `path`: its path below the benchmark's video folder, without a video's suffix.

    If the path contains a snapshot of the Hub, the folder is searched below it. A path without a folder called `video`
    or `videos` is named from the snapshot on, or from a folder with the dataset's name, or only by its file name.

    Args:
        dataset: Name of the dataset, as `canonical_dataset` takes it.
        path: Path of the video file; it need not exist.

    Returns:
        The id, with `/` between folders.

    >>> video_id("MLVU_MCQ", "/hub/datasets--MLVU--MVLU/snapshots/3f2a/./MLVU/video/1_plotQA/movie101_66.mp4")
    '1_plotQA/movie101_66'
    """
    *folders, name = PurePosixPath(os.path.normpath(path)).parts
    below = _below_snapshot(folders)
    if below is None:
        # Without a revision, a folder of the user's may be called videos too, so the last one counts.
        cut = max((i for i, part in enumerate(folders) if part in VIDEO_FOLDERS), default=None)
        if cut is None:
            own = (canonical_dataset(dataset), dataset)
            cut = max((i for i, part in enumerate(folders) if part in own), default=len(folders))
        kept = folders[cut + 1 :]
    else:
        cut = next((i for i, part in enumerate(below) if part in VIDEO_FOLDERS), -1)
        kept = below[cut + 1 :]
    return name_video(PurePosixPath(*kept, name))


def _below_snapshot(folders: list[str]) -> list[str] | None:
    places = [i for i, part in enumerate(folders[:-1]) if part == "snapshots"]
    return folders[places[-1] + 2 :] if places else None
