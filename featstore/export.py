"""One video's features as a file other programs read: safetensors or npy."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featstore.record import Features

FORMATS = (".safetensors", ".npy")


def save_features(features: Features, path: str | os.PathLike[str]) -> None:
    """Write `features` to `path`, which appears whole or not at all.

    .npy: the dequantized features, float32 (num_tokens, hidden_dim). .safetensors: `data` and `scale` as they are
    stored (their product is the features; bf16 as its bits, uint16), with the header as metadata. Raises ValueError
    for another suffix.
    """
    import numpy as np
    from safetensors.numpy import save_file

    target = Path(path)
    if target.suffix not in FORMATS:
        raise ValueError(
            f"{target} ends in {target.suffix!r}; features are written as {' or '.join(FORMATS)}"
        )
    fd, draft = tempfile.mkstemp(dir=target.parent, prefix=".export-", suffix=target.suffix)
    os.close(fd)
    try:
        if target.suffix == ".npy":
            np.save(draft, features.dequantize())
        else:
            save_file({"data": features.data, "scale": features.scale}, draft, _metadata(features))
        _finish(draft)
        os.replace(draft, target)
    except BaseException:
        os.unlink(draft)
        raise


def _finish(draft: str) -> None:
    """Make a draft durable, so that no crash leaves its new name on an empty file, and readable as other files are."""
    fd = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o644)
        os.fsync(fd)
    finally:
        os.close(fd)


def _metadata(features: Features) -> dict[str, str]:
    header = asdict(features.header) | {"frame_indices": features.header.frames}
    return {name: _text(str(value)) for name, value in header.items()}


def _text(name: str) -> str:
    # A file name's bytes that are no text are lone surrogates, which safetensors cannot hold.
    return name.encode("utf-8", "backslashreplace").decode()
