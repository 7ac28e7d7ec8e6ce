"""A plan as a picture: a bar for each storage, stacked by dataset, against the room there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.cli._figure import new_figure
from featstore.errors import FeatstoreError
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featstore.pipeline.estimate import Estimate
    from featstore.pipeline.room import Room

_GIB = 1 << 30
_BEHIND_LABELS = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}


def draw_plan(estimates: Sequence[Estimate], room: Room, target: str) -> None:
    """Write the picture to the file `target`, whose suffix says what kind it is.

    Raises:
        MissingExtra: matplotlib is not installed.
        FeatstoreError: there is no such kind of picture, or the file cannot be written.
    """
    from featstore.pipeline.estimate import storages_of
    from featstore.pipeline.room import needed_together

    storages = [s for s in storages_of(estimates) if needed_together(estimates, s)]
    chosen = {found.storage for found in estimates}
    names = [f"{storage}{' *' if storage in chosen else ''}" for storage in storages]
    figure = new_figure(9, 1.6 + 0.42 * len(names), "--out")
    axes = figure.add_subplot()
    left = [0.0] * len(names)
    for found in estimates:
        sizes = [(found.needed_bytes(storage) or (0, 0))[1] / _GIB for storage in storages]
        bars = axes.barh(names, sizes, left=left, label=found.dataset)
        left = [before + size for before, size in zip(left, sizes, strict=True)]
    left_over = max(room.left, 0) / _GIB
    line = ""
    if left_over < 2 * max([0.0, *left]):
        line = " (--)"
        axes.axvline(left_over, color="black", linestyle="--")
    axes.bar_label(
        bars, [f" {format_bytes(size * _GIB)}" for size in left], bbox=_BEHIND_LABELS, padding=3
    )
    axes.margins(x=0.2)
    axes.invert_yaxis()
    axes.set_xlabel(f"GiB on disk, at most (* as planned); {left_over:,.0f} GiB may be taken{line}")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    try:
        figure.savefig(target, dpi=150)
    except (OSError, ValueError) as exc:
        raise FeatstoreError(
            f"the picture {target} cannot be written: {exc}",
            remedy="name a .png file in a folder that is there",
        ) from exc
