"""featstore show."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import click

from featstore import defaults
from featstore.cli._completion import complete_video
from featstore.cli._files import write_file
from featstore.cli._options import (
    FiniteRange,
    VideoCommand,
    cache_dir_option,
    dataset_option,
    json_option,
    open_set,
    spec_option,
    which_nframe_option,
)
from featstore.cli._printing import print_json
from featstore.cli._words import how_many
from featstore.errors import plain_line

# What pictures are written as; a device has no suffix.
_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", "": "PNG"}


@click.command(cls=VideoCommand)
@cache_dir_option
@dataset_option
@which_nframe_option
@spec_option
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False),
    help="The file to write: .png, .jpg or .webp.  [default: strip-ID.png]",
)
@click.option(
    "--columns",
    type=click.IntRange(1, 64),
    default=defaults.STRIP_COLUMNS,
    help="Number of frames to show, evenly spaced among those sampled.",
)
@click.option(
    "--path",
    type=click.Path(),
    help="The video's file, if it is not where it was ingested any more.",
)
@click.option(
    "--decode-timeout",
    type=FiniteRange(min=0, min_open=True),
    default=defaults.DECODE_TIMEOUT,
    help="Seconds that decoding may take.",
)
@json_option
@click.argument("video_id", shell_complete=complete_video)
def show(
    cache_dir: str,
    dataset: str,
    nframe: int | None,
    spec: str | None,
    out: str | None,
    columns: int,
    path: str | None,
    decode_timeout: float,
    as_json: bool,
    video_id: str,
) -> None:
    """Draw frames of a video above the principal components of their features, as a picture.

    Like colours mean tokens that are alike to the encoder: if their shapes are those of the frames, the features are
    this video's. Frames are shown if the file is there and is the one that was encoded; otherwise features only.
    """
    if out is None:  # a name for each video: one name for all would replace the last picture
        named = re.sub(r"[^\w.-]", "_", video_id).encode()[-200:].decode(errors="ignore")
        out = f"strip-{named}.png"
    suffix = Path(out).suffix.lower()
    if suffix not in _SUFFIXES:
        raise click.BadParameter(
            f"{out} ends in {suffix!r}; pictures are written as {', '.join(filter(None, _SUFFIXES))}",
            param_hint="--out",
        )
    from featstore.report.strip import draw_strip

    there = open_set(cache_dir, dataset, spec, nframe)
    features = there.pinned()[video_id]
    row = there.sets[features.header.spec].feature_set
    strip = draw_strip(features, row.spec, path=path or "", columns=columns, timeout=decode_timeout)
    picture = BytesIO()
    strip.image.save(picture, _SUFFIXES[suffix], quality=95)
    write_file(out, picture.getvalue())
    width, height = strip.image.size
    if as_json:
        print_json(
            {
                "file": out,
                "image_width": width,
                "image_height": height,
                "video_id": video_id,
                "dataset": dataset,
                "feature_set": features.header.spec,
                "captions": strip.captions,
                "frame_indices": strip.frames,
                "variance_share": strip.share,
                "notes": strip.notes,
            }
        )
        return
    columns_text = how_many(len(strip.captions), "column")
    click.echo(plain_line(f"{out}: {video_id}, {columns_text}, {width} x {height} pixels"))
    for note in strip.notes:
        click.echo(f"  {plain_line(note)}")
