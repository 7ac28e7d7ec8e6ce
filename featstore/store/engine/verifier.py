"""What py-lmdb's offline verifier, which never hands a page to LMDB, finds in the pages of a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lmdb.verify import VerifyError, verify

from featstore.errors import StoreError
from featstore.store.paths import DATA_FILE, because

if TYPE_CHECKING:
    from pathlib import Path


def find_page_problems(folder: Path) -> list[str]:
    """Return what is wrong with the pages of the LMDB file in `folder`, to which nobody writes during that."""
    try:
        problems: list[str] = verify(os.fspath(folder), subdir=True)  # type: ignore[no-untyped-call]
    except VerifyError as exc:
        return [str(exc)]
    except OSError as exc:
        raise StoreError(f"{folder / DATA_FILE} cannot be read: {because(exc)}") from exc
    return problems


def refuse_damaged_pages(folder: Path) -> None:
    """Raise StoreError if the verifier finds something; nobody writes during that."""
    problems = find_page_problems(folder)
    if problems:
        raise StoreError(
            f"the pages of {folder / DATA_FILE} are damaged: {problems[0]} ({len(problems)} problems); nothing is "
            "written into it: copy what is good into another cache with featstore merge, which leaves it as it is, and "
            "ingest the rest there"
        )
