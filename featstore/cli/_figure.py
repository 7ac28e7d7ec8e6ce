"""An empty figure to draw a picture in, by matplotlib, which is an extra."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, option: str) -> Figure:
    """Return an empty figure.

    Args:
        width: in inches.
        height: in inches.
        option: the option that asks for the picture.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingExtra(
            f"the picture needs {exc.name or 'matplotlib'}; pip install 'featstore[report]', or leave out {option}"
        ) from exc
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
