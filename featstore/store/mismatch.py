"""How a store says that it has other features than the ones asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featstore.spec import FeatureSpec
    from featstore.store.catalog import FeatureSet
    from featstore.store.reader import Dataset


def describe_mismatch(
    dataset: Dataset, sets: list[FeatureSet], wanted: FeatureSpec, origin: str = "CHECKPOINT"
) -> str:
    """Return the sentence that refuses `wanted`: the nearest feature set, the fields that differ, the remedy.

    origin: the checkpoint that makes the wanted features, as the command in the remedy names it.
    """
    nearest = min(sets, key=lambda found: len(found.spec.diff(wanted)))
    lines = [
        f"\n  {field}: stored {here[:40]}, asked for {there[:40]}"
        for field, here, there in nearest.spec.diff(wanted)
    ]
    return (
        f"dataset {dataset.name!r} in {dataset.path.parent} holds no such features; the nearest set, "
        f"{nearest.spec.digest[:8]} ingested from {nearest.origin}, differs in:{''.join(lines)}\n"
        f"make them beside it: featstore ingest --videos VIDEOS --dataset {dataset.name} --model-path {origin} "
        f"--cache-dir {dataset.path.parent} {wanted.ingest_options()}"
    )
