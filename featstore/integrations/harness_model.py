"""What models in harnesses have in common: how misses are stored, and questions that are left unanswered."""

from __future__ import annotations

from featstore.defaults import CODEC, VALUES
from featstore.errors import CheckpointError, MissingExtra, StoreError
from featstore.records.storage import Storage
from featstore.system.logs import tell

# Errors that are not about this question: the next one would fail too.
LASTING_ERRORS = (CheckpointError, MissingExtra, StoreError)


def choose_storage(quantize: str | None, scale: str | None, codec: str | None) -> Storage | None:
    """Return how misses are stored; None if nothing is said."""
    if quantize is scale is codec is None:
        return None
    return Storage(quantize or VALUES, scale or "", codec or CODEC)


def note_unanswered(noted: dict[str, str], about: str, error: Exception) -> None:
    """Say once that questions about a video are left unanswered, and note why under `about`."""
    if about not in noted:
        tell(__name__, f"{error}; left unanswered: questions about it")
        noted[about] = str(error)
