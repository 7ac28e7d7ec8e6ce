"""The readers and the writer of the readers drill: each a program of its own, that counts on a board all can see.

Every read is compared, byte by byte, with what the version it claims to be must be; a video's version never goes back;
and a view that was held while the writer went on shows the same bytes at the end.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from drills.shared.content import drill_spec, is_right, put, version_of
from drills.shared.journal import Journal

from featstore.store.reader import FeatureStore, get
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from featstore.records.features import Features

DATASET = "demo"
VIDEOS = tuple(f"v{i:02}" for i in range(24))
HELD = 4  # views a reader keeps while it goes on
COMMITS_A_SECOND = 25
READS, COMMITS = range(2)


class Board:
    """Counts that outlive who counted: (reader or writer, READS or COMMITS), in a file that all of them map."""

    def __init__(self, path: Path) -> None:
        """Map the file, which is made where it is missing."""
        if not path.exists():
            path.write_bytes(bytes(8 * 2 * 64))
        self.counts = np.memmap(path, np.uint64, "r+", shape=(64, 2))

    def add(self, who: int, what: int) -> None:
        """Count one."""
        self.counts[who, what] += np.uint64(1)

    def total(self, what: int) -> int:
        """Return the sum over all."""
        return int(self.counts[:, what].sum())


class Reader:
    """Reads random videos, proves each, and keeps a few views to prove them again later."""

    def __init__(self, place: Path, who: int, seed: int) -> None:
        """Note where to read and where to complain."""
        self.cache = place / "cache"
        self._who = who
        self._rng = random.Random(seed)
        self._spec = drill_spec()
        self._board = Board(place / "board")
        self._complaints = Journal(place / "complaints")
        self._seen: dict[str, int] = {}
        self._held: deque[Features] = deque()

    def read(self) -> None:
        """Read one video; complain where anything is not as it should be."""
        video = self._rng.choice(VIDEOS)
        try:
            features = get(self.cache, DATASET, video, spec=self._spec)
            self._prove(video, features)
        except Exception as exc:
            self._complain(video, f"{type(exc).__name__}: {exc}")
        self._board.add(self._who, READS)

    def _prove(self, video: str, features: Features) -> None:
        version = version_of(features)
        if features.header.video_id != video or not is_right(self._spec, features):
            self._complain(video, f"wrong bytes at version {version}")
        if version < self._seen.get(video, 0):
            self._complain(video, f"version {version} came after {self._seen[video]}")
        self._seen[video] = version
        self._held.append(features)
        if len(self._held) > HELD:
            held = self._held.popleft()
            if not is_right(self._spec, held):
                self._complain(held.header.video_id, "a view that was held shows other bytes")

    def _complain(self, video: str, what: str) -> None:
        self._complaints.note("wrong", reader=self._who, video=video, what=what)


def read_until(place: Path, who: int, seed: int, end: float) -> None:
    """Read until the time `end`."""
    reader = Reader(place, who, seed)
    while time.time() < end:
        reader.read()


def read_in_threads(place: Path, who: int, seed: int, end: float) -> None:
    """Read in two threads of this process, which share its environment."""
    threads = [
        threading.Thread(target=read_until, args=(place, who + i, seed + i, end)) for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def read_in_workers(place: Path, who: int, seed: int, end: float, start: str) -> None:
    """Read in two workers of a torch DataLoader, begun by `start`; begin again when one was killed."""
    from torch.utils.data import DataLoader

    Reader(place, who, seed).read()  # the environment is open before the fork
    while time.time() < end:
        seed += 2
        reads = Reads(place, who, seed, end)
        loader = DataLoader(reads, batch_size=None, num_workers=2, multiprocessing_context=start)
        with contextlib.suppress(RuntimeError):  # a worker was killed
            for more in loader:
                if not more:
                    break


class Reads:
    """A dataset for a DataLoader: each item is twenty reads in whichever worker it falls to."""

    def __init__(self, place: Path, who: int, seed: int, end: float) -> None:
        """Keep plain values, so that it can be sent to a spawned worker."""
        self._plain = place, who, seed, end
        self._reader: Reader | None = None

    def __len__(self) -> int:
        """Return more items than there is time for."""
        return 1 << 20

    def __getitem__(self, index: int) -> bool:
        """Read, and return whether there is time for more."""
        from torch.utils.data import get_worker_info

        place, who, seed, end = self._plain
        if self._reader is None:
            worker = get_worker_info().id
            self._reader = Reader(place, who + worker, seed + worker)
        for _ in range(20):
            self._reader.read()
        return time.time() < end


def write_until(place: Path, who: int, seed: int, end: float) -> None:
    """Put ever newer versions of random videos, one commit each, until the time `end`."""
    rng, board = random.Random(seed), Board(place / "board")
    for _ in newer(place, iter(lambda: rng.choice(VIDEOS), None)):
        board.add(who, COMMITS)
        time.sleep(1 / COMMITS_A_SECOND)
        if time.time() >= end:
            return


def rewrite(place: Path) -> int:
    """Put a newer version of each video four times over, one commit each, and return how many that were."""
    return sum(1 for _ in newer(place, VIDEOS * 4))


def newer(place: Path, videos: Iterable[str]) -> Iterator[int]:
    """Put a newer version of each of `videos`, one commit each, and yield it."""
    spec = drill_spec()
    shelf = FeatureStore(place / "cache")[DATASET]
    version = max(entry.source.size for entry in shelf.entries())
    with FeatureWriter(place / "cache", DATASET, min_free=0) as writer:
        writer.add_set(spec, origin="drill")
        for video in videos:
            version += 1
            put(writer, spec, video, version)
            writer.commit()
            yield version


def main() -> None:
    """Do what the command line says: kind, folder, number on the board, seed, end."""
    kind, place, who, seed, end = sys.argv[1:]
    known = {"process": read_until, "thread": read_in_threads, "writer": write_until}
    plain = Path(place), int(who), int(seed), float(end)
    if kind in known:
        known[kind](*plain)
    else:
        read_in_workers(*plain, kind)


if __name__ == "__main__":
    main()
