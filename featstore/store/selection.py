"""How a store says that it has other features than the ones asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.errors import plain_line

if TYPE_CHECKING:
    from featstore.spec import FeatureSpec
    from featstore.store.catalog import FeatureSet
    from featstore.store.reader import Dataset

_SHOWN = 40  # characters of a value
_BEFORE = 20  # of them before the first that differs, so that one sees what it is


def describe_mismatch(
    dataset: Dataset, sets: list[FeatureSet], wanted: FeatureSpec, origin: str = "CHECKPOINT"
) -> str:
    """Return the sentence that refuses `wanted`: the nearest feature set, the fields that differ, the remedy.

    origin: the checkpoint that makes the wanted features, as the command in the remedy names it.
    """
    nearest = min(sets, key=lambda found: len(found.spec.diff(wanted)))
    lines = []
    for field, here, there in nearest.spec.diff(wanted):
        stored, asked = _around_difference(here, there)
        lines.append("\n  " + plain_line(f"{field}: stored {stored}, asked for {asked}"))
    return (
        f"dataset {dataset.name!r} in {dataset.path.parent} holds no such features; the nearest set, "
        f"{nearest.spec.digest[:8]} ingested from {plain_line(nearest.origin)}, differs in:{''.join(lines)}\n"
        f"make them beside it: featstore ingest --videos VIDEOS --dataset {dataset.name} --model-path {origin} "
        f"--cache-dir {dataset.path.parent} {wanted.ingest_options()}"
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
