"""What a crash drill needs to know of an operation: how it is begun, struck, judged and brought to its end."""

from __future__ import annotations

import random
import shutil
import signal
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from drills.shared import processes
from drills.shared.journal import Journal, merged, read_journal, replay
from drills.shared.look import Found, look

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drills.shared.journal import Notes

PATIENCE = 60.0  # seconds until a process that should have ended is called hung


@dataclass
class Outcome:
    """What one kill came to.

    phase: what was going on. acknowledged: how many acknowledgements held. lost: acknowledged, and not to be found.
    half: visible, but not as it should be. problems: each of these and all else that is wrong, in sentences.
    """

    phase: str
    acknowledged: int = 0
    lost: int = 0
    half: int = 0
    problems: list[str] = field(default_factory=list)


class Scene(ABC):
    """An operation in a folder of its own; one life of it goes from `prepare` over some kills to `finish`."""

    name: str
    kills_a_life = 6

    def __init__(self, folder: Path) -> None:
        """Keep the folder; nothing is made yet."""
        self.folder = folder
        self.cache = folder / "cache"
        self.journal = folder / "journal"
        self.log = folder / "log"

    def prepare(self) -> None:
        """Begin a new life: an empty folder, and what the operation needs in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        Journal(self.journal).note("settled", state=processes.ask(self.furnish))

    @abstractmethod
    def furnish(self) -> dict[str, int]:
        """Make what the operation needs, in a process of its own, and return the versions that are then there."""

    @abstractmethod
    def act(self, seed: int) -> None:
        """Do the operation; runs in the process that will be killed."""

    @abstractmethod
    def strike(self, pid: int, rng: random.Random) -> bool:
        """Kill at a random moment and wait for the end; return whether there was still something to kill."""

    @abstractmethod
    def judge(self) -> Outcome:
        """Compare what is there with the journal."""

    @abstractmethod
    def finish(self) -> list[str]:
        """Do the operation undisturbed to its end, and return what is not as it should be then."""

    def see(self) -> Found:
        """Return what is visible, as a process of its own sees it."""
        try:
            return Found(**processes.ask(self.seen))
        except processes.ChildDied as exc:
            return Found(problems=[f"the reader died: {exc}"])

    def seen(self) -> dict[str, Any]:
        """Return what is visible, as plain values."""
        return asdict(look(self.cache))


class Looping(Scene):
    """An operation that is done again and again until it is killed, each time as one step that happens or does not."""

    window = 0.04  # seconds of work within which the kill falls

    def act(self, seed: int) -> None:
        """Do one step after the other, from what the journal knows to be there."""
        state, _ = replay(read_journal(self.journal))
        for _ in self.steps(random.Random(seed), Journal(self.journal), state):
            pass

    @abstractmethod
    def steps(self, rng: random.Random, journal: Notes, state: dict[str, int]) -> Iterator[None]:
        """Do the steps, without an end; each is noted in `journal`."""

    def strike(self, pid: int, rng: random.Random) -> bool:
        """Let it come to work, a few steps far, and kill it within the window."""
        wanted = len(self.journal.read_bytes().splitlines()) + rng.randint(1, 8)
        deadline = time.monotonic() + PATIENCE
        while len(self.journal.read_bytes().splitlines()) < wanted and time.monotonic() < deadline:
            if self.log.exists() and self.log.stat().st_size:
                break  # it said why it cannot go on
            time.sleep(0.001)
        time.sleep(rng.uniform(0, self.window))
        return processes.sigkill(pid) == -signal.SIGKILL

    def judge(self) -> Outcome:
        """Expect what was acknowledged, and of the step that was under way all or nothing."""
        found = self.see()
        outcome = compare(read_journal(self.journal), found)
        if self.log.stat().st_size:
            outcome.problems.append(f"it ended by itself: {self.log.read_text()}")
        Journal(self.journal).note("settled", state=found.versions)
        return outcome

    def finish(self) -> list[str]:
        """Let the next life begin: the steps that followed each kill were the resumption."""
        return []


def compare(lines: list[dict[str, Any]], found: Found) -> Outcome:
    """Return what is to be said of `found` after `lines`: of the step that was begun last, all or nothing is right."""
    before, begun = replay(lines)
    after = merged(before, begun["changes"]) if begun else before
    outcome = Outcome(f"in {begun['what']}" if begun else "between steps")
    outcome.acknowledged = sum(line["kind"] == "acknowledged" for line in lines)
    outcome.problems += found.problems
    outcome.half = len(found.problems)
    if found.versions in (before, after):
        return outcome
    allowed = {name: {before.get(name), after.get(name)} for name in before | after}
    off = {
        name: version
        for name in allowed | found.versions
        if (version := found.versions.get(name)) not in allowed.get(name, set())
    }
    outcome.lost = len(off)
    if off:
        said = f"found {off}, allowed {[allowed.get(name) for name in off]}"
        outcome.problems.append(said)
    elif begun is None or begun.get("whole", True):
        outcome.half += 1
        outcome.problems.append(f"a step was done by half: {found.versions}")
    else:
        done = sum(found.versions.get(name) == v for name, v in begun["changes"].items())
        outcome.lost += max(0, begun.get("done", 0) - done)
        if outcome.lost:
            outcome.problems.append(f"{begun['done']} changes were acknowledged, {done} are there")
    return outcome
