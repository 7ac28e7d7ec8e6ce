"""Ranks of runs of the stand-in, forks of this process, which imports torch once for all of them.

A line of stdin is a run: for each rank its `environ`, the `arguments` of run.py, and the files `out` and `err`.
The answer is a line with the exit codes.

A model as conftest's notes takes CachedLongVA's place. STANDIN_RANK_FAILS says what fails in which rank, as `build:1`,
`model:1` or `reuse:0`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import types
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "standin"))


def serve() -> None:
    import pytest  # noqa: F401
    import torch.distributed  # noqa: F401

    for line in sys.stdin:
        ranks = {}
        for rank in json.loads(line):
            if (pid := os.fork()) == 0:
                return become(**rank)
            ranks[pid] = None
        ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
        print(json.dumps(ended), flush=True)
    return None


def become(environ: dict[str, str], arguments: list[str], out: str, err: str) -> None:
    signal.alarm(120)  # ends it, should it hang
    os.environ.clear()
    os.environ.update(environ)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    main(arguments)


def main(arguments: list[str]) -> None:
    spec = importlib.util.spec_from_file_location("integrations_conftest", HERE / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    conftest.NotedLongVA.built = []
    module = types.ModuleType("featstore.models.longva.model")
    module.CachedLongVA = conftest.NotedLongVA
    sys.modules["featstore.models.longva.model"] = module
    _let_fail(module)
    options = {"keep_going": True} if "KEEP_GOING" in os.environ else {}
    from featstore.errors import FeatstoreError
    from featstore.integrations.vlmevalkit.launch import run_vlmevalkit

    try:
        run_vlmevalkit(arguments, HERE / "standin" / "run.py", cache_dir="cache", **options)
    except FeatstoreError as exc:
        print(exc, file=sys.stderr)
        sys.exit(1)
    finally:
        asked = [each["video"] for model in conftest.NotedLongVA.built for each in model.asked]
        print("asked:", *asked)


def _let_fail(cached: types.ModuleType) -> None:
    what, _, rank = os.environ.get("STANDIN_RANK_FAILS", "").partition(":")
    if rank != os.environ["RANK"]:
        return

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError(f"rank {rank} cannot")

    if what == "model":
        cached.CachedLongVA = fail
        return
    import vlmeval.dataset
    import vlmeval.smp

    if what == "build":
        vlmeval.dataset.MLVU.__init__ = fail
    elif what == "reuse":
        original = vlmeval.smp.prepare_reuse_files

        def prepare(*, dataset_name: str, **words: object) -> object:
            return (fail if dataset_name == "MLVU_128frame" else original)(
                dataset_name=dataset_name, **words
            )

        vlmeval.smp.prepare_reuse_files = prepare


if __name__ == "__main__":
    serve()
