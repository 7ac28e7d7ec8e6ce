"""The files of a checkpoint or a CLIP folder, on disk or on the Hub, and the JSON in them.

From the Hub comes only what is asked for: of LongVA-7B's 15 GB the vision side needs the shards that hold its tensors.
What is read is input from outside: sizes are capped, and each value is checked as it is taken.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from featstore.errors import CheckpointError

MAX_JSON_BYTES = 16 << 20  # the index of a 7B checkpoint has some 60 kB
AS_PUBLISHED = "use the file as the model's authors published it"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


class Files(Protocol):
    """A folder of files, wherever it lies; `str()` of it is what the user calls it."""

    def find(self, name: str) -> Path | None:
        """Return the local path of file `name`, fetched if need be; None where there is no such file."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """A folder on disk."""

    folder: Path

    def find(self, name: str) -> Path | None:
        """Return the path of file `name`; None where there is no such file."""
        path = self.folder / name
        return path if os.path.isfile(path) else None  # False, too, for names no file can have

    def __str__(self) -> str:
        """Return the folder's path."""
        return str(self.folder)


class HubFiles:
    """A repository on the Hub, all of its files from the commit the first one came from."""

    def __init__(self, repo: str) -> None:
        """Name the repository, as `lmms-lab/LongVA-7B-DPO`; nothing is fetched yet."""
        self.repo = repo
        self._commit: str | None = None

    def find(self, name: str) -> Path | None:
        """Return file `name` in the Hub's cache, fetched if need be; None where there is no such file.

        Raises CheckpointError where the repository cannot be had.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(self.repo, name, revision=self._commit))
        except LocalEntryNotFoundError as exc:
            if self._commit:  # offline, and the cache holds other files of this commit
                return None
            raise self._unreachable(exc) from exc
        except EntryNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise self._unreachable(exc) from exc
        self._commit = self._commit or path.parent.name  # .../snapshots/<commit>/<name>
        return path

    def _unreachable(self, exc: Exception) -> CheckpointError:
        reason = str(exc).strip().partition("\n")[0]
        return CheckpointError(
            f"{self.repo!r} is no folder here and cannot be had from the Hub ({reason}); "
            "give the path of a local folder, or check the name, the network and HF_HUB_OFFLINE"
        )

    def __str__(self) -> str:
        """Return the repository's name."""
        return self.repo


def open_files(where: str) -> Files:
    """Return the files of a local folder or, where there is none, of the Hub repository called so."""
    folder = Path(where).expanduser()
    if os.path.isdir(folder):
        return LocalFiles(folder.absolute())  # also after a chdir
    if os.path.exists(folder):
        raise CheckpointError(
            f"{where!r:.300} is a file; name the folder that holds config.json and safetensors"
        )
    if _HUB_ID.fullmatch(where):
        return HubFiles(where)
    raise CheckpointError(
        f"there is no folder {where!r:.300}; expected a folder with config.json and safetensors, "
        "or a name on the Hub such as lmms-lab/LongVA-7B-DPO"
    )


def read_json(files: Files, name: str) -> Fields | None:
    """Return the JSON object in file `name`, None where there is no such file; else CheckpointError."""
    path = files.find(name)
    if path is None:
        return None
    origin = f"{files}/{name}"
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{origin} has {size} bytes, at most {MAX_JSON_BYTES} are read; is it the right file?"
        )
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{origin} is not JSON ({exc}); fetch it again") from exc
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{origin} holds a {type(values).__name__}, expected an object; fetch it again"
        )
    return Fields(values, origin)


class Fields:
    """A JSON object from disk whose values are checked as they are taken.

    A missing value is the default; `null` is a value like any other. Without a default, and for any value of another
    kind or out of bounds, CheckpointError says what was found and expected.
    """

    def __init__(self, values: dict[str, Any], origin: str) -> None:
        """Wrap `values`; `origin` is what messages call them."""
        self.values = values
        self.origin = origin

    def get(self, name: str) -> Any:
        """Return the value as it is, None where it is missing."""
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

    def text(self, name: str, default: str | None = None, choices: tuple[str, ...] = ()) -> str:
        """Return a string, one of `choices` where there are any."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or not value or (choices and value not in choices):
            raise self.wrong(name, " or ".join(map(repr, choices)) or "a string")
        return value

    def wrong(self, name: str, expected: str, remedy: str = AS_PUBLISHED) -> CheckpointError:
        """Return the error that says so."""
        found = f"{name} = {self.values[name]!r:.200}" if name in self.values else f"no {name}"
        return CheckpointError(f"{self.origin} has {found}, expected {expected}; {remedy}")
