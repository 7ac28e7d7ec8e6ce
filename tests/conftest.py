"""Sample clips, and a cache directory that must be clean when a test is done with it."""

import gc
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is loaded, here and in what the tests start: two threads on a core that others use wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import make_sample_clips as tool
from checkpoints import (  # fixtures
    altered,  # noqa: F401
    bf16_attention,  # noqa: F401
    make_checkpoint,  # noqa: F401
    no_report_at_the_end,  # noqa: F401
    one_thread,  # noqa: F401
    reference,  # noqa: F401
    tiny,  # noqa: F401
)
from child_server import child_server, quick_children  # noqa: F401
from quick import load_profile, repeats, weight

from featstore.checkpoints import files
from featstore.pipeline import ingest
from featstore.store import reader
from featstore.store.maintenance.check import check_dataset
from featstore.store.paths import dataset_names
from featstore.system.logs import show_on_stderr

# Bytecode is kept, whatever the environment says: the tests start hundreds of interpreters.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# In the background of a script interrupts are ignored, and would be in all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    load_profile(config.option.markexpr)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing that is imported or collected is garbage: the collector need not look at it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that no worker is left with one at the end.

    Coverage is not measured of what repeats: it doubles the time of code in Python.
    """
    weights: Counter[Path] = Counter()
    for item in items:
        weights[item.path] += weight(item)
    items.sort(key=lambda item: -weights[item.path])
    if config.pluginmanager.hasplugin("_cov"):
        cases: Counter[str] = Counter()
        for item in items:
            cases[item.nodeid.partition("[")[0]] += 1
            if repeats(item, cases[item.nodeid.partition("[")[0]]):
                item.add_marker(pytest.mark.no_cover)


@pytest.fixture(scope="session", autouse=True)
def said_on_stderr() -> None:
    """What the library says is shown as the command line and the evaluation programs show it."""
    show_on_stderr()


@pytest.fixture(scope="session", autouse=True)
def no_request_to_the_hub() -> Iterator[None]:
    """Tests stand in for a download themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "knock", lambda repo, name: "")
        yield


@pytest.fixture(scope="session", autouse=True)
def one_decoder_by_default() -> Iterator[None]:
    """An ingest in a test's own process decodes in one other, unless it is told in how many: each costs its start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "default_workers", lambda: 1)
        yield


@pytest.fixture(scope="session")
def sample_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips of tools/make_sample_clips.py, of as many frames and a tenth of the pixels: most tests decode them."""
    folder = tmp_path_factory.mktemp("clips")
    for name, width, height, fps, frames, draw in (
        ("bouncing_ball", 192, 108, 20, 160, tool.draw_bouncing_ball),
        ("color_bars", 144, 256, 30, 90, tool.draw_color_bars),
        ("blink", 176, 132, 10, 5, tool.draw_blink),
    ):
        path = folder / f"{name}.mp4"
        tool.make_clip(path, width=width, height=height, fps=fps, frames=frames, draw=draw)
    return folder


@pytest.fixture
def clips(sample_clips: Path, tmp_path: Path) -> Path:
    """A folder of three clips that a test may change."""
    return Path(shutil.copytree(sample_clips, tmp_path / "clips"))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "cache"
    yield folder
    if folder.is_dir():
        for name in dataset_names(folder):
            assert check_dataset(folder, name).problems == []


@pytest.fixture(autouse=True)
def let_go_of_shared_readers() -> Iterator[None]:
    """`featstore.get` keeps its stores for the life of the process, 4 TiB of address space for each of 16 datasets."""
    yield
    reader._shared.clear()


@pytest.fixture(autouse=True)
def scheduled_as_before() -> Iterator[None]:
    """What a test starts inherits its scheduling: after a real-time one, all that follow starve each other."""
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    yield
    if before is not None:
        assert os.sched_getscheduler(0) == before
