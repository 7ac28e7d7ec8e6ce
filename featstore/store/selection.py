"""Which feature set of a dataset is meant, and what a store says that does not have the one asked for."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from featstore.errors import FeatureNotFound, StoreMismatch, command_line, plain_line
from featstore.sampling import check_nframe
from featstore.spec import CHECKPOINT_FAMILY, FeatureSpec
from featstore.store.catalog import has_entry, read_failure, read_manifest, read_set
from featstore.store.rows import DIGEST_DIGITS, video_key

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from featstore.records.storage import Storage
    from featstore.store.rows import FeatureSet
    from featstore.store.shards.base import DatasetSnapshot

MAKE_SET = "make one with featstore ingest"
RETRY = "mend the cause, and ingest it again with --retry-failed (IngestOptions(retry_failed=True))"
MIN_DIGITS = 4  # of a digest that name a feature set
_SHOWN = 40  # characters of a value
_BEFORE = 20  # of them before the first that differs, so that one sees what it is


def select(
    sets: Mapping[str, FeatureSet],
    path: Path,
    nframe: int | None,
    spec: FeatureSpec | str | None,
    default: str = "",
) -> FeatureSet:
    """Return the one feature set that is asked for.

    Args:
        sets: The feature sets of a dataset by digest.
        path: The dataset's folder, for messages.
        nframe: Frames per video of the set, if it matters.
        spec: The set's FeatureSpec, or at least `MIN_DIGITS` first digits of its digest, if it matters.
        default: Digest of the set that is meant if several fit and `spec` does not name one.

    Raises:
        StoreMismatch: No set fits, or several do; the message lists them.
        ValueError: `nframe` is not a number of frames.
        TypeError: `spec` is neither a FeatureSpec nor text.
    """
    if nframe is not None:
        nframe = check_nframe(nframe)
    if not isinstance(spec, (str, FeatureSpec, type(None))):
        raise TypeError(f"spec is {spec!r:.200}; pass a FeatureSpec, or first digits of its digest")
    fitting = [found for found in sets.values() if fits(found.spec, nframe, spec)]
    if spec is None and default in (found.spec.digest for found in fitting):
        return sets[default]
    if len(fitting) == 1:
        return fitting[0]
    raise StoreMismatch(_refuse(sets.values(), fitting, path, nframe, spec))


def check_digest(digest: str) -> None:
    """Raise ValueError unless `digest` is empty or can be a whole one."""
    if digest and not re.fullmatch(f"[0-9a-f]{{{DIGEST_DIGITS}}}", digest):
        raise ValueError(
            f"digest is {digest!r:.80}, a whole one has {DIGEST_DIGITS} hex digits; by first digits a set is found "
            "among the dataset's `sets`"
        )


def find_own(sets: Mapping[str, FeatureSet], path: Path, digest: str) -> FeatureSet:
    """Return the set `digest`, which was there; raise StoreMismatch if it was removed."""
    if digest not in sets:
        raise _explain_removed(path, digest)
    return sets[digest]


def find_set(sets: Mapping[str, FeatureSet], path: Path, digest: object) -> FeatureSet:
    """Return the set that the first digits of its digest name; FeatureNotFound, a KeyError, if none or several do."""
    try:
        return select(sets, path, None, digest if isinstance(digest, str) else "")
    except StoreMismatch as exc:
        raise FeatureNotFound(str(exc)) from exc


def fits(found: FeatureSpec, nframe: int | None, spec: FeatureSpec | str | None) -> bool:
    """Return whether a feature set is one of those that `nframe` and `spec` ask for, if they are given."""
    if nframe is not None and found.sampling.nframe != nframe:
        return False
    if isinstance(spec, FeatureSpec):
        return found.digest == spec.digest
    return spec is None or (len(spec) >= MIN_DIGITS and found.digest.startswith(spec.lower()))


def wanted_set(
    there: FeatureSet | None, storage: Storage | None, replace_storage: bool, *budget: float | None
) -> FeatureSet | None:
    """Return the feature set as it is to be: `there` itself if nothing changes, None if it is to be made.

    Args:
        there: The row of the set in the dataset, None if it has none.
        storage: How it is to be stored, None for as it is.
        replace_storage: Take `storage`, and have what is stored in another way made again.
        budget: Its error budget from now on, if it is to have another.

    Raises:
        StoreMismatch: It is stored in another way than `storage` says, and not to be replaced.
    """
    if there is not None and budget and there.max_error != budget[0]:
        there = replace(there, max_error=budget[0])
    if there is None or storage is None:
        return there
    if replace_storage and (storage != there.storage or not there.storage_since):
        # What is lossless as it missed the error budget stays so, unless it was made under another storage.
        since = there.created if storage == there.storage else time.time()
        return replace(there, storage=storage, storage_since=since)
    if storage == there.storage:
        return there
    raise StoreMismatch(
        f"the feature set {there.spec.digest[:8]} is stored as {there.storage}, asked for is {storage}",
        remedy="leave --quantize, --scale and --codec (storage=) out to go on as it is, store it again with "
        "--restore-as (IngestOptions(replace_storage=True)), or take another --dataset",
    )


def describe_mismatch(
    sets: Collection[FeatureSet],
    path: Path,
    wanted: FeatureSpec,
    origin: str = "--model-path CHECKPOINT",
    follows: str = "",
) -> str:
    """Return the sentence that refuses `wanted`: the nearest feature set, the fields that differ, the remedy.

    Args:
        sets: The feature sets there are, at least one.
        path: The dataset's folder.
        wanted: What was asked for.
        origin: The options that name the checkpoint that makes the wanted features, for the command in the remedy.
        follows: What is done about it without the user, in place of the remedy.
    """
    family, stored_families = wanted.encoder.family, {s.spec.encoder.family for s in sets}
    if family not in stored_families:  # hardly a field is alike
        return (
            f"dataset {path.name!r} in {path.parent} holds no features of {family}, only of "
            f"{', '.join(sorted(stored_families))}\n{follows or _how_to_make(path, wanted, origin)}"
        )
    nearest = min(sets, key=lambda found: len(found.spec.diff(wanted)))
    lines = []
    for field, here, there in nearest.spec.diff(wanted):
        stored, asked = _around_difference(here, there)
        lines.append("\n  " + plain_line(f"{field}: stored {stored}, asked for {asked}"))
    return (
        f"dataset {path.name!r} in {path.parent} holds no such features; the nearest set, "
        f"{nearest.spec.digest[:8]} ingested from {plain_line(nearest.origin)}, differs in:{''.join(lines)}\n"
        f"{follows or _how_to_make(path, wanted, origin)}"
    )


def _how_to_make(path: Path, wanted: FeatureSpec, origin: str) -> str:
    """Return the sentence that says how such features are made beside those of the dataset."""
    if wanted.encoder.family == CHECKPOINT_FAMILY:
        command = command_line("ingest", videos="VIDEOS", dataset=path.name, cache_dir=path.parent)
        return f"make them beside it: {command} {origin} {wanted.ingest_options()}"
    is_exact = "--decoder exact" in wanted.ingest_options()
    exact = ", options=featstore.IngestOptions(decoder='exact')" if is_exact else ""
    return (
        f"make them beside it, in Python: featstore.ingest(VIDEOS, {str(path.parent)!r}, {path.name!r}, "
        f"encoder=ENCODER, sampling=featstore.{wanted.sampling!r}{exact})"
    )


def explain_missing(
    snapshot: DatasetSnapshot, dataset: str, digest: str, video: str
) -> FeatureNotFound:
    """Return the error that says why `video` is not in the feature set `digest` of `dataset` as of `snapshot`."""
    if not digest:
        return FeatureNotFound(
            f"dataset {dataset!r} in {snapshot.path.parent} has no feature set, so no video {video!r}",
            remedy=MAKE_SET,
        )
    if read_set(snapshot, digest) is None:
        gone = _explain_removed(snapshot.path, digest)
        return FeatureNotFound(f"{gone.found}, so video {video!r} is not there", remedy=gone.remedy)
    manifest = read_manifest(snapshot)
    others = [
        name[:8]
        for name in manifest.sets
        if name != digest and has_entry(snapshot, video_key(name, video))
    ]
    elsewhere = f" (it is in feature set {', '.join(others)})" if others else ""
    failure = read_failure(snapshot, video_key(digest, video))
    place = f"dataset {dataset!r}, feature set {digest[:8]}"
    if failure is None:
        which = "" if digest == manifest.default else digest[:8]
        command = command_line("ls", cache_dir=snapshot.path.parent, dataset=dataset, spec=which)
        return FeatureNotFound(
            f"video {video!r} is not stored in {place}{elsewhere}",
            remedy=f"list what is: {command}",
        )
    what, remedy = "failed to be ingested into", RETRY
    if failure.damaged:
        what, remedy = "was found damaged and removed from", "ingest again, which makes it again"
    return FeatureNotFound(
        f"video {video!r} {what} {place} ({plain_line(failure.reason)}){elsewhere}", remedy=remedy
    )


def _explain_removed(path: Path, digest: str) -> StoreMismatch:
    """Return the error that says that the feature set `digest` of the dataset in `path` was removed."""
    return StoreMismatch(
        f"the feature set {digest[:8]} was removed from dataset {path.name!r} in {path.parent}",
        remedy="ingest its videos again, or take another feature set",
    )


def _refuse(
    sets: Collection[FeatureSet],
    fitting: Collection[FeatureSet],
    path: Path,
    nframe: int | None,
    spec: FeatureSpec | str | None,
) -> str:
    if not sets:
        asked = f", asked for is {spec.describe()}" if isinstance(spec, FeatureSpec) else ""
        return f"dataset {path.name!r} in {path.parent} has no feature set{asked}; {MAKE_SET}"
    if isinstance(spec, FeatureSpec):
        if nframe not in (None, spec.sampling.nframe):
            return (
                f"spec= is of {spec.sampling.nframe} frames a video and nframe={nframe}; leave nframe out, or name the "
                "spec of another set"
            )
        return describe_mismatch(sets, path, spec)
    listed = "".join(f"\n  {found.describe()}" for found in fitting or sets)
    if fitting:
        return (
            f"{len(fitting)} feature sets of dataset {path.name!r} fit; name one with spec= (on the command line "
            f"--spec), its first digits will do:{listed}"
        )
    wanted = ", ".join(
        f"{name}={value!r}" for name, value in (("nframe", nframe), ("spec", spec)) if value
    )
    remedy = "ask for one of them, or ingest with other options"
    if spec is not None and len(spec) < MIN_DIGITS:
        remedy = f"name one of them by at least {MIN_DIGITS} first digits"
    return (
        f"no feature set of dataset {path.name!r} fits {wanted or 'the request'}, it has {len(sets)}:"
        f"{listed}\n{remedy}"
    )


def _around_difference(here: str, there: str) -> tuple[str, str]:
    """Return what is shown of two values; of long ones, from shortly before the first character that differs."""
    if max(len(here), len(there)) <= _SHOWN:
        return here, there
    pairs = enumerate(zip(here, there, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(here), len(there)))
    start = max(0, same - _BEFORE)
    mark = "..." if start else ""
    return mark + here[start:][:_SHOWN], mark + there[start:][:_SHOWN]
