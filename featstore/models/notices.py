"""What a model says while it answers, as warnings of its logger: each sentence once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.errors import StoreDamaged, StoreFull, StoreLocked
from featstore.system.logs import tell

if TYPE_CHECKING:
    from collections.abc import Hashable

    from featstore.errors import FeatstoreError


class Notices:
    """Says what a question did beside its answer. Threads may share it: at worst a sentence comes twice."""

    def __init__(self) -> None:
        """Start with nothing said."""
        self._said: set[Hashable] = set()

    def once(self, sentence: str, about: Hashable = None) -> None:
        """Say `sentence`, unless it is empty, or it or another one about the same was said."""
        about = about or sentence
        if sentence and about not in self._said:
            self._said.add(about)
            say(sentence)

    def unusable(self, found: FeatstoreError, dataset: str, *, stored: bool) -> None:
        """Say what is wrong with what is stored of a video, and that its features were made.

        Args:
            found: what is wrong, and what to do about it.
            dataset: the dataset.
            stored: the new features replace what was there, so there is nothing else to do unless more is damaged.
        """
        damaged = isinstance(found, StoreDamaged)
        reason = f"dataset {dataset!r}: {found}" if damaged else found.found if stored else found
        then = ("stored" if damaged else "made again") if stored else "made for this question only"
        self.once(f"{reason}; the video's features are {then}")

    def not_stored(self, why: FeatstoreError) -> None:
        """Say that missing features are used and not stored."""
        later = "no longer stored" if isinstance(why, StoreLocked) else "not stored"
        # How many bytes are free differs each time.
        about = StoreFull if isinstance(why, StoreFull) else None
        self.once(f"features that are missing are encoded but {later}: {why}", about)


def say(sentence: str) -> None:
    """Log a sentence as a warning; one that cannot be shown costs no answer."""
    tell(__name__, sentence)
