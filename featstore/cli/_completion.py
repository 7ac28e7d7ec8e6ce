"""What a shell completes: datasets of the cache directory that the line names, and videos of the dataset."""

from __future__ import annotations

import contextlib
import os
from itertools import islice
from typing import TYPE_CHECKING

from featstore.errors import FeatstoreError

if TYPE_CHECKING:
    import click

_MAX_VIDEOS = 500  # more are no help to who presses a key


def complete_dataset(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the datasets that begin with what was typed."""
    from featstore.store.paths import dataset_names

    with contextlib.suppress(FeatstoreError):
        return [name for name in dataset_names(_cache_dir(ctx)) if name.startswith(incomplete)]
    return []


def complete_video(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return videos of the dataset's default set, or of --spec, that begin with what was typed: 500 at most."""
    dataset = ctx.params.get("dataset")
    if not dataset:
        return []
    with contextlib.suppress(FeatstoreError):
        from featstore.store.reader import FeatureStore

        there, spec = FeatureStore(_cache_dir(ctx))[dataset], ctx.params.get("spec")
        if spec:
            there = there.sets[spec]
        fitting = (video for video in there if video.startswith(incomplete))
        return sorted(islice(fitting, _MAX_VIDEOS))
    return []


def _cache_dir(ctx: click.Context) -> str:
    found = ctx.params.get("cache_dir") or ctx.params.get("source") or os.curdir
    return os.path.expanduser(found)  # the shell passes what was typed
