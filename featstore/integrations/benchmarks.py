"""What VLMEvalKit calls datasets and videos, and what the store calls them.

Ingest and model meet in these two functions alone. A video's name must not depend on who asks: VLMEvalKit hands the
model the name of a sub-table, and a path that holds the snapshot's revision and the user's home.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from featstore.pipeline.listing import name_video

NFRAME = 128
VIDEO_FOLDERS = ("video", "videos")


@dataclass(frozen=True)
class Benchmark:
    """A video benchmark at 128 frames.

    config: its name on VLMEvalKit's command line. cls: the class of vlmeval.dataset. dataset: what that class, and the
    store, call it. tables: the names its rows go by where it is made of several. options: further ones of the class.
    """

    config: str
    cls: str
    dataset: str
    tables: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


BENCHMARKS = (
    Benchmark("Video-MME_128frame", "VideoMME", "Video-MME"),
    Benchmark("Video_Holmes_128frame", "Video_Holmes", "Video_Holmes"),
    Benchmark(
        "TempCompass_128frame",
        "TempCompass",
        "TempCompass",
        tables=("TempCompass_MCQ", "TempCompass_Captioning", "TempCompass_YorN"),
    ),
    Benchmark("MLVU_128frame", "MLVU", "MLVU", tables=("MLVU_MCQ", "MLVU_OpenEnded")),
    Benchmark("VideoMMMU_128frame", "VideoMMMU", "VideoMMMU"),
    Benchmark(
        "MMBench_Video_128frame_nopack", "MMBenchVideo", "MMBench-Video", options={"pack": False}
    ),
    Benchmark("LongVideoBench_128frame", "LongVideoBench", "LongVideoBench"),
)

_CANONICAL = {name: found.dataset for found in BENCHMARKS for name in (found.config, *found.tables)}


def canonical_dataset(name: str) -> str:
    """Return the store's name of a dataset that VLMEvalKit calls `name`, be it one of its sub-tables.

    >>> canonical_dataset("TempCompass_YorN"), canonical_dataset("Video-MME")
    ('TempCompass', 'Video-MME')
    """
    return _CANONICAL.get(name, name)


def video_id(dataset: str, path: str | os.PathLike[str]) -> str:
    """Return the id of the video at `path`: where it lies below its benchmark's video folder, without a video's suffix.

    The folder is looked for below the Hub's snapshot where there is one. A path that goes through no folder called
    `video` or `videos` is named from the snapshot on, or from a folder called like the dataset, or by its file alone.

    >>> video_id("MLVU_MCQ", "/hub/datasets--MLVU--MVLU/snapshots/3f2a/./MLVU/video/1_plotQA/movie101_66.mp4")
    '1_plotQA/movie101_66'
    """
    *folders, name = PurePosixPath(os.path.normpath(path)).parts
    below = _below_snapshot(folders)
    if below is None:
        # No revision says where the benchmark begins: a user's own folder may be called videos, so the last one counts.
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
