"""Weights that are neither model.safetensors nor listed in an index: numbered files are read, all else is named."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from featstore.checkpoints.unreadable import to_safetensors
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from featstore.checkpoints.files import Files

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
_STATES = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states).*")
# Name of a file -> what it is, and the remedy; the first that matches one of the files is told.
_KINDS = (
    (
        r"adapter_(model|config)\..*",
        "an adapter",
        "merge it into its base model with peft's merge_and_unload, and use the result",
    ),
    (
        r".*\.(incomplete|part|aria2|crdownload)",
        "a download that has not ended",
        "wait for it, or start it again",
    ),
    (
        r".*\.safetensors",
        "safetensors of another name",
        f"rename it {SINGLE} if it is the whole model, or fetch all files as they were published",
    ),
    (r".*\.(gguf|ggml)", "weights for llama.cpp", "fetch the safetensors that they were made from"),
    (
        r"zero_to_fp32\.py",
        "a DeepSpeed checkpoint",
        "convert it with that script and its option --safe_serialization",
    ),
    (
        r".*\.(h5|msgpack|onnx)",
        "weights for another framework",
        "fetch the copy in safetensors, for torch",
    ),
)


def list_numbered(files: Files) -> list[str]:
    """Return the numbered safetensors if all are there, as 1 of 2 and 2 of 2; [] if there are none.

    Raises:
        CheckpointError: some are missing, or they do not belong together.
    """
    names = [name for name in files.names() if _NUMBERED.fullmatch(name)]
    if not names:
        return []
    count = int(names[0][-17:-12])
    whole = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    if missing := [name for name in whole if name not in names]:
        raise without_index(files, f"{names[0]}, but not {missing[0]}", "fetch both")
    if names != whole:
        raise without_index(
            files, f"{count} files such as {names[0]}, and others", f"fetch {INDEX}"
        )
    return names


def without_index(files: Files, found: str, remedy: str) -> CheckpointError:
    """Return the error that numbered safetensors cannot be read because of `found`; their index would name them all."""
    return CheckpointError(
        f"{files} has no {INDEX}, which would name its weights; it has {found}; {remedy}"
    )


def no_safetensors(files: Files) -> CheckpointError:
    """Return the error that there are no weights to read; it says what there is."""
    expected = f"expected {SINGLE} or {INDEX}{files.caveat}"
    names = [name for name in files.names() if not _STATES.fullmatch(name)]
    for pattern, what, remedy in _KINDS:
        if found := [name for name in names if re.fullmatch(pattern, name)]:
            return CheckpointError(f"{files} holds {what} ({found[0]}), {expected}; {remedy}")
    if pickled := [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        first = pickled[0].removeprefix("pytorch_").rpartition(".")[0]
        new = first if _NUMBERED.fullmatch(f"{first}.safetensors") else "model"
        return CheckpointError(
            f"{files} holds no safetensors but pickled weights ({pickled[0]}), {expected}; "
            f"{to_safetensors(pickled[0], f'{new}.safetensors')}"
        )
    return CheckpointError(
        f"{files} holds no safetensors, {expected}; fetch the rest of it, or a copy in safetensors: pickled weights "
        "are not read"
    )
