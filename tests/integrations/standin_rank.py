"""One rank of a run of the stand-in: `standin_rank.py RUN_PY_ARGUMENTS...`, the rest by the environment.

A model as conftest's notes takes CachedLongVA's place. STANDIN_RANK_FAILS says what fails in which rank, as `build:1`,
`model:1` or `reuse:0`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "standin"))


def main() -> None:
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
        run_vlmevalkit(sys.argv[1:], HERE / "standin" / "run.py", cache_dir="cache", **options)
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
    main()
