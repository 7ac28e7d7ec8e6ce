"""Kill featstore at random moments, a thousand times, and compare what is left with a journal of what it acknowledged.

Each kill is a SIGKILL of a process at work, chosen and timed by the seed. After each, a fresh process reads every byte
that is visible: no acknowledged video may be missing, none may be half or wrong, `check` must be clean; and at the end
of each life the operation is let through and must come to the right result. Exits with 1 on any loss.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
from drills.crash.ingests import CLIPS, Ingest, Restore, Retry
from drills.crash.steps import Commit, Export, Miss, Remove
from drills.crash.upkeep import Compact, Merge, RemoveSome, Repair
from drills.shared.clips import make_clips
from drills.shared.figures import report
from drills.shared.processes import say, start

if TYPE_CHECKING:
    from drills.crash.scene import Scene

# How the kills are shared out among the operations.
SHARES = {
    "ingest": 4,
    "retry": 2,
    "restore": 3,
    "miss": 5,
    "commit": 3,
    "rm": 3,
    "rm-videos": 3,
    "compact": 5,
    "merge": 4,
    "repair": 4,
    "export": 3,
}


@dataclass
class Tally:
    """What the kills of one operation came to."""

    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    half: int = 0
    lives: int = 0
    seconds: float = 0.0
    phases: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@click.command()
@click.option("--kills", default=1000, show_default=True, help="SIGKILLs in all.")
@click.option("--seed", default=1, show_default=True, help="Of victims, moments and contents.")
@click.option("--what", default=",".join(SHARES), show_default=True, help="Operations to kill.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; a temporary one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(kills: int, seed: int, what: str, folder: Path | None, as_json: bool) -> None:
    """Kill, look, resume; print what was acknowledged and what was lost."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-drill-", dir=folder) as place:
        tallies = run(Path(place), kills, seed, what.split(","))
        rows = [
            (name, t.kills, t.acknowledged, t.lost, t.half, t.lives, phases_of(t))
            for name, t in tallies.items()
        ]
        report(
            Path(place),
            ("operation", "kills", "acknowledged", "lost", "half", "resumed", "killed while"),
            rows,
            facts={
                "seed": seed,
                "kills": sum(t.kills for t in tallies.values()),
                "seconds": round(time.monotonic() - begun),
            },
            problems=[f"{name}: {said}" for name, t in tallies.items() for said in t.problems],
            as_json=as_json,
        )


def run(place: Path, kills: int, seed: int, what: list[str]) -> dict[str, Tally]:
    """Return what `kills` kills came to, by operation."""
    rng = random.Random(seed)
    scenes = make_scenes(place, what)
    whole = sum(SHARES[name] for name in scenes)
    tallies = {}
    for name, scene in scenes.items():
        tally = tallies[name] = Tally()
        begun, wanted = time.monotonic(), max(1, kills * SHARES[name] // whole)
        if name == list(scenes)[-1]:
            wanted = max(1, kills - sum(t.kills for t in tallies.values()))
        while tally.kills < wanted:
            live(scene, tally, min(scene.kills_a_life, wanted - tally.kills), rng)
        tally.seconds = time.monotonic() - begun
        say(f"{name}: {tally.kills} kills in {tally.seconds:.0f} s, {len(tally.problems)} problems")
    return tallies


def make_scenes(place: Path, what: list[str]) -> dict[str, Scene]:
    """Return the scenes of the operations that are asked for, each with a folder of its own."""
    unknown = set(what) - set(SHARES)
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}; there are {', '.join(SHARES)}")
    clips = place / "clips"
    if {"ingest", "retry", "restore"} & set(what):
        make_clips(clips, CLIPS)
    if "miss" in what:
        import featstore.pipeline.on_demand  # noqa: F401  (torch is loaded once, not in every child)
    scenes: dict[str, Scene] = {
        "ingest": Ingest(place / "ingest", clips),
        "retry": Retry(place / "retry", clips),
        "restore": Restore(place / "restore", clips),
        "miss": Miss(place / "miss"),
        "commit": Commit(place / "commit"),
        "rm": Remove(place / "rm"),
        "rm-videos": RemoveSome(place / "rm-videos"),
        "compact": Compact(place / "compact"),
        "merge": Merge(place / "merge"),
        "repair": Repair(place / "repair"),
        "export": Export(place / "export"),
    }
    return {name: scene for name, scene in scenes.items() if name in what}


def live(scene: Scene, tally: Tally, kills: int, rng: random.Random) -> None:
    """Go through one life of `scene`: so many kills, a look after each, and a run that is let through."""
    scene.prepare()
    tally.lives += 1
    outcome = None
    for _ in range(kills):
        pid = start(scene.log, scene.act, rng.randrange(1 << 30))
        struck = scene.strike(pid, rng)
        outcome = scene.judge()
        tally.kills += struck
        tally.phases[outcome.phase] += struck
        tally.lost += outcome.lost
        tally.half += outcome.half
        tally.problems += outcome.problems
        if not struck:  # it had come to its end before
            break
    tally.acknowledged += outcome.acknowledged if outcome else 0
    tally.problems += scene.finish()


def phases_of(tally: Tally) -> str:
    """Return how many kills fell into which phase."""
    return "; ".join(f"{phase} {count}" for phase, count in tally.phases.most_common())


if __name__ == "__main__":
    main()
