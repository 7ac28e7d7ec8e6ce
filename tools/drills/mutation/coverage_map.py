"""Which tests run which lines, learned from one run of the tests; also a plugin of that run.

Child processes are counted for the test that started them: they inherit its name in PYTEST_CURRENT_TEST.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import coverage
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

LOG = "MUTATION_DRILL_LOG"
CONFIG = """\
[run]
source_pkgs = featstore
data_file = {data}
parallel = true
sigterm = true
patch = _exit, fork
context = ${{PYTEST_CURRENT_TEST-}}
disable_warnings = no-data-collected, module-not-imported, module-not-measured
"""


class CoverageMap:
    """Tests by line, and how long each takes, in seconds."""

    def __init__(self, lines: dict[str, dict[int, list[str]]], seconds: dict[str, float]) -> None:
        """Take the tests of each line of each file, and the seconds of each test."""
        self._lines = lines
        self.seconds = seconds

    @classmethod
    def read(cls, file: Path) -> CoverageMap:
        """Read what `write` wrote."""
        saved = json.loads(file.read_text())
        tests = list(saved["seconds"])
        return cls(
            {
                path: {
                    int(line): [tests[number] for number in numbers]
                    for line, numbers in found.items()
                }
                for path, found in saved["lines"].items()
            },
            saved["seconds"],
        )

    def write(self, file: Path) -> None:
        """Write the map as JSON."""
        number = {test: at for at, test in enumerate(self.seconds)}
        lines = {
            path: {line: [number[test] for test in tests] for line, tests in found.items()}
            for path, found in self._lines.items()
        }
        file.write_text(json.dumps({"seconds": self.seconds, "lines": lines}))

    @classmethod
    def measure(cls, tree: Path, place: Path, options: list[str]) -> CoverageMap:
        """Run the tests of `tree` with pytest's `options` under coverage; those that fail are left out."""
        start, config, log = place / "start", place / "coveragerc", place / "log"
        start.mkdir()
        (start / "sitecustomize.py").write_text("import coverage\ncoverage.process_startup()\n")
        config.write_text(CONFIG.format(data=place / "data"))
        environment = {
            **os.environ,
            "COVERAGE_PROCESS_START": str(config),
            "COVERAGE_CORE": "ctrace",
            LOG: str(log),
            "PYTHONPATH": os.pathsep.join(
                [str(start), str(tree), str(tree / "tools"), os.environ.get("PYTHONPATH", "")]
            ),
        }
        plugins = ["-p", "drills.mutation.coverage_map", "-p", "no:cacheprovider"]
        words = [sys.executable, "-m", "pytest", "-q", *plugins, *options]
        subprocess.run(words, cwd=tree, env=environment, check=False)
        seconds: dict[str, float] = defaultdict(float)
        failed = set()
        for line in log.read_text().splitlines():
            test, outcome, took = json.loads(line)
            seconds[test] += took
            if outcome == "failed":
                failed.add(test)
        combined = coverage.Coverage(config_file=str(config))
        combined.combine()
        data = combined.get_data()
        lines: dict[str, dict[int, list[str]]] = {}
        for file in data.measured_files():
            if not file.startswith(f"{tree}/"):
                continue
            lines[os.path.relpath(file, tree)] = {
                line: [
                    test
                    for test in {_test(context) for context in contexts}
                    if test in seconds and test not in failed
                ]
                for line, contexts in data.contexts_by_lineno(file).items()
            }
        print(f"{len(seconds)} tests, {len(failed)} of them fail", *sorted(failed), sep="\n  ")
        return cls(lines, {t: s for t, s in seconds.items() if t not in failed})

    def covering(self, path: str, lines: Iterable[int]) -> list[str]:
        """Return the tests that run any of these lines, the quickest first; those of the whole file if none does."""
        by_line = self._lines.get(path, {})
        tests = {test for line in lines for test in by_line.get(line, ())}
        if not tests:
            tests = {test for found in by_line.values() for test in found}
        return sorted(tests, key=lambda test: (self.seconds[test], test))


def _test(context: str) -> str:
    return context.rpartition(" (")[0] if context.endswith(")") and " (" in context else context


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Count what runs from here on for this test."""
    current = coverage.Coverage.current()
    if current is not None:
        current.switch_context(item.nodeid)
    yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down each outcome, once: in the process that was started first."""
    if "PYTEST_XDIST_WORKER" not in os.environ and LOG in os.environ:
        with open(os.environ[LOG], "a") as log:
            log.write(json.dumps((report.nodeid, report.outcome, report.duration)) + "\n")
