"""Change the code in one place after another, and see whether a test notices.

Each mutant runs the tests that run its lines, the quickest first, until one fails. Those that no test kills are written
to a file: each wants a test, or is equivalent: the code does the same with it. Those known to be, with the reason, are
in equivalent.jsonl and are not tried. Needs the packages mutmut and coverage.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
from drills.mutation.coverage_map import CoverageMap
from drills.mutation.equivalents import FILE, key_of, read_equivalents, stale
from drills.mutation.mutants import Mutant, mutants_of
from drills.mutation.trials import Trial, copy_tree, run_trials
from drills.shared.figures import report
from drills.shared.processes import say

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]
FILES = (
    "featstore/records/**/*.py",
    "featstore/store/**/*.py",
    "featstore/models/source.py",
    "featstore/models/lookup.py",
    "featstore/pipeline/plan.py",
    "featstore/encoders/*/weights.py",
)
TESTS = "not (benchmark or crash or drill or fuzz or hostile or race)"
CONTROL = "unchanged"
RAM = Path("/dev/shm")  # nosec B108 # mkdtemp makes a folder of our own in it


@click.command()
@click.option(
    "--files", multiple=True, default=FILES, show_default=True, help="Patterns of files to change."
)
@click.option("--tests", default=TESTS, show_default=True, help="Markers of the tests to run.")
@click.option(
    "--seconds", default=60.0, show_default=True, help="Of tests a mutant, the quickest first."
)
@click.option(
    "--minutes", default=1e6, help="Stop after so many; what is left goes on with the same --out."
)
@click.option("--workers", default=2, show_default=True, help="Mutants that are tried at once.")
@click.option("--seed", default=0, show_default=True, help="Of the order.")
@click.option(
    "--coverage",
    type=click.Path(path_type=Path),
    default="mutants-coverage.json",
    show_default=True,
    help="Which tests run which lines; measured if the file is missing.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="mutants.jsonl",
    show_default=True,
    help="A line of JSON for each mutant that was tried; those in it already are not tried again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    files: tuple[str, ...],
    tests: str,
    seconds: float,
    minutes: float,
    workers: int,
    seed: int,
    coverage: Path,
    out: Path,
    as_json: bool,
) -> None:
    """Change, test, and print what survived."""
    begun = time.monotonic()
    paths = sorted(str(path.relative_to(ROOT)) for pattern in files for path in ROOT.glob(pattern))
    made = [mutant for path in paths for mutant in mutants_of(ROOT, path)]
    known = read_equivalents()
    mutants = [mutant for mutant in made if key_of(mutant) not in known]
    left_out = Counter(mutant.path for mutant in made if key_of(mutant) in known)
    say(f"{len(made)} mutants of {len(paths)} files, {left_out.total()} of them equivalent")
    tried = _read(out)
    problems = [f"{FILE.name} names what is no mutant: {line}" for line in stale(made)]
    with tempfile.TemporaryDirectory(
        prefix="mutation-", dir=RAM if RAM.is_dir() else None
    ) as place:
        original = Path(place, "original")
        copy_tree(ROOT, original)
        if not coverage.exists():
            options = ["-n", str(workers), "-m", tests, f"--basetemp={place}/baseline"]
            (Path(place) / "coverage").mkdir()
            CoverageMap.measure(original, Path(place, "coverage"), options).write(coverage)
        covered = CoverageMap.read(coverage)
        say(f"tests by line after {time.monotonic() - begun:.0f} s")
        trees = [Path(place, str(number)) for number in range(workers)]
        for tree in trees:
            shutil.copytree(original, tree)

        def tests_of(mutant: Mutant) -> tuple[list[str], float]:
            chosen, total = [], 0.0
            lines = () if mutant.at_import else range(mutant.first, mutant.last + 1)
            limit = min(seconds, 5.0) if mutant.diff == CONTROL else seconds
            for test in covered.covering(mutant.path, lines):
                total += covered.seconds[test]
                if chosen and total > limit:
                    break
                chosen.append(test)
            return chosen, total

        def note(trial: Trial) -> None:
            mutant = trial.mutant
            if mutant.diff == CONTROL:
                if trial.fate != "survived":
                    problems.append(
                        f"{mutant.path} as it is: {trial.fate} by its tests\n{trial.log[-2000:]}"
                    )
                return
            tried[mutant.path, mutant.diff, mutant.first] = trial.fate
            with out.open("a") as file:
                line = (
                    mutant.path,
                    mutant.first,
                    mutant.last,
                    mutant.diff,
                    trial.fate,
                    trial.tests,
                )
                file.write(json.dumps(line) + "\n")
            if len(tried) % 100 == 0:
                say(f"{len(tried)} of {len(mutants)}: {dict(Counter(tried.values()))}")

        def left() -> Iterator[Mutant]:
            for path in paths:  # a file as it is, which the tests must let pass
                whole = (ROOT / path).read_text()
                yield Mutant(path, 1, whole.count("\n"), False, CONTROL, whole, "")
            for mutant in random.Random(seed).sample(mutants, len(mutants)):
                if time.monotonic() - begun > 60 * minutes:
                    return
                if (mutant.path, mutant.diff, mutant.first) not in tried:
                    yield mutant

        run_trials(trees, left(), tests_of, note)
    fates: dict[str, Counter[str]] = {}
    for (path, _, _), fate in tried.items():
        fates.setdefault(path, Counter())[fate] += 1
    for mutant in mutants:
        if tried.get((mutant.path, mutant.diff, mutant.first)) == "survived":
            say(f"survived: {mutant.path}, {mutant.function}\n{mutant.diff}")
    report(
        out.parent,
        ("file", "tried", "killed", "hung", "survived", "equivalent"),
        [
            (path, found.total(), found["killed"], found["hung"], found["survived"], left_out[path])
            for path, found in sorted(fates.items())
        ],
        facts={
            "seed": seed,
            "mutants": len(made),
            "equivalent": left_out.total(),
            "tried": len(tried),
            "seconds": round(time.monotonic() - begun),
        },
        problems=problems,
        as_json=as_json,
    )


def _read(out: Path) -> dict[tuple[str, str, int], str]:
    if not out.exists():
        return {}
    lines = (json.loads(line) for line in out.read_text().splitlines())
    return {(path, diff, first): fate for path, first, _, diff, fate, _ in lines}


if __name__ == "__main__":
    main()
