"""The JSON files of a checkpoint: sizes are capped, and each value is checked as it is taken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from featstore.checkpoints.unreadable import explain_unreadable
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from featstore.checkpoints.files import Files

MAX_JSON_BYTES = 16 << 20  # the index of a 7B checkpoint has some 60 kB
AS_PUBLISHED = "use the file as the model's authors published it"


def read_json(files: Files, name: str, limit: int = MAX_JSON_BYTES) -> ConfigFields | None:
    """Return the JSON object in file `name`; None if there is no such file.

    Args:
        files: the checkpoint.
        name: the file's name.
        limit: how many bytes the file may have.

    Raises:
        CheckpointError: the file is too large, or does not hold a JSON object.
    """
    path = files.find(name)
    if path is None:
        return None
    origin = f"{files}/{name}"
    try:
        size = path.stat().st_size
        values = json.loads(path.read_bytes()) if size <= limit else None
    except (ValueError, RecursionError, OSError) as exc:
        raise CheckpointError(
            f"{origin} cannot be read as JSON {explain_unreadable(path, exc)}"
        ) from exc
    if size > limit:
        raise CheckpointError(
            f"{origin} has {size} bytes, at most {limit} are read; is it the right file?"
        )
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{origin} holds a {type(values).__name__}, expected an object; fetch it again"
        )
    return ConfigFields(values, origin)


def read_config(files: Files, remedy: str = "name the folder of a checkpoint") -> ConfigFields:
    """Return the config.json of a checkpoint.

    Args:
        files: the checkpoint.
        remedy: what the user can do if it has none.

    Raises:
        CheckpointError: it has none, or that cannot be read.
    """
    config = read_json(files, "config.json")
    if config is None:
        raise CheckpointError(f"{files} has no config.json{files.caveat}; {remedy}")
    return config


class ConfigFields:
    """A JSON object from disk whose values are checked as they are taken.

    A missing value is the default; `null` is a value like any other. A value that is missing without a default, of
    another type or out of bounds raises CheckpointError, which says what was found and expected.

    Attributes:
        values: the object itself, unchecked.
        origin: what messages call it.
    """

    def __init__(self, values: dict[str, Any], origin: str) -> None:
        """Wrap `values`."""
        self.values = values
        self.origin = origin

    def get(self, name: str) -> Any:
        """Return the value as it is, None if it is missing."""
        return self.values.get(name)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """Return an integer in [low, high]."""
        value = self.values.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        """Return a number in [low, high]."""
        value = self.values.get(name, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def triple(
        self, name: str, low: float, default: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        """Return three numbers in [low, 1e9], one a channel; null means the default, too."""
        value = self.values.get(name)
        value = default if value is None else value
        if (
            not isinstance(value, (list, tuple))
            or len(value) != 3
            or not all(type(x) in (int, float) and low <= x <= 1e9 for x in value)
        ):
            raise self.wrong(name, f"three numbers from {low:g} to 1e+09")
        red, green, blue = map(float, value)
        return red, green, blue

    def text(self, name: str, default: str | None = None, choices: tuple[str, ...] = ()) -> str:
        """Return a string, one of `choices` if there are any."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or not value or (choices and value not in choices):
            raise self.wrong(name, " or ".join(map(repr, choices)) or "a string")
        return value

    def wrong(self, name: str, expected: str, remedy: str = AS_PUBLISHED) -> CheckpointError:
        """Return the error that says what was found and expected.

        Args:
            name: the value's name.
            expected: which values are valid.
            remedy: what the user can do.
        """
        found = f"{name} = {self.values[name]!r:.200}" if name in self.values else f"no {name}"
        return CheckpointError(f"{self.origin} has {found}, expected {expected}; {remedy}")
