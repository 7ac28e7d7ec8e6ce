"""Eight readers beside a writer: processes, threads, DataLoader workers by fork and by spawn, killed now and then.

Every read is compared with the bytes it must be. The file must not grow by what killed readers had seen. Then two
ingests meet on one dataset, and more readers come than the reader table holds. Exits with 1 on anything wrong.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
from drills.crash.steps import fill
from drills.readers.crowd import full_table, two_ingests
from drills.readers.reading import COMMITS, DATASET, READS, VIDEOS, Board, rewrite
from drills.shared import processes
from drills.shared.figures import report
from drills.shared.journal import read_journal

from featstore.store.maintenance.check import check_dataset
from featstore.store.paths import DATA_FILE

TOOLS = Path(__file__).resolve().parents[2]
# (kind of program, its first reader's number on the board): 8 readers and the writer
PROGRAMS = (("process", 0), ("process", 1), ("thread", 2), ("fork", 4), ("spawn", 6), ("writer", 8))
# The file may take what is live and what living readers hold on to; each video overwritten once is as much again. How
# long a reader holds on is a matter of how busy the machine is.
MOST_GROWTH = 8.0


@dataclass
class Crowd:
    """The programs at work, and what was seen of them."""

    place: Path
    end: float
    seed: int
    programs: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    kills: int = 0
    begun: int = 0
    largest: int = 0
    problems: list[str] = field(default_factory=list)

    def tend(self) -> None:
        """Begin the programs that are not running, for as long as there is time."""
        for kind, who in PROGRAMS:
            running = self.programs.get(who)
            if running is not None and running.poll() not in (None, -9, 0):
                self.problems.append(f"the program {kind} ended with {running.returncode}")
            if (running is None or running.poll() is not None) and time.time() < self.end - 1:
                self.begun += 1
                self.programs[who] = self._begin(kind, who)

    def kill_one(self, rng: random.Random) -> None:
        """Kill a random reader, with its workers, or one worker of it; the writer is the crash drill's.

        A spawned worker of a DataLoader may outlive its killed parent for good, and its views keep their pages.
        """
        begun = [who for kind, who in PROGRAMS if kind != "writer" and who in self.programs]
        if not begun:
            return
        pid = self.programs[rng.choice(begun)].pid
        workers = processes.children_of(pid)
        victim = rng.choice([processes.psutil.Process(pid), *workers])
        processes.kill([victim, *workers] if victim.pid == pid else [victim])
        self.kills += 1

    def _begin(self, kind: str, who: int) -> subprocess.Popen[bytes]:
        plain = [kind, self.place, who, self.seed + 1000 * self.begun, self.end]
        log = (self.place / "log").open("ab")
        return subprocess.Popen(
            [sys.executable, "-m", "drills.readers.reading", *map(str, plain)],
            env={**os.environ, "PYTHONPATH": processes.python_path(TOOLS, TOOLS.parent)},
            stdout=log,
            stderr=log,
        )


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="How long all are at work.")
@click.option("--pause", default=4.0, show_default=True, help="Seconds between two kills.")
@click.option("--seed", default=1, show_default=True, help="Of victims and of what is read.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; a temporary one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(seconds: float, pause: float, seed: int, folder: Path | None, as_json: bool) -> None:
    """Read, write, kill, compare; print how many reads were right and how large the file grew."""
    with tempfile.TemporaryDirectory(prefix="readers-drill-", dir=folder) as name:
        place = Path(name)
        (place / "two").mkdir()
        (place / "full").mkdir()
        board = Board(place / "board")
        processes.ask(fill, place / "cache", DATASET, VIDEOS)
        live = size_of(place)
        crowd = work(place, seconds, pause, seed)
        problems = crowd.problems + [str(line) for line in read_journal(place / "complaints")]
        problems += kept_pages(place, live)
        problems += processes.ask(problems_in, place / "cache")
        growth = crowd.largest / live
        if growth > MOST_GROWTH:
            problems.append(f"the file grew to {growth:.1f} times what is live in it")
        problems += two_ingests(place / "two")
        problems += full_table(place / "full")
        commits = board.total(COMMITS)
        report(
            place,
            ("readers", "reads", "commits", "readers killed", "file, of live", "without reuse"),
            [
                (
                    8,
                    board.total(READS),
                    commits,
                    crowd.kills,
                    f"{growth:.2f}",
                    f"{1 + commits / len(VIDEOS):.0f}",
                )
            ],
            facts={"seed": seed, "seconds": seconds},
            problems=problems,
            as_json=as_json,
        )


def work(place: Path, seconds: float, pause: float, seed: int) -> Crowd:
    """Let all of them work, kill one now and then, and return what was seen."""
    rng = random.Random(seed)
    crowd = Crowd(place, time.time() + seconds, seed)
    next_kill = time.time() + pause
    while time.time() < crowd.end:
        crowd.tend()
        if time.time() >= next_kill:
            crowd.kill_one(rng)
            next_kill += pause
        crowd.largest = max(crowd.largest, size_of(place))
        time.sleep(0.05)
    kinds = {who: kind for kind, who in PROGRAMS}
    for who, program in crowd.programs.items():  # on a busy machine not all were begun in time
        try:
            program.wait(60)
        except subprocess.TimeoutExpired:
            program.kill()
            crowd.problems.append(f"the program {kinds[who]} hung")
    crowd.tend()
    return crowd


def kept_pages(place: Path, live: int) -> list[str]:
    """Say so where the file grows although no reader is left: then one that was killed still keeps pages."""
    before = max(size_of(place), 2 * live)
    processes.ask(rewrite, place)
    grown = size_of(place) - before
    return [f"the file grew by {grown} bytes with no reader left"] if grown > 0 else []


def size_of(place: Path) -> int:
    """Return the bytes of the dataset's file."""
    return (place / "cache" / DATASET / DATA_FILE).stat().st_size


def problems_in(cache: Path) -> list[str]:
    """Return what a check finds."""
    return check_dataset(cache, DATASET).problems


if __name__ == "__main__":
    main()
