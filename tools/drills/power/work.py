"""The program whose writes are logged: an operation done a few times, or one ingest, with marks in the log."""

from __future__ import annotations

import random
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
from drills.crash.ingests import Ingest, ingest_noting
from drills.crash.steps import Commit, Export, Remove
from drills.crash.upkeep import Compact, Merge, RemoveSome, Repair
from drills.power.write_log import Marks

if TYPE_CHECKING:
    from drills.crash.scene import Looping

LOOPS: dict[str, type[Looping]] = {
    "commit": Commit,
    "rm": Remove,
    "rm-videos": RemoveSome,
    "compact": Compact,
    "merge": Merge,
    "repair": Repair,
    "export": Export,
}
CONTROL = "commit, sync=False"


def main(what: str, root: Path, clips: Path, seed: int, steps: int) -> None:
    """Do `what` in `root`; the control does what featstore never does."""
    if what == Ingest.name:
        ingest_noting(clips, root / "cache", Marks(), retry_failed=False)
        return
    if what == CONTROL:
        lmdb.open = partial(lmdb.open, sync=False)
        what = Commit.name
    scene, marks = LOOPS[what](root), Marks()
    state = scene.furnish()
    marks.note("settled", state=state)
    for _ in islice(scene.steps(random.Random(seed), marks, state), steps):
        pass


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
