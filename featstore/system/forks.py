"""What a forked child must not go on with as its parent had it: locks that other threads hold, pipes, counts."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """Something that is told in a forked child that it is a copy of the parent's."""

    def after_fork(self) -> None:
        """Let go of what is the parent's; called in the child before anything else of it runs."""
        ...


_told: weakref.WeakSet[Forked] = weakref.WeakSet()


def tell_of_forks(thing: Forked) -> None:
    """Have `thing.after_fork()` called in each forked child, for as long as it lives."""
    _told.add(thing)


def _tell() -> None:
    for thing in list(_told):
        thing.after_fork()


os.register_at_fork(after_in_child=_tell)
