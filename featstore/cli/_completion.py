"""What a shell completes: datasets of the cache directory that the line names, and videos of the dataset."""

from __future__ import annotations

import contextlib
import os
import re
from itertools import islice
from typing import TYPE_CHECKING

from click.shell_completion import BashComplete, add_completion_class

from featstore.errors import FeatstoreError

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

_MAX_VIDEOS = 500  # more are no help to who presses a key
_UNSAFE = re.compile(r"[^\w@%+=:,./-]")  # in a word of bash outside quotes


class _BashComplete(BashComplete):
    """What click gives to bash, which, unlike zsh and fish, takes a completion as if it were typed."""

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Return the line that click's script reads, without -r: it takes one of two backslashes."""
        words, at = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
        if not "".join(words[at : at + 1]).startswith(("'", '"')):
            item.value = _UNSAFE.sub(r"\\\g<0>", item.value)
        return super().format_completion(item).replace("\\", "\\\\")


add_completion_class(_BashComplete)


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
