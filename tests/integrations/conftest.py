"""The stand-in for VLMEvalKit, the files of its benchmarks, and a model that only takes notes."""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from featstore.errors import VideoError
from featstore.integrations import vlmevalkit
from featstore.integrations.vlmevalkit.launch import run_vlmevalkit
from featstore.integrations.vlmevalkit.model import longva_cached
from featstore.integrations.vlmevalkit.video_models import video_classes

HERE = Path(__file__).parent
STANDIN = HERE / "standin"
collect_ignore = ["standin"]


class NotedLongVA:
    """CachedLongVA's place: takes what it takes and keeps it; a file that holds DAMAGED cannot be decoded."""

    DAMAGED = b"damaged"

    built: list[NotedLongVA]

    def __init__(self, checkpoint: Any, cache_dir: Any = None, **options: Any) -> None:
        self.checkpoint, self.cache_dir, self.options = checkpoint, cache_dir, options
        self.asked: list[dict[str, Any]] = []
        NotedLongVA.built.append(self)

    def generate(self, prompt: str, video: str | None = None, **options: Any) -> str:
        self.asked.append({"prompt": prompt, "video": video, **options})
        path = options.get("path")
        if path and os.path.isfile(path) and Path(path).read_bytes() == self.DAMAGED:
            raise VideoError(f"{path} cannot be decoded", path)
        return f"answer {len(self.asked)}"


@pytest.fixture
def noted(monkeypatch) -> type[NotedLongVA]:
    """LongVA_Cached loads nothing, its model only takes notes."""
    module = types.ModuleType("featstore.models.longva.model")
    module.CachedLongVA = NotedLongVA  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "featstore.models.longva.model", module)
    NotedLongVA.built = []
    return NotedLongVA


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The benchmarks' files, empty, as the Hub's cache lays them out; what decodes one by itself is logged."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("STANDIN_DECODED", str(tmp_path / "decoded"))
    monkeypatch.syspath_prepend(str(STANDIN))
    about = importlib.import_module("standin_rows")
    for dataset, files in about.FILES.items():
        for name in files:
            path = about.snapshot(dataset) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    image = about.snapshot("VideoMMMU") / "images" / "dev_Art_Theory_1.png"
    image.parent.mkdir()
    image.touch()
    return tmp_path / "hf" / "hub"


@pytest.fixture
def kit(hub, monkeypatch):
    """The stand-in for VLMEvalKit, importable and not yet loaded."""
    monkeypatch.delenv("VLMEVALKIT_ROOT", raising=False)
    _forget()
    yield STANDIN
    _forget()


@pytest.fixture
def run(kit, noted, monkeypatch, tmp_path):
    """Run the stand-in's run.py in this process, each time as a further run."""
    monkeypatch.delenv("STANDIN_ENV_LOADED", raising=False)
    runs = iter(range(1, 10))

    def run(*arguments: str, **options: Any) -> None:
        _forget()
        monkeypatch.setenv("STANDIN_RUN", str(next(runs)))
        arguments = (*arguments, "--work-dir", str(tmp_path / "outputs"))
        run_vlmevalkit(arguments, kit / "run.py", **{"cache_dir": "cache"} | options)

    yield run
    os.environ.pop("STANDIN_ENV_LOADED", None)


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("vlmeval", "run")]:
        del sys.modules[name]
    longva_cached.cache_clear()
    video_classes.cache_clear()
    for name in ("LongVA_Cached", "QwenVL_Cached", "LLaVA_OneVision_Cached"):
        vars(vlmevalkit).pop(name, None)
