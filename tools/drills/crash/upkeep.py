"""The upkeep of a store, step by step in the process that is killed: single removals, compaction, merge, repair."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from drills.crash.scene import Looping
from drills.crash.steps import DATASET
from drills.shared import processes
from drills.shared.content import drill_spec, put, stored_form, version_of
from drills.shared.journal import step
from drills.shared.look import Found, look, name_of, wrong_counts

from featstore.errors import RecordError
from featstore.store.maintenance import merge
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.remove import remove_set, remove_videos
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.paths import DATA_FILE
from featstore.store.reader import FeatureStore
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from drills.shared.journal import Notes

    from featstore.spec import FeatureSpec

VIDEOS = tuple(f"u{i}" for i in range(8))
SPECS = (drill_spec(8), drill_spec(4))
DAMAGED = -1


def put_all(cache: Path, videos: list[str], version: int, spec: FeatureSpec) -> dict[str, int]:
    """Store one version of some videos in one commit, and return what is then there."""
    with FeatureWriter(cache, DATASET, min_free=0) as writer:
        writer.add_set(spec, origin="drill")
        for video in videos:
            put(writer, spec, video, version)
    return names(videos, version, spec)


def names(videos: list[str], version: int, spec: FeatureSpec) -> dict[str, int]:
    """Return one version of some videos, by name."""
    return dict.fromkeys((name_of(DATASET, spec, video) for video in videos), version)


class RemoveSome(Looping):
    """Single videos and whole feature sets are removed and stored again, in two feature sets."""

    name = "rm videos"

    def furnish(self) -> dict[str, int]:
        """Make the two sets."""
        both = [put_all(self.cache, list(VIDEOS), 1, spec) for spec in SPECS]
        return {**both[0], **both[1]}

    def steps(self, rng: random.Random, journal: Notes, state: dict[str, int]) -> Iterator[None]:
        """Remove some or all of a set, put it there again."""
        version = max(state.values(), default=rng.randrange(1 << 20))
        while True:
            spec, version = rng.choice(SPECS), version + 1
            some = rng.sample(VIDEOS, rng.randint(1, 3))
            if rng.random() < 0.3:
                with step(journal, "rm of a set", dict.fromkeys(names(list(VIDEOS), 0, spec))):
                    remove_set(self.cache, DATASET, spec)
                some = list(VIDEOS)
            else:
                with step(journal, "rm of videos", dict.fromkeys(names(some, 0, spec))):
                    remove_videos(self.cache, DATASET, some, spec=spec)
            yield
            with step(journal, "storing them again", names(some, version, spec)):
                put_all(self.cache, some, version, spec)
            yield


class Compact(Looping):
    """A dataset is compacted, between removals and new versions that leave holes in its file."""

    name = "compact"

    def furnish(self) -> dict[str, int]:
        """Make the dataset."""
        return put_all(self.cache, list(VIDEOS), 1, SPECS[0])

    def steps(self, rng: random.Random, journal: Notes, state: dict[str, int]) -> Iterator[None]:
        """Put new versions of some videos, then compact."""
        version = max(state.values())
        while True:
            version += 1
            some = rng.sample(VIDEOS, 2)
            with step(journal, "new versions", names(some, version, SPECS[0])):
                put_all(self.cache, some, version, SPECS[0])
            yield
            with step(journal, "compact", {}):
                compact_dataset(self.cache, DATASET)
            yield

    def finish(self) -> list[str]:
        """Compact once more: what killed compactions left must be gone."""
        processes.ask(self._compact)
        left = sorted(set(os.listdir(self.cache)) - {DATASET})
        return [f"compactions left {left}"] if left else []

    def _compact(self) -> None:
        compact_dataset(self.cache, DATASET)


class Merge(Looping):
    """Videos of another cache are merged into one that has some of them, a commit for each video."""

    name = "merge"

    def furnish(self) -> dict[str, int]:
        """Make the other cache, and this one with a video that the other has in another version."""
        put_all(self.folder / "other", list(VIDEOS), 1, SPECS[0])
        return put_all(self.cache, [VIDEOS[0]], 2, SPECS[0])

    def steps(self, rng: random.Random, journal: Notes, state: dict[str, int]) -> Iterator[None]:
        """Merge what is missing, then remove it again."""
        every_video_a_commit = partial(FeatureWriter, commit_bytes=1)
        merge.FeatureWriter = every_video_a_commit  # type: ignore[assignment,misc]
        wanted = names(list(VIDEOS), 1, SPECS[0])
        kept = names([VIDEOS[0]], 2, SPECS[0])
        while True:
            missing = {name: 1 for name in wanted if name not in {**state, **kept}}
            with step(journal, "merge", missing, whole=False):
                merge.merge_dataset(
                    self.folder / "other",
                    self.cache,
                    DATASET,
                    min_free=0,
                    on_progress=lambda now: journal.note("partly", done=now.stored),
                )
            yield
            some = rng.sample(VIDEOS[1:], rng.randint(2, 7))
            state = {name: 1 for name in wanted if name not in names(some, 1, SPECS[0])}
            with step(journal, "making room", dict.fromkeys(names(some, 1, SPECS[0]))):
                remove_videos(self.cache, DATASET, some)
            yield


class Repair(Looping):
    """Records are damaged on the disk, repaired away, and stored again; nothing else may be touched."""

    name = "repair"

    def furnish(self) -> dict[str, int]:
        """Make the dataset."""
        return put_all(self.cache, list(VIDEOS), 1, SPECS[0])

    def steps(self, rng: random.Random, journal: Notes, state: dict[str, int]) -> Iterator[None]:
        """Damage some, repair, store again."""
        version = max([1, *state.values()])
        while True:
            if DAMAGED not in state.values():
                name = rng.choice([name for name in state if state[name] > 0] or [""])
                if name:
                    with step(journal, "damage", {name: DAMAGED}):
                        self._spoil(name, state[name])
                    state = {**state, name: DAMAGED}
                    yield
            gone = {name: None for name, there in state.items() if there == DAMAGED}
            with step(journal, "repair", gone):
                repair_dataset(self.cache, DATASET)
            state = {name: there for name, there in state.items() if there != DAMAGED}
            yield
            version += 1
            again = [v for v in VIDEOS if name_of(DATASET, SPECS[0], v) not in state]
            new = names(again, version, SPECS[0])
            with step(journal, "storing it again", new):
                put_all(self.cache, again, version, SPECS[0])
            state = {**state, **new}
            yield

    def seen(self) -> dict[str, Any]:
        """Return what is visible; a damaged video counts as such, and so does what `check` says of it."""
        shelf = FeatureStore(self.cache, verify="always")[DATASET]
        damaged = {}
        for entry in shelf.entries():
            try:
                shelf.lookup(entry.video_id)
            except RecordError:
                damaged[entry.video_id] = name_of(DATASET, SPECS[0], entry.video_id)
        if not damaged:
            return asdict(look(self.cache))
        found = Found(dict.fromkeys(damaged.values(), DAMAGED), problems=wrong_counts(shelf))
        for video in (entry.video_id for entry in shelf.entries()):
            if video not in damaged:
                features = shelf.lookup(video)
                found.versions[name_of(DATASET, SPECS[0], video)] = version_of(features)
                if stored_form(SPECS[0], video, version_of(features))[0] != features.data.tobytes():
                    found.problems.append(f"{video} is visible with bytes that are not its own")
        problems = check_dataset(self.cache, DATASET).problems
        found.problems += [
            said for said in problems if not any(repr(video) in said for video in damaged)
        ]
        return asdict(found)

    def _spoil(self, name: str, version: int) -> None:
        payload = stored_form(SPECS[0], name.rpartition("/")[2], version)[0]
        with open(self.cache / DATASET / DATA_FILE, "r+b", buffering=0) as file:
            at = file.read().find(payload[:256])
            os.pwrite(file.fileno(), bytes([payload[0] ^ 1]), at)
            os.fsync(file.fileno())
