"""The file that a command writes its picture or page to."""

from __future__ import annotations

import os

from featstore.errors import FeatstoreError


def write_file(out: str, data: bytes) -> None:
    """Write `data` to the file `out`, whole or not at all; a device or a pipe is written to and not replaced.

    Raises:
        FeatstoreError: it cannot be written.
    """
    from featstore.system.fsync import write_atomically

    try:
        if os.path.isfile(out) or not os.path.exists(out):
            with write_atomically(out) as file:
                file.write(data)
        else:
            with open(out, "wb", buffering=0) as device:
                device.write(data)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        said = getattr(exc, "strerror", None) or exc
        raise FeatstoreError(f"{out} cannot be written: {said}; choose another --out") from exc
