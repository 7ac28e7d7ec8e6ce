"""Fuzz every parser of bytes from disk with atheris, ten million executions in all.

Each target of fuzz_targets.py runs in a process of its own, from golden bytes on. Prints what was executed; exits 1
where a parser raised what it does not promise, took more than ten seconds or more than a gibibyte. Needs the package
atheris (Linux, Python 3.11 to 3.13).
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import atheris
import click

with atheris.instrument_imports(include=["featstore"]):
    from drills.fuzz.targets import TARGETS
from drills.shared.figures import report
from drills.shared.processes import say

if TYPE_CHECKING:
    from drills.fuzz.targets import Target

COUNT = struct.Struct("q")
OPTIONS = ("-max_len=8192", "-timeout=10", "-rss_limit_mb=1024")
RAM = "/dev/shm"  # nosec B108 # mkdtemp makes a folder of our own in it


@click.command()
@click.option("--executions", default=10_000_000, show_default=True, help="In all.")
@click.option("--seed", default=1, show_default=True, help="Of the fuzzer.")
@click.option("--only", type=click.Choice([target.name for target in TARGETS]), help="One target.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Keep corpora, logs and findings in this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(executions: int, seed: int, only: str | None, keep: Path | None, as_json: bool) -> None:
    """Fuzz, and print what was executed."""
    begun = time.monotonic()
    chosen = [target for target in TARGETS if only in (None, target.name)]
    shares = sum(target.share for target in chosen)
    rows, problems = [], []
    ram = tempfile.mkdtemp(prefix="fuzz-", dir=RAM if os.path.isdir(RAM) else None)
    tempfile.tempdir = ram
    try:
        for target in chosen:
            place = (keep or Path(ram)) / target.name
            since = time.monotonic()
            done, status = fuzz(target, executions * target.share // shares, seed, place)
            rows.append((target.name, done, round(time.monotonic() - since)))
            say(f"{target.name}: {done} executions, status {status}")
            if status:
                said = (place / "log").read_text(errors="replace").splitlines()
                problems.append(f"{target.name}: " + "\n".join(said[-30:]))
    finally:
        shutil.rmtree(ram)
    report(
        keep or Path(),
        ("target", "executions", "seconds"),
        rows,
        facts={
            "seed": seed,
            "executions": sum(row[1] for row in rows),
            "seconds": round(time.monotonic() - begun),
        },
        problems=problems,
        as_json=as_json,
    )


def fuzz(target: Target, runs: int, seed: int, place: Path) -> tuple[int, int]:
    """Fuzz one target in a forked process; return how often it was executed, and the process's exit status."""
    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed {number}").write_bytes(data)
    counter = mmap.mmap(-1, COUNT.size)  # shared with the child, which the fuzzer ends by exit()

    def counted(data: bytes) -> None:
        COUNT.pack_into(counter, 0, COUNT.unpack_from(counter)[0] + 1)
        target.run(data)

    pid = os.fork()
    if not pid:
        log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        found = f"-artifact_prefix={place}/found-"
        words = ["fuzz", *OPTIONS, found, f"-runs={runs}", f"-seed={seed}", str(corpus)]
        try:
            atheris.Setup(words, counted)
            atheris.Fuzz()  # ends the process, or raises SystemExit if something was found
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    return COUNT.unpack_from(counter)[0], status


if __name__ == "__main__":
    main()
