"""featstore get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from featstore.cli._completion import complete_video
from featstore.cli._options import (
    VideoCommand,
    cache_dir_option,
    dataset_option,
    json_option,
    open_set,
    spec_option,
    which_nframe_option,
)
from featstore.cli._printing import date, print_facts, print_json
from featstore.cli._streams import say
from featstore.cli._words import error_text, layout_text
from featstore.errors import FeatstoreError, FeatureNotFound, did_you_mean, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featstore.records.features import Features


@click.command(cls=VideoCommand)
@cache_dir_option
@dataset_option
@which_nframe_option
@spec_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    help="Write to FILE.safetensors or FILE.npz (as stored), FILE.npy (float32) or FILE.pt; see featstore export.",
)
@json_option
@click.argument("video_id", shell_complete=complete_video)
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
    from featstore.formats.facts import record_facts
    from featstore.records.storage import storage_text
    from featstore.store.reader import get as run

    try:
        features = run(cache_dir, dataset, video_id, nframe=nframe, spec=spec)
    except FeatureNotFound as exc:
        if "is not stored" not in exc.found:  # it failed, or there is no set
            raise
        near = did_you_mean(video_id, open_set(cache_dir, dataset, spec, nframe))
        raise FeatureNotFound(exc.found, remedy=near + exc.remedy) from exc
    if out:
        _write(features, out)
    facts = record_facts(features.header)
    if as_json:
        print_json(facts)
        return
    texts = {
        "layout": layout_text(facts["layout"], facts["width"]),
        "frame_indices": _ellipsis(facts["frame_indices"] or ()),
        "storage": storage_text(**facts["storage"]),
        "error": facts["error"] and error_text(facts["error"]),
        "source": facts["source"] and _source_text(**facts["source"]),
        "created": date(features.header.created),
    }
    unknown = {name: "unknown" for name, value in facts.items() if value is None}
    print_facts(facts | texts | unknown)
    if out:
        say(f"written to {plain_line(out)}")


def _write(features: Features, out: str) -> None:
    from featstore.formats.export import save_features

    try:
        save_features(features, out)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--out") from exc
    except OSError as exc:
        raise FeatstoreError(
            f"{out} cannot be written: {exc.strerror}; choose another --out"
        ) from exc


def _source_text(source_bytes: int, xxh3_128: str, **_: object) -> str:
    return f"{format_bytes(source_bytes)}, xxh3-128 {xxh3_128}"


def _ellipsis(frames: Sequence[int], keep: int = 8) -> str:
    shown = [str(frame) for frame in frames]
    return ", ".join(shown if len(shown) <= keep + 1 else [*shown[:keep], "...", shown[-1]])
