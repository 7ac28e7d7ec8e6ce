"""featstore ingest."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from featstore.cli._estimates import plan_sources, show_estimates
from featstore.cli._ingest_options import (
    choose_storage,
    choose_work,
    ingest_options,
)
from featstore.cli._interrupts import INTERRUPTED, stop_on_signals
from featstore.cli._log_options import log_options
from featstore.cli._options import SOME_FAILED
from featstore.cli._printing import clock, print_json
from featstore.cli._progress import show_progress
from featstore.cli._ray_options import choose_engine, ray_options
from featstore.cli._sources import BENCHMARK_WAYS, choose_sources
from featstore.cli._streams import note, say
from featstore.cli._words import counts_text, how_many
from featstore.errors import plain, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from featstore.cli._sources import IngestSource
    from featstore.pipeline.cluster.shard import Share
    from featstore.pipeline.summary import IngestSummary

_BOTTLENECK = 0.5  # share of its time that a stage works, from which on more of it would help


@click.command()
@ingest_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan, as featstore plan does, and the videos; then exit.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Take share I of N of the videos, numbered from 0, and add it to the dataset as sealed shards; auto takes I "
    "and N from Slurm's or torchrun's environment. Every process names the same videos.",
)
@click.option(
    "--shard-dir",
    type=click.Path(file_okay=False),
    help="With --shard, a folder on a local disk for what is not sealed yet; by default it is in the cache directory.",
)
@ray_options
@log_options
def ingest(shard: str | None, shard_dir: str | None, **options: Any) -> None:
    """Compute and store the features of videos, except those that are already stored."""
    if shard_dir is not None and shard is None:
        raise click.UsageError(
            "--shard-dir is where a share is written: name the share with --shard"
        )
    if shard is not None and options["engine"] != "local":
        raise click.UsageError("--shard is the work of one process: leave out it or --engine ray")
    share = None if shard is None else _parse_share(shard)
    if options["dry_run"]:
        estimates, rates = plan_sources(options, share=share)
        show_estimates(estimates, rates, options, list_videos=True, sharded=share is not None)
        return
    run = _choose_run(share, shard_dir)
    work, storage = choose_work(options), choose_storage(options)
    sources = choose_sources(options)
    if shard is None:
        from featstore.pipeline.ingest import check_target

        for source in sources:
            check_target(options["cache_dir"], source.dataset, work)
    encoder, engine = choose_engine(options)
    if engine is not None:
        run = partial(run, engine=engine)
    summaries: list[IngestSummary] = []
    with stop_on_signals() as stop:
        for source in sources:
            with show_progress() as on_progress:
                summary = run(
                    source.videos,
                    options["cache_dir"],
                    source.dataset,
                    encoder=encoder,
                    sampling=source.sampling,
                    storage=storage,
                    options=work,
                    stop=stop,
                    on_plan=lambda plan: note(_plan_line(plan, options["cache_dir"])),
                    on_progress=on_progress,
                )
            summaries.append(summary)
            if not options["as_json"]:
                _print_summary(summary)
            if summary.full or summary.over_budget or stop.is_set():
                _say_not_begun(sources[len(summaries) :])
                break
    if options["as_json"]:
        found = [summary.to_dict() for summary in summaries]
        several = any(options[way] for way in BENCHMARK_WAYS)
        print_json(found if several else found[0])
    ended = summaries[-1].full or summaries[-1].over_budget
    if ended:
        say(f"featstore: {plain(ended)}")
        sys.exit(1)
    if stop.is_set():
        sys.exit(INTERRUPTED)
    if any(found.failures or found.failed_before or found.clashes for found in summaries):
        sys.exit(SOME_FAILED)


def _parse_share(shard: str) -> Share:
    from featstore.pipeline.cluster.shard import Share

    try:
        return Share.parse(shard)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--shard") from exc


def _choose_run(share: Share | None, shard_dir: str | None) -> Callable[..., IngestSummary]:
    """Return what ingests: all into the dataset's file, or a share of the videos into shards."""
    if share is None:
        from featstore.pipeline.ingest import ingest as run

        return run
    from featstore.pipeline.cluster.shard import ingest_share

    return partial(ingest_share, share=share, shard_dir=shard_dir)


def _plan_line(plan: IngestSummary, cache_dir: str) -> str:
    from featstore.system.filesystems import free_bytes, nearest_folder

    videos = how_many(plan.planned, "video")
    parts = [f"{videos} to ingest as {plan.storage}", f"{plan.skipped} stored already"]
    if plan.restored:
        parts.append(f"{plan.restored} stored otherwise")
    if plan.replaced:
        parts.append(f"{plan.replaced} replaced since")
    if plan.clashes:
        parts.append(f"{len(plan.clashes)} left out, whose ids are of other stored files")
    if plan.failed_before:
        parts.append(f"{len(plan.failed_before)} failed before (try again: --retry-failed)")
    need = f"{format_bytes(plan.needed_bytes)} needed, {format_bytes(free_bytes(nearest_folder(cache_dir)))} free"
    return f"{plan.dataset}: {', '.join(parts)}; {need}"


def _print_summary(summary: IngestSummary) -> None:
    click.echo(
        f"{summary.dataset}: {summary.stored} stored, {summary.skipped} skipped, {len(summary.failures)} failed, "
        f"{format_bytes(summary.record_bytes)} in {clock(summary.seconds)}"
    )
    click.echo(f"  {plain_line(summary.spec.describe())} -> {summary.storage}")
    if summary.stored:
        shares = summary.shares
        worst = summary.bottleneck
        slow = shares[worst] >= _BOTTLENECK
        found = f"{worst} ({shares[worst]:.0%} busy)" if slow else "none"
        others = [
            f"{name} {share:.0%}" for name, share in shares.items() if not slow or name != worst
        ]
        click.echo(f"  decoded by: {counts_text(summary.decoders)}")
        click.echo(f"  bottleneck: {found}; {', '.join(others)}{'' if slow else ' busy'}")
    _print_left(summary)
    _print_misses(summary)
    _print_doubts(summary.doubts)
    for heading, failures in (
        ("failed", summary.failures),
        ("failed before", summary.failed_before),
        ("clash", summary.clashes),
    ):
        for failure in failures:
            click.echo(f"  {heading}: {plain_line(f'{failure.video_id}: {failure.reason}')}")
    if summary.failures or summary.failed_before:
        click.echo("  once the cause is mended, --retry-failed tries them again")
    if summary.clashes:
        click.echo(
            "  give each file its own id in a manifest (--manifest), or take another --dataset; --on-clash error lists "
            "the command that removes what is stored in one file"
        )


def _say_not_begun(sources: list[IngestSource]) -> None:
    if sources:
        names = ", ".join(source.dataset for source in sources)
        say(f"not begun: {names}")


def _print_left(summary: IngestSummary) -> None:
    """Print how many videos are left, and why."""
    left = summary.planned - summary.stored - len(summary.failures) + summary.beyond_limit
    if summary.full:
        why, then = "no more room", "once there is some, the same command goes on"
    elif summary.over_budget:
        why, then = "stopped", "see below"
    elif summary.interrupted:
        why, then = "interrupted", "the same command goes on"
    else:
        why, then = "--limit reached", "the same command goes on"
    if left:
        also = ", also without --restore-as" if summary.restored and summary.interrupted else ""
        click.echo(f"  {why}: {how_many(left, 'video')} left; {then}{also}")


def _print_misses(summary: IngestSummary) -> None:
    """Print how many videos missed the error budget, and what became of them."""
    of = f"of {how_many(summary.stored, 'video')} missed the error budget of {summary.budget}"
    if summary.lossless:
        more = format_bytes(summary.lossless_bytes)
        click.echo(f"  {summary.lossless} {of} and are stored losslessly: +{more}")
    if summary.missed:
        click.echo(f"  {summary.missed} {of} and are stored as {summary.storage} all the same")


def _print_doubts(doubts: dict[str, int]) -> None:
    """Print how many videos are doubted, and what settles it: another decoder, or a whole file."""
    from featstore.decoding.frame_selection import UNSETTLED

    lost = {doubt: count for doubt, count in doubts.items() if doubt in UNSETTLED}
    found = {doubt: count for doubt, count in doubts.items() if doubt not in lost}
    if found:
        click.echo(
            f"  {how_many(sum(found.values()), 'video')} decoded by decord: frames may not be those asked for: "
            f"{counts_text(found)}; see --decoder exact"
        )
    if lost:
        click.echo(
            f"  {how_many(sum(lost.values()), 'video')} damaged or cut short: frames may not be those asked for: "
            f"{counts_text(lost)}; no decoder finds them, ingest another copy of the file"
        )
