"""What features are and how they are stored, in words; from the plain values that `--json` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore.errors import how_many as how_many

if TYPE_CHECKING:
    from collections.abc import Mapping


def how_many_stored(videos: int, sets: int) -> str:
    """Return how many are stored; of several feature sets as records: of a video there is one in each set."""
    return how_many(videos, "record" if sets > 1 else "video")


def counts_text(counts: Mapping[str, int]) -> str:
    """Return how many there are of each, the most first, as `pyav 40, decord 12`."""
    most_first = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    return ", ".join(f"{name} {count}" for name, count in most_first)


def error_text(error: Mapping[str, float]) -> str:
    """Return how far a video's stored values are from the encoder's."""
    return (
        f"relative L2 {error['relative_l2']:.2e}, of a token {error['token_p99']:.2e} (99th percentile) and "
        f"{error['token_max']:.2e} (largest); cosine {error['cosine']:.6f}; largest difference {error['max_abs']:.3g}"
    )


def errors_text(error: Mapping[str, float]) -> str:
    """Return the same of the videos of a feature set, as `featstore.store.describe` summarizes them."""
    return (
        f"relative L2 {error['relative_l2_mean']:.2e} on average, {error['relative_l2_max']:.2e} at most; of a token "
        f"{error['token_p99_max']:.2e} (99th percentile) and {error['token_max']:.2e} (largest) at most; "
        f"cosine {error['cosine_min']:.6f} at least; largest difference {error['max_abs']:.3g}"
    )


def sampling_text(sampling: Mapping[str, Any]) -> str:
    """Return which frames are taken."""
    from featstore.sampling import Sampling

    return str(Sampling(**sampling))


def preprocessing_text(preprocessing: Mapping[str, Any]) -> str:
    """Return what happens to a frame before the encoder."""
    p = preprocessing
    return {
        "shortest_edge_crop": "shorter side to {shortest_edge} pixels, centre of {crop_width} x {crop_height}",
        "exact_resize": "resized to {width} x {height} pixels",
        "pixel_budget": "resized to multiples of {multiple}, {min_pixels} to {max_pixels} pixels",
        "unknown": "unknown",
    }[p["kind"]].format_map(p)


def geometry_text(geometry: Mapping[str, Any], max_rows: int) -> str:
    """Return the rows that an encoder makes of frames, as `144 tokens a frame (12 x 12) of 3584 values`.

    Args:
        geometry: a `Geometry`.
        max_rows: the most rows of a video.
    """
    most = "at most " if geometry["by_video"] else ""
    return f"{most}{_rows_text(geometry, geometry['hidden_dim'])}; at most {max_rows} rows"


def layout_text(layout: Mapping[str, Any], width: int) -> str:
    """Return what the rows of one video's features are.

    Args:
        layout: a `RowLayout`.
        width: values of a row.
    """
    units = "frame" if layout["frames_per_unit"] == 1 else "unit"
    return f"{layout['units']} {units}s; {_rows_text(layout, width // layout['planes'])}"


def _rows_text(rows: Mapping[str, Any], dim: int) -> str:
    """Return what a `Geometry` and a `RowLayout` have in common."""
    frames, stride, grid = rows["frames_per_unit"], rows["stride"], rows["grid"]
    unit = "frame" if frames == 1 else f"unit of {frames} frames"
    if stride != frames:
        unit += f", one every {stride}"
    tokens = rows["tokens_per_unit"]
    text = f"{tokens} token{'s' if tokens > 1 else ''} a {unit}"
    if grid:
        text += f" ({grid[-2]} x {grid[-1]})"
    text += f" of {dim} values" if rows["planes"] == 1 else f" of {rows['planes']} x {dim} values"
    extra = rows["extra_rows"]
    return text + (f", and {extra} row{'s' if extra > 1 else ''} at the end" if extra else "")
