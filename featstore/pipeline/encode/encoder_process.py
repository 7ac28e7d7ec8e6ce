"""The process that encodes on one device: an encoder built from its recipe, and the loop of `encode_loop`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from featstore.errors import FeatstoreError
from featstore.pipeline.encode.base import EncoderReady, EncoderSetup
from featstore.pipeline.encode.encode_loop import serve
from featstore.pipeline.shared_memory import Memory
from featstore.system.processes import ErrorMessage, join_parent, send

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def main() -> None:
    """Serve the parent; report any error to it, and end."""
    connection, setup = join_parent(EncoderSetup, die_with_parent=True)
    try:
        _serve(connection, setup)
    except FeatstoreError as exc:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(connection, ErrorMessage.of(exc))


def _serve(connection: Connection, setup: EncoderSetup) -> None:
    encoder = setup.recipe.build()
    # The parent compares it with its own: this device's weights may be from another folder, or have changed.
    send(connection, EncoderReady(encoder.identity, encoder.preprocessing))
    memory = Memory(setup.spec, setup.storage, setup.frames, setup.records, setup.budget)
    serve(connection, encoder, memory, batch_frames=setup.batch_frames)


if __name__ == "__main__":
    main()
