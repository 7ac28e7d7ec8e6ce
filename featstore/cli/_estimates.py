"""The plan of an ingest, for `featstore plan` and `featstore ingest --dry-run`: made, printed, drawn."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from featstore.cli._ingest_options import choose_encoder, choose_storage, choose_work
from featstore.cli._interrupts import INTERRUPTED, stop_on_signals
from featstore.cli._printing import clock, print_json, print_table
from featstore.cli._progress import show_count, show_progress
from featstore.cli._sources import choose_sources
from featstore.cli._streams import note, say
from featstore.cli._words import how_many
from featstore.errors import plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featstore.cli._sources import IngestSource
    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.cluster.shard import Share
    from featstore.pipeline.estimate import Estimate
    from featstore.pipeline.options import IngestOptions
    from featstore.pipeline.rates import Rates
    from featstore.pipeline.room import Room

DOES_NOT_FIT = 4  # exit code
_NAMED = 20  # unreadable files that are listed for people


def plan_sources(
    options: dict[str, Any], *, measure: bool = False, share: Share | None = None
) -> tuple[list[Estimate], Rates]:
    """Return what an ingest with these options will take, for each dataset, and at which rates.

    Args:
        options: of the command line.
        measure: whether rates are measured.
        share: which of the videos are taken; None for all.
    """
    from featstore.pipeline.ingest import check_target
    from featstore.pipeline.rates import known_rates

    work, sources = choose_work(options), choose_sources(options)
    if share is not None:
        sources = [replace(source, videos=share.of(source.videos)) for source in sources]
    for source in sources:
        check_target(options["cache_dir"], source.dataset, replace(work, dry_run=True))
    encoder = choose_encoder(options)
    built = encoder[0].build() if isinstance(encoder, list) else encoder
    estimates = [_estimate(source, options, work, built) for source in sources]
    if measure and any(estimate.clips.count for estimate in estimates):
        rates = _measure(estimates, sources, encoder, work)
        return [replace(found, frame_bytes=rates.record_bytes) for found in estimates], rates
    return estimates, known_rates(built.identity.geometry)


def _estimate(
    source: IngestSource, options: dict[str, Any], work: IngestOptions, encoder: Encoder
) -> Estimate:
    from featstore.decoding.video_file import identity_of
    from featstore.pipeline.estimate import estimate_ingest
    from featstore.pipeline.plan import plan_ingest
    from featstore.spec import FeatureSpec

    decoder, cache_dir = identity_of(work.decoder), options["cache_dir"]
    spec = FeatureSpec(encoder.identity, source.sampling, decoder, encoder.preprocessing)
    plan = plan_ingest(
        source.videos, cache_dir, source.dataset, spec, work, choose_storage(options)
    )
    geometry, sampling = encoder.identity.geometry, source.sampling
    label = f"reading the lengths of {how_many(len(plan.todo), 'video')} of {source.dataset}"
    with show_count(len(plan.todo), label) as on_read:
        found = estimate_ingest(
            plan, cache_dir, source.dataset, geometry, sampling, on_read=lambda _: on_read()
        )
    return replace(found, questions=source.questions)


def _measure(
    estimates: Sequence[Estimate],
    sources: Sequence[IngestSource],
    encoder: Encoder | list[EncoderRecipe],
    work: IngestOptions,
) -> Rates:
    """Return the rates for the videos of all datasets whose frames are taken as in the one with the most frames."""
    from featstore.pipeline.rates import measure_rates

    pairs = list(zip(estimates, sources, strict=True))
    largest, source = max(pairs, key=lambda pair: pair[0].clips.frames_taken)
    videos = [
        video
        for found, listed in pairs
        if listed.sampling == source.sampling
        for video in found.todo
        if video.video_id not in found.unreadable
    ]
    with stop_on_signals() as stop, show_progress() as on_progress:
        rates = measure_rates(
            videos,
            encoder=encoder,
            sampling=source.sampling,
            storage=largest.storage,
            options=work,
            stop=stop,
            on_progress=on_progress,
        )
    if stop.is_set():
        say("featstore: interrupted")
        sys.exit(INTERRUPTED)
    return rates


def show_estimates(
    estimates: Sequence[Estimate],
    rates: Rates,
    options: dict[str, Any],
    *,
    list_videos: bool = False,
    sharded: bool = False,
    picture: str | None = None,
) -> None:
    """Print the plan; exit with `DOES_NOT_FIT` if it cannot be done.

    Args:
        estimates: what each dataset takes.
        rates: how fast it goes.
        options: of the command line.
        list_videos: also print the videos to ingest.
        sharded: they become sealed shards.
        picture: also draw it, into this file.
    """
    from featstore.pipeline.room import Room, why_not
    from featstore.system.cpus import default_workers

    work = choose_work(options)
    room = Room.of(options["cache_dir"], work)
    reasons = why_not(estimates, room, sharded=sharded)
    workers = work.workers or default_workers()
    seconds = _seconds(estimates, rates, workers, len(options["devices"].split(",")))
    if options["as_json"]:
        from featstore.cli._plan_facts import plan_facts

        print_json(plan_facts(estimates, rates, room, reasons, seconds, list_videos=list_videos))
    else:
        _print_videos(estimates)
        if any(found.clips.count for found in estimates):
            _print_bytes(estimates, room)
            _print_time(rates, seconds, workers)
            if not rates.videos and any(found.todo for found in estimates):
                click.echo("  at rates of this machine, measured now: featstore plan --measure")
        else:
            click.echo("nothing to ingest")
        for reason in reasons:
            click.echo(f"does not fit: {plain_line(reason)}")
        if list_videos:
            _print_todo(estimates)
    if picture is not None:
        from featstore.cli._plan_chart import draw_plan

        draw_plan(estimates, room, picture)
        note(f"written to {plain_line(picture)}")
    if reasons:
        sys.exit(DOES_NOT_FIT)


def _seconds(
    estimates: Sequence[Estimate], rates: Rates, workers: int, encoders: int
) -> tuple[float, float]:
    frames = sum(found.clips.frames_taken for found in estimates)
    return rates.seconds(frames, workers, encoders) if frames else (0.0, 0.0)


def _print_videos(estimates: Sequence[Estimate]) -> None:
    names = ["dataset", "videos", "questions", "stored", "failed before", "unreadable", "to ingest"]
    rows: list[tuple[Any, ...]] = [
        (
            found.dataset,
            found.videos,
            found.questions or 0,
            found.stored,
            len(found.failed_before),
            len(found.unreadable),
            found.clips.count,
            found.clips.seconds,
        )
        for found in estimates
    ]
    if len(rows) > 1:
        counts = list(zip(*rows, strict=True))[1:-1]
        rows.append(("together", *map(sum, counts), sum(row[-1] or 0.0 for row in rows)))
    names.append("length")
    lengths = {"length": lambda seconds: "?" if seconds is None else clock(seconds)}
    kept = [i for i, name in enumerate(names) if name != "questions" or any(row[i] for row in rows)]
    print_table([names[i] for i in kept], [tuple(row[i] for i in kept) for row in rows], lengths)
    failed = sum(len(found.failed_before) for found in estimates)
    for count, what in (
        (sum(found.restored for found in estimates), "stored otherwise, and made again"),
        (sum(found.replaced for found in estimates), "of files that were replaced since"),
        (sum(len(found.clashes) for found in estimates), "left out, whose ids other files have"),
        (failed, "that failed before; try again: --retry-failed"),
    ):
        if count:
            click.echo(f"  {how_many(count, 'video')} {what}")
    bad = [(name, why) for found in estimates for name, why in found.unreadable.items()]
    for name, why in bad[:_NAMED]:
        click.echo(f"  unreadable: {plain_line(f'{name}: {why}')}")
    if len(bad) > _NAMED:
        click.echo(f"  and {len(bad) - _NAMED} more, which --json lists")


def _print_bytes(estimates: Sequence[Estimate], room: Room) -> None:
    from featstore.pipeline.estimate import storages_of
    from featstore.pipeline.room import needed_together

    chosen, rows = {found.storage for found in estimates}, []
    count = sum(found.clips.count for found in estimates)
    for storage in storages_of(estimates):
        needed = needed_together(estimates, storage)
        mark = "this plan" if storage in chosen else ""
        if needed is None:
            rows.append((str(storage), "too large for a record", "", "no", mark))
            continue
        each = tuple(size / max(count, 1) for size in needed)
        fits = "yes" if needed[1] <= room.left else "no"
        rows.append((str(storage), _span(needed), _span(each), fits, mark))
    click.echo()
    print_table(("stored as", "bytes", "a video", "fits", ""), rows)
    if not any(found.frame_bytes for found in estimates):
        click.echo(
            "ranges: as trained vision encoders' features compress; a video that misses the error budget may be planes"
        )
    limits = f"{format_bytes(room.min_free)} to stay free (--min-free)"
    if room.max_size is not None:
        limits += (
            f"; takes {format_bytes(room.taken)} of {format_bytes(room.max_size)} (--max-size)"
        )
    click.echo(f"free in {plain_line(room.cache_dir)}: {format_bytes(room.free)}, {limits}")


def _span(ends: tuple[float, ...]) -> str:
    least, most = map(format_bytes, ends)
    return least if least == most else f"{least} to {most}"


def _print_time(rates: Rates, seconds: tuple[float, float], workers: int) -> None:
    least, most = map(clock, seconds)
    span = least if least == most else f"{least} to {most}"
    more = "" if rates.encode is not None else " of decoding"
    click.echo(
        f"time: {span}{more} with {how_many(workers, 'decoder')}, at rates of {rates.source}"
    )


def _print_todo(estimates: Sequence[Estimate]) -> None:
    rows = [(found.dataset, v.video_id, v.path) for found in estimates for v in found.todo]
    if rows:
        click.echo()
        print_table(("dataset", "video", "path"), rows)
