"""Cut the power, as far as that can be done without a switch: replay what was written up to any moment, and look.

A real featstore works with a preloaded library that logs each write, sync and change of a name in its folder. At random
moments of that log a disk is made up that holds all that was synced and any part of what was not; featstore opens it,
reads every byte, and what was acknowledged by then must be there. The same is done to a store that does not sync: that
one must show losses, or the drill proves nothing. Exits with 1 on any loss.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from drills.crash.ingests import CLIPS, Ingest, compare_ingest
from drills.crash.scene import Outcome, Scene, compare
from drills.power.disk import Disk
from drills.power.work import CONTROL, LOOPS
from drills.power.write_log import Entry, Kind, build, compiler, logging, read_log
from drills.shared import processes
from drills.shared.clips import make_clips
from drills.shared.content import drill_spec, stored_form
from drills.shared.figures import report

if TYPE_CHECKING:
    from drills.shared.look import Found

WORKS = ("ingest", *LOOPS, CONTROL)
TOOLS = Path(__file__).resolve().parents[2]
NOT_LOGGED = (
    "lock.mdb"  # written through a map; it says who reads and is made anew at the first open
)


@dataclass
class Tally:
    """What the power losses of one piece of work came to."""

    entries: int = 0
    syncs: int = 0
    losses: int = 0
    acknowledged: int = 0
    lost: int = 0
    half: int = 0
    problems: list[str] = field(default_factory=list)


@click.command()
@click.option("--losses", default=2000, show_default=True, help="Power losses in all.")
@click.option("--steps", default=40, show_default=True, help="Operations that are logged, of each.")
@click.option("--seed", default=1, show_default=True, help="Of moments and of what is lost.")
@click.option("--what", default=",".join(WORKS[:-1]), show_default=True, help="What is at work.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; a temporary one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(losses: int, steps: int, seed: int, what: str, folder: Path | None, as_json: bool) -> None:
    """Log, cut, look; print what was acknowledged and what was lost."""
    if compiler() is None or sys.platform != "linux":
        raise click.ClickException("the drill needs Linux and a C compiler: cc, gcc or clang")
    unknown = set(what.split(",")) - set(WORKS)
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}; there are {', '.join(WORKS[:-1])}")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="power-drill-", dir=folder) as name:
        place = Path(name).resolve()
        works = [*what.split(","), CONTROL]
        tallies = {
            work: cut_power(place, work, steps, losses // len(works), seed) for work in works
        }
        report(
            place,
            ("work", "calls", "syncs", "power losses", "acknowledged", "lost", "half"),
            [
                (work, t.entries, t.syncs, t.losses, t.acknowledged, t.lost, t.half)
                for work, t in tallies.items()
            ],
            facts={"seed": seed, "steps": steps, "seconds": round(time.monotonic() - begun)},
            problems=problems_of(tallies),
            as_json=as_json,
        )


def problems_of(tallies: dict[str, Tally]) -> list[str]:
    """Return what is wrong: any problem of featstore's, or a control without any."""
    problems = [
        f"{work}: {said}" for work, t in tallies.items() if work != CONTROL for said in t.problems
    ]
    if not tallies[CONTROL].lost:
        problems.append("a store that does not sync lost nothing: the drill proves nothing")
    return problems


def cut_power(place: Path, work: str, steps: int, losses: int, seed: int) -> Tally:
    """Return what `losses` power losses during `work` came to."""
    log, inode, scene = take_log(place, work, steps, seed)
    entries = list(read_log(log))
    begun = next((i for i, e in enumerate(entries) if is_settled(e)), -1)
    rng, tally = random.Random(seed), Tally(len(entries), sum(e.kind is Kind.SYNC for e in entries))
    cuts = sorted(rng.randint(begun + 1, len(entries) - 1) for _ in range(losses))
    disk, lines, at = Disk(scene.folder, inode), [], 0
    for cut in cuts:
        for entry in entries[at:cut]:
            disk.apply(entry)
            if entry.kind is Kind.MARK:
                lines.append(entry.said)
                remember(entry.said)
        at = cut
        outcome = look_after(place, disk, entries[cut], lines, work, scene, rng)
        tally.losses += 1
        tally.lost += outcome.lost
        tally.half += outcome.half
        tally.problems += outcome.problems
        tally.acknowledged = max(tally.acknowledged, outcome.acknowledged)
    for entry in entries[at:]:
        disk.apply(entry)
    tally.problems += unlogged(scene.folder, disk)
    processes.say(f"{work}: {tally.losses} power losses, {len(tally.problems)} problems")
    return tally


def remember(line: dict[str, Any]) -> None:
    """Make what a step will store here, once, so that the processes that look need not."""
    for name, version in line.get("changes", {}).items():
        if version is not None and name.count("/") == 2:
            _, nframe, video = name.split("/")
            stored_form(drill_spec(int(nframe)), video, version)


def is_settled(entry: Entry) -> bool:
    """Return whether the work proper begins with `entry`."""
    return entry.kind is Kind.MARK and entry.said["kind"] == "settled"


def take_log(place: Path, work: str, steps: int, seed: int) -> tuple[Path, int, Scene]:
    """Do the work once, logged; return the log, the inode of the folder it was done in, and its scene."""
    clips, log = place / "clips", place / f"{work}.log"
    if not clips.exists():
        make_clips(clips, CLIPS)
    root = place / work
    root.mkdir()
    scene = Ingest(root, clips) if work == Ingest.name else LOOPS[work.split(",")[0]](root)
    words = [sys.executable, "-m", "drills.power.work", work, root, clips, str(seed), str(steps)]
    env = logging(build(place), root, log)
    env["PYTHONPATH"] = processes.python_path(TOOLS, TOOLS.parent)
    subprocess.run(words, env=env, check=True)
    return log, root.stat().st_ino, scene


def look_after(
    place: Path,
    disk: Disk,
    under_way: Entry,
    lines: list[dict[str, object]],
    work: str,
    scene: Scene,
    rng: random.Random,
) -> Outcome:
    """Return what featstore finds on one disk that may be left, with the call `under_way` not returned."""
    if under_way.kind in (Kind.WRITE, Kind.TRUNCATE) and rng.random() < 0.5:
        disk.apply(under_way, returned=False)
    left = place / "left"
    disk.lose_power(rng, left)
    worked_in, scene.folder, scene.cache = scene.folder, left, left / "cache"
    try:
        found: Found = scene.see()
    finally:
        scene.folder, scene.cache = worked_in, worked_in / "cache"
        shutil.rmtree(left)
    return (compare_ingest if work == Ingest.name else compare)(lines, found)


def unlogged(folder: Path, disk: Disk) -> list[str]:
    """Return the files whose content the log does not explain: then it missed writes, and its replay means nothing."""
    there = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path.name != NOT_LOGGED
    }
    logged = {
        name: content
        for name, content in disk.live_files().items()
        if Path(name).name != NOT_LOGGED
    }
    return [
        f"the log does not explain {name}"
        for name in there.keys() | logged.keys()
        if name not in there or there[name].read_bytes() != logged.get(name)
    ]


if __name__ == "__main__":
    main()
