"""Datasets that are not there: never made, or lost, found by what else they left, so that a loss is not overlooked."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path

from featstore.errors import DatasetNotFound, StoreNotFound, command_line, did_you_mean
from featstore.store.paths import (
    DATA_FILE,
    FLIGHT_LOCK_FILE,
    INGEST_LOCK_FILE,
    LMDB_LOCK_FILE,
    META_FILE,
    SEAL_FILE,
    SHARDS_FOLDER,
    STATUS_FILE,
    WRITE_LOCK_FILE,
    absolute,
    dataset_names,
    is_dataset_name,
)

# Made beside a data file and never before it; an ingest that was killed early leaves other locks.
_TRACES = (LMDB_LOCK_FILE, WRITE_LOCK_FILE, SEAL_FILE)
# What an ingest makes before that, its locks and what featstore status shows.
_EARLY = (INGEST_LOCK_FILE, FLIGHT_LOCK_FILE, WRITE_LOCK_FILE, SHARDS_FOLDER, STATUS_FILE)
_MAX_META_BYTES = 64 << 20


def lost_datasets(cache_dir: str | os.PathLike[str]) -> dict[str, str]:
    """Return, by name, a sentence for each dataset that was in `cache_dir` and has no data file any more.

    Was there: its folder has what is made beside the file, or cache_meta.json lists it. StoreNotFound if there is
    no `cache_dir`.
    """
    there, root = dataset_names(cache_dir), Path(cache_dir)
    left = {
        path.name for path in root.iterdir() if is_dataset_name(path.name) and _has_traces(path)
    }
    names = sorted((left | listed_datasets(root)) - set(there))
    return {name: _sentence(root, name) for name in names if _is_gone(root / name)}


def refuse_no_cache(cache_dir: str | os.PathLike[str]) -> None:
    """Raise StoreNotFound if `cache_dir` is missing, or holds other things and no dataset, and never did."""
    if dataset_names(cache_dir) or closed_datasets(cache_dir) or lost_datasets(cache_dir):
        return
    there = [path for path in Path(cache_dir).iterdir() if not path.name.startswith(".")]
    made = any(path.name == META_FILE or _has_traces(path) or _is_begun(path) for path in there)
    if there and not made:  # an empty folder is an empty cache
        raise StoreNotFound(
            f"there is no dataset in {cache_dir}; name the folder that contains the datasets' folders, or make one "
            "with featstore ingest"
        )


def refuse_other_folder(cache_dir: str | os.PathLike[str]) -> None:
    """Raise StoreNotFound if a dataset is not to be made in `cache_dir`: it holds other things, and never held one."""
    if os.path.isdir(cache_dir):
        try:
            refuse_no_cache(cache_dir)
        except StoreNotFound as exc:
            raise StoreNotFound(
                f"{cache_dir} holds other things and no dataset, so it is not taken for a cache directory; name one, "
                "or a new or empty folder, with --cache-dir"
            ) from exc


def closed_datasets(cache_dir: str | os.PathLike[str]) -> dict[str, str]:
    """Return, by name, a sentence for each folder that may be a dataset and that this user may not enter."""
    root = Path(cache_dir)
    return {
        path.name: f"{path} may not be entered by this user, so nothing is known of it; look as a user who may, or "
        "have its permissions changed"
        for path in sorted(root.iterdir())
        if is_dataset_name(path.name) and _is_closed(path)
    }


def explain_absent(cache_dir: str | os.PathLike[str], dataset: str) -> DatasetNotFound:
    """Return the error that says that there is no such dataset, and which there are; StoreNotFound without a cache."""
    dataset_names(cache_dir)
    lost = explain_lost(cache_dir, dataset)
    return DatasetNotFound(
        lost or f"{name_present(cache_dir, dataset)}; make it with featstore ingest"
    )


def explain_lost(cache_dir: str | os.PathLike[str], dataset: str) -> str:
    """Return a sentence if the dataset was in `cache_dir` and is lost; empty if it never was, or no `cache_dir` is."""
    try:
        return lost_datasets(cache_dir).get(dataset, "")
    except StoreNotFound:
        return ""


def name_present(cache_dir: str | os.PathLike[str], dataset: str) -> str:
    """Return that there is no such dataset, and which there are."""
    there: list[str] = []
    with contextlib.suppress(StoreNotFound):
        there = dataset_names(cache_dir)
    names = ", ".join(there) or "none"
    return (
        f"there is no dataset {dataset!r} in {absolute(cache_dir)}; "
        f"{did_you_mean(dataset, there)}the datasets there are: {names}"
    )


def listed_datasets(cache_dir: str | os.PathLike[str]) -> set[str]:
    """Return the datasets that cache_meta.json lists, whatever became of them; none if it cannot be read."""
    meta = os.path.join(cache_dir, META_FILE)
    try:
        with open(os.open(meta, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            datasets = json.loads(file.read(_MAX_META_BYTES))["datasets"]
        return set(filter(is_dataset_name, datasets))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # it may be anybody's
        return set()


def _has_traces(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in _TRACES)


def _is_begun(folder: Path) -> bool:
    """Return whether it has a dataset's name and no file but an ingest's first ones, or something for a data file."""
    if not is_dataset_name(folder.name) or not folder.is_dir():
        return False
    return os.path.lexists(folder / DATA_FILE) or all(
        name.startswith((".", DATA_FILE)) or name in _EARLY for name in os.listdir(folder)
    )


def _is_closed(folder: Path) -> bool:
    try:
        os.stat(folder / DATA_FILE)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _is_gone(folder: Path) -> bool:
    try:
        return not stat.S_ISREG(os.stat(folder / DATA_FILE).st_mode)
    except PermissionError:  # another user's own
        return False
    except OSError:
        return True


def _sentence(root: Path, name: str) -> str:
    return (
        f"the dataset {name!r} was in {root} and its file {name}/{DATA_FILE} is gone; restore it from a copy or ingest "
        f"again; was it removed on purpose, {command_line('rm', cache_dir=root, dataset=name)} forgets it"
    )
