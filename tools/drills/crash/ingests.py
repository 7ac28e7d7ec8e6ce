"""Ingests that are killed: everything, only the parent, the writer or a decoder; first runs, retries and restorings."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from drills.crash.scene import PATIENCE, Outcome, Scene
from drills.shared import processes
from drills.shared.clips import BROKEN
from drills.shared.content import NFRAME, drill_encoder, drill_spec
from drills.shared.journal import Journal, read_journal
from drills.shared.look import look, name_of

import featstore
from featstore.pipeline.make_record import pack_scales
from featstore.pipeline.write.writer_client import WriterProcess
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.store.reader import FeatureStore
from featstore.store.rows import Failure
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from drills.shared.journal import Notes
    from drills.shared.look import Found

    from featstore.pipeline.write.writer_process import Committed
    from featstore.records.features import Features
    from featstore.spec import FeatureSpec

DATASET = "demo"
CLIPS = 32
# How often each is the victim; an ingest goes on without a decoder it lost, so those take the longest.
VICTIMS = {"everything": 3, "parent": 3, "writer": 3, "decoder": 1}
FIRST, OTHER = Storage(), Storage("bf16")


class Ingest(Scene):
    """An ingest of `CLIPS` clips and two broken files, begun again after each kill, at last let through."""

    name = "ingest"
    kills_a_life = 10
    storages = (FIRST,)  # that its records may have

    def __init__(self, folder: Path, clips: Path) -> None:
        """Keep where the clips are, and an undisturbed ingest's features of them."""
        super().__init__(folder)
        self.clips = clips
        self._victim = ""

    def furnish(self) -> dict[str, int]:
        """Make nothing: the first run makes the dataset."""
        return {}

    def act(self, seed: int) -> None:
        """Ingest what is not stored yet."""
        ingest_noting(self.clips, self.cache, Journal(self.journal))

    def strike(self, pid: int, rng: random.Random) -> bool:
        """Kill at a random time after the start, or a moment after one of the first commits."""
        (self._victim,) = rng.choices(list(VICTIMS), list(VICTIMS.values()))
        if rng.random() < 0.4:
            time.sleep(rng.uniform(0, 1.2))
        else:
            self._await_commits(rng.randrange(6))
            time.sleep(rng.uniform(0, 0.02))
        everyone = processes.children_of(pid)
        modules = {"writer": processes.WRITER, "decoder": processes.DECODER}
        victims = [p for p in everyone if modules.get(self._victim) in _words(p)][:1]
        struck = bool(victims)
        if not victims:  # the parent is to die, or the one that is has not been started yet
            if self._victim in modules:
                self._victim = "parent"
            victims = [processes.psutil.Process(pid)]
            struck = victims[0].status() != processes.psutil.STATUS_ZOMBIE
            victims += everyone if self._victim == "everything" else []
        processes.kill(victims)
        self._ended = processes.wait_exit(pid, PATIENCE) is not None
        self._orphans = not processes.wait_gone(everyone, PATIENCE)
        return struck

    def judge(self) -> Outcome:
        """Expect every acknowledged video, and no other than whole ones."""
        outcome = compare_ingest(read_journal(self.journal), self.see())
        outcome.phase = f"{self._victim}, {outcome.phase}"
        if not self._ended:
            outcome.problems.append(f"the ingest hung after the kill of its {self._victim}")
        if self._orphans:
            outcome.problems.append("processes outlived their ingest")
        return outcome

    def finish(self) -> list[str]:
        """Let an ingest through, failed ones tried again; the right videos must then be there."""
        processes.ask(self._resume)
        found = self.see()
        spec = drill_spec()
        wanted = {name_of(DATASET, spec, f"v{n:03}") for n in range(CLIPS)}
        broken = {name_of(DATASET, spec, name) for name in BROKEN}
        problems = list(found.problems)
        if found.versions.keys() != wanted or found.failed.keys() != broken:
            problems.append(f"resumed to {sorted(found.versions)}, failed {found.failed}")
        return problems

    def seen(self) -> dict[str, Any]:
        """Return what is visible, compared with an ingest that nobody disturbed."""
        return asdict(look(self.cache, self._is_right))

    @cached_property
    def _reference(self) -> dict[str, dict[str, list[str]]]:
        return {
            str(storage): processes.ask(
                reference_of, self.clips, self.clips.with_name(f"reference-{number}"), storage
            )
            for number, storage in enumerate(self.storages)
        }

    def prepare(self) -> None:
        """Begin a new life; the reference is made before the first."""
        _ = self._reference
        super().prepare()

    def _is_right(self, spec: FeatureSpec, features: Features) -> bool:
        header = features.header
        right = self._reference.get(str(header.storage), {})
        return right.get(header.video_id) == fingerprint_of(features)

    def _resume(self) -> None:
        ingest_noting(self.clips, self.cache, Journal(self.journal), retry_failed=True)

    def _await_commits(self, count: int) -> None:
        before = len(read_journal(self.journal))
        deadline = time.monotonic() + 4
        while len(read_journal(self.journal)) <= before + count and time.monotonic() < deadline:
            time.sleep(0.001)


class Retry(Ingest):
    """An ingest with --retry-failed of a dataset in which every video failed before."""

    name = "retry"

    def furnish(self) -> dict[str, int]:
        """Record a failure for every clip."""
        spec = drill_spec()
        with FeatureWriter(self.cache, DATASET, min_free=0) as writer:
            writer.add_set(spec, origin="drill")
            for path in sorted(self.clips.iterdir()):
                row = Failure(path.stem, str(path), spec.digest, "the disk was away", time.time())
                writer.fail(row)
        return {}

    def act(self, seed: int) -> None:
        """Ingest what failed."""
        self._resume()


class Restore(Ingest):
    """An ingest with --restore-as of a dataset whose videos are all stored, in another way."""

    name = "restore"
    storages = (FIRST, OTHER)

    def furnish(self) -> dict[str, int]:
        """Store every clip in the first way."""
        ingest_noting(self.clips, self.cache, Journal(self.folder / "first"), storage=FIRST)
        spec = drill_spec()
        return {name_of(DATASET, spec, f"v{n:03}"): 0 for n in range(CLIPS)}

    def act(self, seed: int) -> None:
        """Store them again in the other one."""
        ingest_noting(self.clips, self.cache, Journal(self.journal), storage=OTHER)

    def finish(self) -> list[str]:
        """Let an ingest through; each record must then be stored in the other way."""
        return super().finish() + processes.ask(self._left_behind)

    def _resume(self) -> None:
        # Once the set's row says how it is to be stored, an ingest that says nothing goes on with it.
        decided = FeatureStore(self.cache)[DATASET].feature_set.storage == OTHER
        wanted = None if decided else OTHER
        ingest_noting(
            self.clips, self.cache, Journal(self.journal), retry_failed=True, storage=wanted
        )

    def _left_behind(self) -> list[str]:
        entries = FeatureStore(self.cache)[DATASET].entries()
        return [
            f"{entry.video_id} is still stored as {entry.storage}"
            for entry in entries
            if entry.storage != OTHER
        ]


def ingest_noting(
    clips: Path,
    cache: Path,
    journal: Notes,
    *,
    retry_failed: bool = False,
    storage: Storage | None = None,
) -> None:
    """Ingest, each commit noted as it is reported and before it is counted; a `storage` replaces the set's."""
    spec = drill_spec()

    def note(commit: Committed) -> Committed:
        journal.note(
            "committed",
            stored=[name_of(DATASET, spec, video) for video, _ in commit.stored],
            failed=[name_of(DATASET, spec, video) for video in commit.failed],
        )
        return commit

    collect, finish = WriterProcess.collect, WriterProcess.finish
    WriterProcess.collect = lambda self: map(note, collect(self))  # type: ignore[method-assign]
    WriterProcess.finish = lambda self: map(note, finish(self))  # type: ignore[method-assign]
    featstore.ingest(
        [clips],
        cache,
        DATASET,
        encoder=drill_encoder(),
        sampling=Sampling(NFRAME),
        storage=storage,
        options=featstore.IngestOptions(
            workers=1,
            min_free=0,
            lock_wait=PATIENCE,
            retry_failed=retry_failed,
            replace_storage=storage is not None,
        ),
    )


def compare_ingest(lines: list[dict[str, Any]], found: Found) -> Outcome:
    """Return what is to be said of `found` after the commits that `lines` report."""
    stored, failed = acknowledged(lines)
    lost = {name for name in stored if name not in found.versions}
    lost |= {name for name in failed if name not in found.failed | found.versions}
    outcome = Outcome(f"{'after' if stored else 'before'} a commit", len(stored | failed))
    outcome.lost, outcome.half = len(lost), len(found.problems)
    outcome.problems += found.problems
    if lost:
        outcome.problems.append(f"acknowledged and lost: {sorted(lost)}")
    return outcome


def acknowledged(lines: list[dict[str, Any]]) -> tuple[set[str], set[str]]:
    """Return the videos that were there before or whose commit was reported, and those that failed."""
    stored: set[str] = set()
    failed: set[str] = set()
    for line in lines:
        if line["kind"] == "settled":
            stored.update(line["state"])
        if line["kind"] != "committed":
            continue
        stored.update(line["stored"])
        failed = (failed | set(line["failed"])) - stored
    return stored, failed


def reference_of(clips: Path, cache: Path, storage: Storage) -> dict[str, list[str]]:
    """Return what an ingest that nobody disturbs stores of each clip."""
    ingest_noting(clips, cache, Journal(cache.with_name("reference.journal")), storage=storage)
    shelf = FeatureStore(cache)[DATASET]
    return {video: fingerprint_of(features) for video, features in shelf.items()}


def fingerprint_of(features: Features) -> list[str]:
    """Return all stored bytes of a record and its frames, as text."""
    header = features.header
    return [
        features.data.tobytes().hex(),
        pack_scales(features.scales).hex(),
        f"{header.frames} of {header.total_frames}",
    ]


def _words(process: processes.psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (processes.psutil.NoSuchProcess, processes.psutil.ZombieProcess):
        return []
