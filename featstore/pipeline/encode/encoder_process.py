"""The process that encodes on one device: an encoder built from its recipe, and the loop of `encoding`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from featstore.encoders.registry import EncoderRecipe
from featstore.errors import FeatstoreError
from featstore.fields import to_plain
from featstore.pipeline.encode.encode_loop import serve
from featstore.pipeline.shared_memory import Memory
from featstore.spec import FeatureSpec
from featstore.system.processes import Slots, join_parent, send

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def main() -> None:
    """Serve the parent; tell it of any error, and end."""
    connection, first, frames = join_parent(die_with_parent=True)
    records = Slots.attach(**first["records"])
    try:
        _serve(connection, first, frames, records)
    except FeatstoreError as exc:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(connection, {"failed": type(exc).__name__, "message": str(exc)})


def _serve(connection: Connection, first: dict[str, Any], frames: Slots, records: Slots) -> None:
    encoder = EncoderRecipe(**first["recipe"]).build()
    # The parent compares it with its own: the weights may lie elsewhere on this device's machine, or have changed.
    send(connection, {"identity": to_plain(encoder.identity)})
    memory = Memory(FeatureSpec.from_dict(first["spec"]), frames, records)
    serve(connection, encoder, memory, batch_frames=first["batch_frames"])


if __name__ == "__main__":
    main()
