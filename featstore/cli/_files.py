"""The file that a command writes its picture, page or list to."""

from __future__ import annotations

from featstore.errors import FeatstoreError


def write_file(out: str, data: bytes, option: str = "--out") -> None:
    """Write `data` to the file `out`, whole or not at all; a device or a pipe is written to and not replaced.

    Args:
        out: the file.
        data: what is written.
        option: which names the file, for the error.

    Raises:
        FeatstoreError: it cannot be written.
    """
    from featstore.system.fsync import open_target

    try:
        with open_target(out) as file:
            file.write(data)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        said = getattr(exc, "strerror", None) or exc
        raise FeatstoreError(f"{out} cannot be written: {said}; choose another {option}") from exc
