"""A study as a picture: the bytes of each storage, and beside them the errors of the videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.cli._figure import new_figure
from featstore.errors import plain_line

if TYPE_CHECKING:
    from featstore.models.study import Study

PICTURE = "--png"  # the option that asks for it
_WITHIN, _BEYOND, _BYTES = "#0072b2", "#d55e00", "#9a9a9a"  # told apart by the colour-blind, too
_EXACT = 1e-5  # where errors of 0 are drawn: they have no place on a logarithmic axis


def draw_study(study: Study, target: str) -> None:
    """Write the picture of a study that has rows to the file `target`, a PNG.

    Raises:
        MissingExtra: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    table = study.table()
    names = [row["storage"] for row in table]
    figure = new_figure(9, 1.3 + 0.26 * len(names), PICTURE)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    bars = left.barh(names, [1 / row["ratio"] for row in table], color=_BYTES)
    left.bar_label(bars, fmt=" %.2f", fontsize=8)
    left.margins(x=0.15)
    left.invert_yaxis()
    left.set_xlabel("bytes, as a share of bf16's")
    limit = study.max_error
    for beyond, colour in ((False, _WITHIN), (True, _BEYOND)):
        points = [
            (max(row.losses.error.token_p99, _EXACT), str(row.storage))
            for row in study.rows
            if (row.losses.error.token_p99 > limit) is beyond
        ]
        if points:
            label = f"{'beyond' if beyond else 'within'} {limit:.3g}"
            right.scatter(*zip(*points, strict=True), s=14, color=colour, label=label)
    right.axvline(limit, color="black", linewidth=0.8, linestyle="--")
    right.set_xscale("log")
    right.grid(axis="x", linewidth=0.3)
    right.set_xlabel(
        "relative error of a token (99th percentile), a point a video;\nexact ones are drawn at 1e-5"
    )
    right.legend(fontsize=8)
    figure.suptitle(plain_line(study.features).replace("$", r"\$"), fontsize=9)  # no formula
    figure.savefig(target, format="png", dpi=100)
