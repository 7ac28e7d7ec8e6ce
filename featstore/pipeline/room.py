"""The room for an ingest: free bytes, limits, and why what is planned does not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.defaults import SHARD_BYTES
from featstore.records.storage import MAX_PAYLOAD_BYTES, Storage
from featstore.store import MAP_BYTES
from featstore.store.paths import stored_bytes
from featstore.system.filesystems import format_bytes, free_bytes, nearest_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from featstore.pipeline.estimate import Estimate
    from featstore.pipeline.options import IngestOptions
    from featstore.pipeline.plan import Plan
    from featstore.spec import FeatureSpec


@dataclass(frozen=True)
class Room:
    """The room for a cache directory.

    Attributes:
        cache_dir: the directory, which need not exist.
        free: bytes that are free on its disk.
        min_free: of which so many are to stay free.
        max_size: bytes that it may take; None for no limit.
        taken: bytes that it takes.
    """

    cache_dir: str
    free: int
    min_free: int
    max_size: int | None
    taken: int

    @classmethod
    def of(cls, cache_dir: str | os.PathLike[str], options: IngestOptions) -> Room:
        """Return the room there is now."""
        there = nearest_folder(cache_dir)
        taken = stored_bytes(cache_dir) if there == Path(cache_dir).absolute() else 0
        return cls(str(cache_dir), free_bytes(there), options.min_free, options.max_size, taken)

    @property
    def left(self) -> int:
        """Return the bytes that an ingest may add; less than 0 if more is taken than may be."""
        left = self.free - self.min_free
        return left if self.max_size is None else min(left, self.max_size - self.taken)


def needed_together(
    estimates: Sequence[Estimate], storage: Storage | None = None
) -> tuple[int, int] | None:
    """Return the bytes that several datasets take, least and most; None if a record of one cannot be so large."""
    ends = [estimate.needed_bytes(storage) for estimate in estimates]
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return None
    return sum(least for least, _ in known), sum(most for _, most in known)


def why_not(estimates: Sequence[Estimate], room: Room, *, sharded: bool = False) -> list[str]:
    """Return each reason why the work cannot be done here, with a remedy; none if it can.

    Args:
        estimates: of the datasets.
        room: what there is.
        sharded: sealed shards are made, each of which is a file.
    """
    found = []
    _, most = needed_together(estimates) or (0, 0)
    fewer = "take fewer videos with --limit, or fewer bytes a value with --quantize"
    if most > room.free - room.min_free:
        found.append(
            f"{format_bytes(most)} are needed, {format_bytes(room.free)} are free in {room.cache_dir} and "
            f"{format_bytes(room.min_free)} are to stay free (--min-free): make room, {fewer}"
        )
    if room.max_size is not None and room.taken + most > room.max_size:
        found.append(
            f"{format_bytes(most)} are needed, {room.cache_dir} takes {format_bytes(room.taken)} already and may take "
            f"{format_bytes(room.max_size)} (--max-size): raise that, {fewer}"
        )
    for estimate in estimates:
        if estimate.needed_bytes() is None:
            found.append(
                f"the features of a video of {estimate.dataset} take more as {estimate.storage} than the "
                f"{format_bytes(MAX_PAYLOAD_BYTES)} of a record: "
                "take fewer frames with --nframe, or fewer bytes a value with --quantize"
            )
        if estimate.files > 1 and not sharded:
            _, each = estimate.needed_bytes() or (0, 0)
            shards = -(-each // SHARD_BYTES)
            found.append(
                f"{estimate.dataset} would fill {estimate.files} files of {format_bytes(MAP_BYTES)}, and a dataset has "
                f"one unless it is made of shards: ingest with --shard 0/1, which makes some {shards} shards of "
                f"{format_bytes(SHARD_BYTES)} one after the other, or with --shard I/N in any number N of processes; "
                "or take fewer bytes a value with --quantize"
            )
    return found


def first_of(plan: Plan, spec: FeatureSpec, cache_dir: Path, most_bytes: int) -> Plan:
    """Return the plan for those of its videos with which `cache_dir` takes `most_bytes`; one, if it has none yet."""
    if not plan.todo:
        return plan
    room = most_bytes - (stored_bytes(cache_dir) if cache_dir.is_dir() else 0)
    fits = max(0, room) * len(plan.todo) // max(1, plan.needed_bytes(spec))
    first = plan.todo[: max(fits, 0 if plan.stored else 1)]
    return replace(plan, todo=first, beyond_limit=plan.beyond_limit + len(plan.todo) - len(first))
