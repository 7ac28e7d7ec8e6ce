"""The decoder corpus as files, which takes tens of seconds to write."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from decoder_corpus import CASES, write_case

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole corpus, which no test changes; all workers of pytest-xdist write it together."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, begun = base / "corpus", base / "corpus-begun"
    for path in (folder, begun):
        path.mkdir(exist_ok=True)
    for name in CASES:
        with suppress(FileExistsError):
            (begun / f"{name}.by").touch(exist_ok=False)
            os.replace(write_case(name, begun), folder / name)
    while any(not (folder / name).exists() for name in CASES):  # another worker is at it
        time.sleep(0.05)
    return folder
