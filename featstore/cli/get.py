"""featstore get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from featstore.cli._options import (
    cache_dir_option,
    dataset_option,
    json_option,
    spec_option,
    which_nframe_option,
)
from featstore.cli._printing import date, print_facts, print_json
from featstore.cli._streams import say
from featstore.errors import FeatstoreError, plain_line
from featstore.fields import to_plain
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable


@click.command()
@cache_dir_option
@dataset_option
@which_nframe_option
@spec_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    help="Write to FILE.safetensors (as stored) or FILE.npy (float32).",
)
@json_option
@click.argument("video_id")
def get(
    cache_dir: str,
    dataset: str,
    nframe: int | None,
    spec: str | None,
    out: str | None,
    as_json: bool,
    video_id: str,
) -> None:
    """Show the stored features of a video, or write them to a file."""
    from featstore.formats.export import save_features
    from featstore.store.reader import get as run

    features = run(cache_dir, dataset, video_id, nframe=nframe, spec=spec)
    if out:
        try:
            save_features(features, out)
        except ValueError as exc:
            raise click.BadParameter(str(exc), param_hint="--out") from exc
        except OSError as exc:
            raise FeatstoreError(
                f"{out} cannot be written: {exc.strerror}; choose another --out"
            ) from exc
    header = features.header
    facts = {
        "video_id": header.video_id,
        "dataset": header.dataset,
        "video_path": header.video_path,
        "shape": list(header.shape),
        "tokens_per_frame": header.tokens_per_frame,
        "frames": header.frames,
        "total_frames": header.total_frames,
        "fps": header.fps,
        "stored_as": header.quantization,
        "scale": header.scale,
        "codec": header.codec,
        "encoder_dtype": header.dtype,
        "model_signature": header.model_signature,
        "feature_set": header.spec,
        "source": to_plain(header.source),
        "error": to_plain(header.error),
        "created": header.created,
    }
    if as_json:
        print_json(facts)
        return
    facts["frames"] = _ellipsis(header.frames)
    facts["created"] = date(header.created)
    facts["error"] = _error_text(
        header.error.cosine, header.error.relative_l2, header.error.max_abs
    )
    facts["source"] = f"{format_bytes(header.source.size)}, xxh3-128 {header.source.xxh3_128}"
    print_facts(facts)
    if out:
        say(f"written to {plain_line(out)}")


def _error_text(cosine: float, relative_l2: float, max_abs: float) -> str:
    return f"cosine {cosine:.6f}, relative L2 {relative_l2:.2e}, largest {max_abs:.3g}"


def _ellipsis(frames: Iterable[int], keep: int = 8) -> str:
    shown = [str(frame) for frame in frames]
    return ", ".join(shown if len(shown) <= keep + 1 else [*shown[:keep], "...", shown[-1]])
