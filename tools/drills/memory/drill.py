"""Watch memory and descriptors over ten thousand gets and five hundred ingested videos: they must stay flat.

Memory is what a process holds of its own; pages mapped from the store's files belong to the page cache. The work's
beginning, but for its first fifth, is compared with its end. Exits with 1 where something grew beyond the bound, or
descriptors stayed open.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from drills.memory.samples import MIB, Series, plot
from drills.readers.reading import COMMITS, READS, Board
from drills.shared import processes
from drills.shared.clips import make_clips
from drills.shared.content import NFRAME, drill_encoder, drill_spec, put
from drills.shared.figures import report

import featstore
from featstore.sampling import Sampling
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from collections.abc import Callable

PLOT = Path(__file__).resolve().parents[3] / "docs" / "reliability-memory.png"
DATASETS = tuple(f"set{i}" for i in range(4))
VIDEOS = tuple(f"v{i}" for i in range(8))
LARGE = 64  # frames: records of 400 KB
GETS_A_COMMIT = 200
PICTURES = 25  # different clips; the others are copies of them
MOST_GROWTH = 8 * MIB
MOST_MORE = 2  # descriptors: some are open for a moment
GETS, INGEST = "gets", "ingested videos"
OWN = "ingest"


@click.command()
@click.option("--gets", default=10_000, show_default=True, help="Records read.")
@click.option("--videos", default=500, show_default=True, help="Videos ingested.")
@click.option(
    "--seed",
    default=1,
    show_default=True,
    help="For the other drills' sake: nothing here is random.",
)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; a temporary one.")
@click.option("--plot", "draw", is_flag=True, help="Draw docs/reliability-memory.png.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(gets: int, videos: int, seed: int, folder: Path | None, draw: bool, as_json: bool) -> None:
    """Read, ingest, sample; print what each process held at the beginning and at the end."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="memory-drill-", dir=folder) as name:
        place = Path(name)
        panels = {GETS: watch_gets(place / "gets", gets), INGEST: watch_ingest(place, videos)}
        if draw:
            processes.say(plot(PLOT, panels, {GETS: "gets", INGEST: "videos stored"}))
        rows, problems = [], []
        for title, many in panels.items():
            for series in many:
                early, late, before, after = series.growth()
                rows.append(
                    (
                        f"{title}: {series.name}",
                        max(series.done, default=0),
                        f"{early / MIB:.1f}",
                        f"{late / MIB:.1f}",
                        before,
                        after,
                    )
                )
                if late - early > MOST_GROWTH:
                    problems.append(
                        f"{title}: {series.name} grew by {(late - early) / MIB:.1f} MiB"
                    )
                if after > before + MOST_MORE or not before:
                    problems.append(f"{title}: {series.name} has {after} descriptors, not {before}")
        report(
            place,
            ("work", "done", "MiB early", "MiB late", "descriptors early", "late"),
            rows,
            facts={"bound_mib": MOST_GROWTH // MIB, "seconds": round(time.monotonic() - begun)},
            problems=problems,
            as_json=as_json,
        )


def watch_gets(place: Path, gets: int) -> list[Series]:
    """Sample a process that reads records of four datasets, each proved at its first read, while one is replaced."""
    place.mkdir()
    board = Board(place / "board")
    for dataset in DATASETS:
        processes.ask(store, place / "cache", dataset, VIDEOS, 1)
    series = Series("reader")
    pid = processes.start(place / "log", read, place, gets)
    watch(pid, lambda: board.total(READS), {series: ""})
    return [series]


def read(place: Path, gets: int) -> None:
    """Get one record after the other; now and then another process commits a new version of one."""
    board = Board(place / "board")
    for number in range(gets):
        if number % GETS_A_COMMIT == 0:
            version, dataset = 2 + number, DATASETS[number // GETS_A_COMMIT % len(DATASETS)]
            processes.ask(store, place / "cache", dataset, VIDEOS[:1], version)
        dataset, video = DATASETS[number % len(DATASETS)], VIDEOS[number // 4 % len(VIDEOS)]
        features = featstore.get(place / "cache", dataset, video)
        assert features.data[-1, -1] is not None
        board.add(0, READS)


def store(cache: Path, dataset: str, videos: tuple[str, ...], version: int) -> None:
    """Put one version of some large records."""
    spec = drill_spec(LARGE)
    with FeatureWriter(cache, dataset, min_free=0) as writer:
        writer.add_set(spec, origin="drill")
        for video in videos:
            put(writer, spec, video, version)


def watch_ingest(place: Path, videos: int) -> list[Series]:
    """Sample an ingest and its children while it stores `videos` clips."""
    clips = place / "clips"
    make_clips(clips, PICTURES, broken=False)
    for number in range(PICTURES, videos):
        shutil.copy(clips / f"v{number % PICTURES:03}.mp4", clips / f"v{number:03}.mp4")
    board = Board(place / "board")
    series = {Series(OWN): "", Series("writer"): processes.WRITER}
    series[Series("decoder")] = processes.DECODER
    pid = processes.start(place / "log", ingest, place, clips)
    watch(pid, lambda: board.total(COMMITS), series)
    return list(series)


def ingest(place: Path, clips: Path) -> None:
    """Ingest the clips, and tell how far it is."""
    board = Board(place / "board")

    def note(progress: object) -> None:
        board.counts[0, COMMITS] = progress.done  # type: ignore[attr-defined]

    featstore.ingest(
        [clips],
        place / "cache",
        "demo",
        encoder=drill_encoder(),
        sampling=Sampling(NFRAME),
        options=featstore.IngestOptions(workers=1, min_free=0),
        on_progress=note,
    )


def watch(pid: int, done: Callable[[], int], series: dict[Series, str]) -> None:
    """Sample the process `pid`, or those of its children that run a module, until it ends."""
    own = processes.psutil.Process(pid)
    while (code := processes.wait_exit(pid, 0.05)) is None:
        for one, module in series.items():
            one.take(done(), processes.children_of(pid, module) if module else [own])
    if code:
        raise click.ClickException(f"the work that was watched ended with {code}")


if __name__ == "__main__":
    main()
