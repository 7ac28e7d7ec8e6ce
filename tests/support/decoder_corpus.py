"""The small decoder corpus: a clip of each kind of file that decoders may read in different ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import make_decoder_corpus as corpus

if TYPE_CHECKING:
    from pathlib import Path

CASES = {case.name: case for case in corpus.small_corpus()}


def write_case(name: str, folder: Path) -> Path:
    """Write a clip of the corpus into `folder`, and return its path."""
    path: Path = corpus.write(CASES[name], folder / name)
    return path
