"""One reader of bench_scale, in a process of its own: opens, looks up, lists, and prints what it took as JSON.

python probe_scale.py KIND FOLDER COUNT PICKS
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measure
import numpy as np
from safetensors.numpy import load_file

from featstore.decoding.video_file import Video
from featstore.encoders.toy import ToyEncoder
from featstore.pipeline.plan import make_plan
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.reader import FeatureStore

if TYPE_CHECKING:
    from collections.abc import Callable

OPENS = 5
DATASET = "scale"
SHAPE = (16, 8)


def scale_spec() -> FeatureSpec:
    """Return the feature set of all records."""
    toy = ToyEncoder()
    frames = SHAPE[0] // toy.identity.geometry.tokens_per_unit
    return FeatureSpec(toy.identity, Sampling(frames), "decord", toy.preprocessing)


def video_id(number: int) -> str:
    """Return the id of a video."""
    return f"video_{number:07d}"


def video_path(name: str) -> str:
    """Return the path of a video's file, which does not exist."""
    return f"/videos/{name}.mp4"


def open_featstore(folder: Path) -> Any:
    dataset = FeatureStore(folder)[DATASET]
    _ = dataset.feature_set  # the feature sets too
    return dataset


def look_up_featstore(reader: Any, video: str) -> object:
    features = reader[video]
    return features.data, *features.scales


def list_featstore(reader: Any) -> int:
    return sum(1 for _ in reader.entries())


def skip_featstore(reader: Any, videos: list[Video]) -> int:
    return len(make_plan(videos, reader.snapshot(), scale_spec()).stored)


def open_sqlite(folder: Path) -> Any:
    return sqlite3.connect(f"file:{folder}/features.db?mode=ro", uri=True)


def look_up_sqlite(reader: Any, video: str) -> object:
    [row] = reader.execute("SELECT data, scale FROM features WHERE id = ?", (video,))
    return np.frombuffer(row[0], np.int8), np.frombuffer(row[1], np.float32)


def list_sqlite(reader: Any) -> int:
    return sum(1 for _ in reader.execute("SELECT id, tokens, dim FROM features"))


def skip_sqlite(reader: Any, videos: list[Video]) -> int:
    there = {name for (name,) in reader.execute("SELECT id FROM features")}
    return sum(video.video_id in there for video in videos)


def open_files(folder: Path) -> Any:
    return folder


def look_up_file(reader: Any, video: str) -> object:
    return load_file(reader / f"{video}.safetensors")


def list_files(reader: Any) -> int:
    return sum(1 for _ in os.scandir(reader))


def skip_files(reader: Any, videos: list[Video]) -> int:
    there = {entry.name for entry in os.scandir(reader)}
    return sum(f"{video.video_id}.safetensors" in there for video in videos)


# Opens, looks up, lists all, and tells how many of the videos it is given are stored.
KINDS: dict[str, tuple[Callable[..., Any], ...]] = {
    "featstore": (open_featstore, look_up_featstore, list_featstore, skip_featstore),
    "sqlite": (open_sqlite, look_up_sqlite, list_sqlite, skip_sqlite),
    "safetensors, a file a video": (open_files, look_up_file, list_files, skip_files),
}


def probe(kind: str, folder: Path, count: int, picks: int) -> dict[str, Any]:
    """Return seconds of opening, looking up, a listing, a skip check and a stat of each file, and the memory taken."""
    opened, look_up, listed, skipped = KINDS[kind]
    before = anonymous_bytes()
    opening = []
    for _ in range(OPENS):
        begun = time.perf_counter()
        reader = opened(folder)
        opening.append(time.perf_counter() - begun)
    after_open = anonymous_bytes()
    chosen = np.random.default_rng(0).choice(count, min(picks, count), replace=False)
    videos = [video_id(number) for number in chosen]
    measure.spare_the_living()
    first, again = (_time(lambda video: look_up(reader, video), videos) for _ in range(2))
    begun = time.perf_counter()
    if listed(reader) != count:
        raise SystemExit(f"{kind} lists other than {count} videos")
    listing = time.perf_counter() - begun
    after_all = anonymous_bytes()
    videos = [Video(name, video_path(name)) for name in map(video_id, range(count))]
    begun = time.perf_counter()
    if skipped(reader, videos) != count:
        raise SystemExit(f"{kind} knows other than {count} videos")
    skipping = time.perf_counter() - begun
    begun = time.perf_counter()
    for video in videos:
        os.path.exists(video.path)
    return {
        "open_s": opening,
        "first_s": first,
        "again_s": again,
        "listing_s": listing,
        "skip_s": skipping,
        "stats_s": time.perf_counter() - begun,
        "open_bytes": after_open - before,
        "all_bytes": after_all - before,
    }


def anonymous_bytes() -> int:
    """Return this process's own memory, without what is shared with the page cache."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))


def _time(call: Callable[[str], object], videos: list[str]) -> list[float]:
    seconds = []
    for video in videos:
        begun = time.perf_counter()
        call(video)
        seconds.append(time.perf_counter() - begun)
    return seconds


if __name__ == "__main__":
    kind, place, count, picks = sys.argv[1:]
    print(json.dumps(probe(kind, Path(place), int(count), int(picks))))
