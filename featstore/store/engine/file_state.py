"""Whether a dataset's file is as a writer of ours left it, and whether LMDB may write into it if it is not.

LMDB trusts what a page says. To write into a file that was copied in part, restored over another or made to harm
can end the process, or spoil what is good in it. Each writer therefore leaves a note: device, inode, change time and
last transaction of the file. A file that fits its note is written to at once. Any other, a copy is one, is first read
by py-lmdb's offline verifier, which never hands a page to LMDB.
"""

from __future__ import annotations

import json
import os
import weakref
from typing import TYPE_CHECKING, Any

from lmdb.verify import VerifyError, verify

from featstore.errors import StoreError
from featstore.store.paths import DATA_FILE, because

if TYPE_CHECKING:
    from pathlib import Path

    from featstore.store.engine.environment import Environment
    from featstore.store.engine.locks import LockFile

# What this process knows, if the note may not be written.
_left: weakref.WeakKeyDictionary[Environment, dict[str, Any]] = weakref.WeakKeyDictionary()


def leave_note(lock: LockFile, environment: Environment) -> None:
    """Note how the file is now; called under the lock, after a commit, which stands whatever happens here."""
    try:
        found = _describe(environment)
    except OSError:
        return
    _left[environment] = found
    lock.write(json.dumps(found).encode())


def check_trust(lock: LockFile, environment: Environment) -> None:
    """Raise StoreError unless the file is as its note says, or passes the verifier; called under the lock."""
    try:
        found = _describe(environment)
    except OSError as exc:
        raise StoreError(
            f"{environment.path} cannot be looked into: {because(exc, 'was it removed?')}"
        ) from exc
    if found in (_left.get(environment), _read(lock.read())):
        return
    refuse_damaged_pages(environment.path)
    leave_note(lock, environment)


def refuse_damaged_pages(folder: Path) -> None:
    """Raise StoreError if the verifier finds something; nobody writes during that."""
    problems = find_page_problems(folder)
    if problems:
        raise StoreError(
            f"the pages of {folder / DATA_FILE} are damaged: {problems[0]} ({len(problems)} problems); nothing is "
            "written into it: copy what is good into another cache with featstore merge, which leaves it as it is, and "
            "ingest the rest there"
        )


def find_page_problems(folder: Path) -> list[str]:
    """Return what is wrong with the pages of the LMDB file in `folder`, to which nobody writes during that."""
    try:
        problems: list[str] = verify(os.fspath(folder), subdir=True)  # type: ignore[no-untyped-call]
    except VerifyError as exc:
        return [str(exc)]
    except OSError as exc:
        raise StoreError(f"{folder / DATA_FILE} cannot be read: {because(exc)}") from exc
    return problems


def _describe(environment: Environment) -> dict[str, Any]:
    stat = os.stat(environment.path / DATA_FILE)
    return {
        "device": stat.st_dev,
        "inode": stat.st_ino,
        "ctime_ns": stat.st_ctime_ns,
        "transaction": environment.lmdb.info()["last_txnid"],
    }


def _read(note: bytes) -> Any:
    try:
        return json.loads(note)
    except (ValueError, RecursionError):
        return None
