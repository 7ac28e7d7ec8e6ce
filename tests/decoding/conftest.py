"""The decoder corpus as files, which takes tens of seconds to write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from decoder_corpus import CASES, write_case

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole corpus, which no test changes."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in CASES:
        write_case(name, folder)
    return folder
