"""Try mutants, several at once: each in a copy of the tree, by the tests that run its lines, in a forked process."""

from __future__ import annotations

import compileall
import contextlib
import os
import py_compile
import resource
import shutil
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from drills.mutation.mutants import Mutant

# Imported before the forks, which then need not: whatever is slow to import and not our own.
SLOW = (
    "numpy",
    "lmdb",
    "msgpack",
    "av",
    "torch",
    "hypothesis",
    "xxhash",
    "zstandard",
    "click",
    "rich",
    "pytest",
)
OWN = ("featstore", "drills", "benchmarks", "make_", "drill", "call_walk")
PARTS = (
    "featstore",
    "tests",
    "tools",
    "benchmarks",
    "docs",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
)
BROKEN = 99  # the exit code of a trial that could not begin
MEMORY = 12 << 30  # bytes of a trial's data


class Trial(NamedTuple):
    """How a mutant fared: `killed`, `hung` (which is killed too), or `survived` so many tests; and what they said."""

    mutant: Mutant
    fate: str
    tests: int
    log: str = ""


class _Running(NamedTuple):
    mutant: Mutant
    tests: int
    until: float
    slot: int


def copy_tree(root: Path, to: Path) -> None:
    """Copy what the tests need, compiled so that a changed file is seen by its contents, not by its time."""
    for part in PARTS:
        source = root / part
        if source.is_dir():
            shutil.copytree(source, to / part)
        else:
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / part)
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(to / "featstore", quiet=1, force=True, invalidation_mode=mode)


def run_trials(
    trees: list[Path],
    mutants: Iterator[Mutant],
    tests_of: Callable[[Mutant], tuple[list[str], float]],
    report: Callable[[Trial], None],
) -> None:
    """Try each mutant in one of the `trees`.

    tests_of: the tests of a mutant and the seconds that they take.
    """
    for name in SLOW:
        import_module(name)
    free = list(range(len(trees)))
    running: dict[int, _Running] = {}
    exhausted = False
    while running or not exhausted:
        while free and not exhausted:
            mutant = next(mutants, None)
            if mutant is None:
                exhausted = True
                break
            tests, seconds = tests_of(mutant)
            if not tests:
                report(Trial(mutant, "survived", 0))
                continue
            slot = free.pop()
            pid = _start(trees[slot], mutant, tests)
            running[pid] = _Running(mutant, len(tests), time.monotonic() + 30 + 5 * seconds, slot)
        if not running:
            continue
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            trial = running.pop(pid)
            _kill_group(pid)  # whatever the tests left running
            trees[trial.slot].joinpath(trial.mutant.path).write_bytes(_original(trees, trial))
            code = os.waitstatus_to_exitcode(status)
            log = (trees[trial.slot] / "log").read_text(errors="replace")
            if code == BROKEN:
                raise RuntimeError(log)
            fate = "survived" if code == 0 else "killed" if code > 0 else "hung"
            report(Trial(trial.mutant, fate, trial.tests, log))
            free.append(trial.slot)
        elif not pid:
            for late, trial in running.items():
                if time.monotonic() > trial.until:
                    _kill_group(late)
            time.sleep(0.005)


def _original(trees: list[Path], trial: _Running) -> bytes:
    return (trees[trial.slot].parent / "original" / trial.mutant.path).read_bytes()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _start(tree: Path, mutant: Mutant, tests: list[str]) -> int:
    (tree / mutant.path).write_text(mutant.code)
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.chdir(tree)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        log = os.open(tree / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        root = Path(__file__).resolve().parents[3]
        ours = {"", str(root), str(root / "tools")}
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [
                str(tree),
                *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p not in ours),
            ]
        )
        sys.path[:] = [str(tree), *(path for path in sys.path if path not in ours)]
        for name in [name for name in sys.modules if name.startswith(OWN)]:
            del sys.modules[name]
        import pytest

        scratch = tree / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        options = ["-x", "-q", "-n", "0", "-m", "", "-p", "no:cacheprovider"]
        options += [f"--basetemp={scratch}", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        try:
            code = int(pytest.main([*options, *tests]))
        except Exception:  # of what was left behind pytest tells after the tests, and so
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(BROKEN if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(BROKEN)
