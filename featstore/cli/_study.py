"""featstore compare --study: where the features come from, and the table of what was found."""

from __future__ import annotations

import contextlib
import csv
import random
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featstore import defaults
from featstore.cli._options import SOME_FAILED, VariadicOption, usage_errors
from featstore.cli._printing import print_json, print_table
from featstore.cli._streams import note
from featstore.cli._words import how_many
from featstore.errors import FeatstoreError, plain_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    import torch

    from featstore.decoding.video_file import Video
    from featstore.encoders import LongVAEncoder
    from featstore.models.study import Study
    from featstore.pipeline.on_demand import OnDemandEncoder
    from featstore.sampling import Sampling
    from featstore.spec import FeatureSpec

    T = TypeVar("T")
    Load = Callable[[], torch.Tensor]

_OPTIONS = (
    click.option(
        "--study",
        is_flag=True,
        help="Instead compare the ways of storing: encode a sample once, store it in every way in memory, and show "
        "bytes, errors and speed of each. The sample is of the dataset, of --videos or of --features.",
    ),
    click.option(
        "--videos",
        cls=VariadicOption,
        multiple=True,
        type=click.Path(),
        metavar="PATH...",
        help="With --study: videos to encode in place of the dataset's, folders and files.",
    ),
    click.option(
        "--features",
        type=click.Path(file_okay=False),
        help="With --study: a folder of features as .npy files, float16 or float32 (rows, width), in place of videos.",
    ),
    click.option(
        "--storage",
        "storages",
        multiple=True,
        help="With --study: only this way of storing, as its table names it. Repeatable.",
    ),
    click.option(
        "--csv",
        "csv_file",
        type=click.Path(dir_okay=False),
        help="With --study: file for a line per video and storage.",
    ),
    click.option(
        "--png",
        "png_file",
        type=click.Path(dir_okay=False),
        help="With --study: file for a picture of bytes and errors; needs featstore[report].",
    ),
)


def study_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `featstore compare` the options of a study."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def refuse_study_options(options: dict[str, Any]) -> None:
    """Refuse options that mean nothing without --study."""
    for name in ("videos", "features", "storages", "csv_file", "png_file"):
        if options[name]:
            option = {"storages": "storage"}.get(name, name.removesuffix("_file"))
            raise click.UsageError(f"--{option} applies to a study: also pass --study")


def study(options: dict[str, Any], encoder_options: dict[str, Any]) -> None:
    """Run `featstore compare --study`; `encoder_options` are the arguments of the encoder besides the checkpoint."""
    from featstore.models.study import STORAGES, Study, run_study

    _check(options)
    known = {str(storage): storage for storage in STORAGES}
    for name in options["storages"]:
        if name not in known:
            raise click.UsageError(f"--storage is {name!r}; use one of {', '.join(known)}")
    with _sources(options, encoder_options) as (features, sources):
        found, model = Study(features), None
        if options["generate"]:
            from featstore.models import CachedLongVA

            model = CachedLongVA(options["model_path"], prefix_cache=0, **encoder_options)
        try:
            run_study(
                found,
                sources,
                storages=[known[name] for name in options["storages"] or known],
                model=model,
                prompt=options["prompt"],
                max_new_tokens=options["max_new_tokens"],
                on_video=lambda video: note(f"studied {plain_line(video)}"),
            )
        finally:  # after an interrupt, too: a video may have taken minutes
            _report(found, options)
    if not found.rows:
        sys.exit(1)
    if found.failures:
        sys.exit(SOME_FAILED)


def _check(options: dict[str, Any]) -> None:
    """Refuse what cannot work before anything is read."""
    stored = options["dataset"] or options["cache_dir"]
    if bool(stored) + bool(options["videos"]) + bool(options["features"]) != 1:
        raise click.UsageError(
            "--study takes its sample from one place: --dataset with --cache-dir, --videos, or --features"
        )
    if stored and not (options["dataset"] and options["cache_dir"]):
        raise click.UsageError("name the dataset with both --dataset and --cache-dir")
    if options["features"] and (options["generate"] or options["model_path"]):
        raise click.UsageError(
            "features of --features are of no checkpoint: leave out --model-path and --generate"
        )
    if not (options["features"] or options["model_path"]):
        raise click.UsageError("name the checkpoint with --model-path")
    for name in ("csv_file", "png_file"):
        folder = Path(options[name] or "x").parent
        if not folder.is_dir():
            raise click.UsageError(f"there is no folder {str(folder)!r} for --{name[:3]}")
    if options["png_file"]:
        from featstore.cli._figure import new_figure
        from featstore.cli._study_chart import PICTURE

        new_figure(1, 1, PICTURE)


@contextlib.contextmanager
def _sources(
    options: dict[str, Any], encoder_options: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Load]]]:
    """Yield what the features are, and what loads those of each video of the sample."""
    if options["features"]:
        from featstore.models.study import find_place, read_features

        device = find_place(options["device"])
        folder = Path(options["features"])
        files = _sample(sorted(folder.rglob("*.npy")), options)
        if not files:
            raise FeatstoreError(
                f"{folder} has no .npy file; name a folder of features with --features"
            )
        names = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
        yield (
            str(folder),
            {name: partial(read_features, file, device) for name, file in names.items()},
        )
        return
    from featstore.encoders import LongVAEncoder
    from featstore.models.source_options import DECODERS_OF_SETS
    from featstore.pipeline.on_demand import OnDemandEncoder

    with usage_errors():
        encoder = LongVAEncoder(options["model_path"], **encoder_options)
    spec, videos = _videos(options, encoder)
    on_demand = OnDemandEncoder(
        encoder, timeout=defaults.DECODE_TIMEOUT, decoder=DECODERS_OF_SETS[spec.decoder]
    )
    sample = {video.video_id: video for video in _sample(videos, options)}
    with contextlib.closing(on_demand):
        yield (
            spec.describe(),
            {
                name: partial(_encode, on_demand, video, spec.sampling)
                for name, video in sample.items()
            },
        )


def _encode(on_demand: OnDemandEncoder, video: Video, sampling: Sampling) -> torch.Tensor:
    import torch

    return torch.cat(on_demand.encode(video, sampling).parts)


def _videos(options: dict[str, Any], encoder: LongVAEncoder) -> tuple[FeatureSpec, list[Video]]:
    """Return the videos to take the sample from, and what features of them are."""
    from featstore.decoding.video_file import Video, identity_of
    from featstore.models.compare import choose
    from featstore.pipeline.listing import list_videos
    from featstore.sampling import Sampling
    from featstore.spec import FeatureSpec
    from featstore.store.reader import FeatureStore

    if not options["videos"]:
        dataset = FeatureStore(options["cache_dir"])[options["dataset"]]
        spec = choose(dataset, encoder, options["nframe"], options["spec"], options["decoder"])
        entries = dataset.sets[spec.digest].entries()
        return spec, [Video(entry.video_id, entry.video_path) for entry in entries]
    sampling = Sampling(options["nframe"] or defaults.NFRAME)
    decoder = identity_of(options["decoder"] or defaults.DECODER)
    spec = FeatureSpec(encoder.identity, sampling, decoder, encoder.preprocessing)
    return spec, list_videos(options["videos"])


def _sample(found: Iterable[T], options: dict[str, Any]) -> list[T]:
    """Return the sample, in the order of the names."""
    names = sorted(found, key=str)
    chosen = random.Random(options["seed"]).sample(
        range(len(names)), min(len(names), options["samples"])
    )
    return [names[i] for i in sorted(chosen)]


def _report(found: Study, options: dict[str, Any]) -> None:
    from featstore.cli._study_chart import draw_study

    if options["as_json"]:
        print_json(found.to_dict())
    else:
        _print(found)
    for name, write in (("csv_file", _write_csv), ("png_file", draw_study)):
        if options[name] and found.rows:
            try:
                write(found, options[name])
            except OSError as exc:
                raise FeatstoreError(
                    f"{options[name]} cannot be written: {exc.strerror}; choose another --{name[:3]}"
                ) from exc


def _write_csv(found: Study, target: str) -> None:
    rows = [row.flat() for row in found.rows]
    # A name that is not UTF-8 is written with escapes, as it is printed.
    with open(target, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


_FORMATS: dict[str, Callable[[Any], str]] = {
    "MB/video": lambda value: f"{value / 1e6:8.3f}",
    "ratio": "{:5.2f}".format,
    "token p99": "{:8.3%}".format,
    "token max": "{:8.3%}".format,
    "cosine": "{:.6f}".format,
    "logit KL": "{:.1e}".format,
    "store x": "{:5.2f}".format,
    "read x": "{:5.2f}".format,
}


def _print(found: Study) -> None:
    for name, reason in found.failures.items():
        click.echo(f"not studied: {plain_line(f'{name}: {reason}')}")
    table = found.table()
    if not table:
        click.echo("nothing was studied")
        return
    columns = {
        "storage": "storage",
        "MB/video": "record_bytes",
        "ratio": "ratio",
        "token p99": "token_p99",
        "token max": "token_max",
        "cosine": "cosine",
        f"beyond {found.max_error:.0%}": "too_large",
    }
    if table[0]["store_x"] is not None:
        columns |= {"store x": "store_x", "read x": "read_x"}
    if table[0]["logit_kl"] is not None:
        columns |= {"logit KL": "logit_kl", "same answers": "identical"}
    for row in table:
        row["identical"] = f"{row['identical']} of {row['videos']}"
    print_table([*columns], [tuple(row[at] for at in columns.values()) for row in table], _FORMATS)
    videos = max(row["videos"] for row in table)
    peer = next((row for row in table if row["storage"] == found.peer), None)
    speed = (
        ""
        if peer is None
        else (
            f"; {found.peer} takes {peer['store_seconds']:.3f} s to store and {peer['read_seconds']:.3f} s to read"
        )
    )
    click.echo(f"{how_many(videos, 'video')} of {plain_line(found.features)}{speed}")
