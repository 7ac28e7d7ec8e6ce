"""The files of a checkpoint, in a folder or on the Hub.

Only the files that are asked for are fetched: of LongVA-7B's 15 GB the vision side needs the shards that hold its
tensors.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from featstore.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
# What huggingface_hub sends requests with: requests at first, httpx since 1.0, httpx2 since 2.
_HTTP_LIBRARIES = {"requests", "httpx", "httpx2"}


class Files(Protocol):
    """A folder of files, local or remote; `str()` of it is what the user calls it."""

    @property
    def caveat(self) -> str:
        """Return what a message that says that a file is missing must add, or nothing."""
        ...

    def find(self, name: str) -> Path | None:
        """Return the local path of file `name`, fetched if necessary; None if there is no such file.

        Raises:
            CheckpointError: the files cannot be reached.
        """
        ...

    def names(self) -> list[str]:
        """Return the sorted names of the files, links included, not those in folders; [] if they are not known.

        Raises:
            CheckpointError: the files cannot be reached.
        """
        ...


@dataclass(frozen=True)
class LocalFiles:
    """A folder on disk."""

    folder: Path
    caveat: ClassVar[str] = ""

    def find(self, name: str) -> Path | None:
        """Return the path of file `name`; None if there is no such file.

        Raises:
            CheckpointError: it is a link to a file that is not there.
        """
        path = self.folder / name
        if os.path.isfile(path):  # False, too, for names no file can have
            return path
        if os.path.islink(path) and not os.path.exists(path):
            raise CheckpointError(
                f"{path} is a link to {os.readlink(path)}, which is not there; copy a folder of the Hub's cache with "
                "`cp -rL`, which copies what links stand for, or download the checkpoint with `hf download`"
            )
        return None

    def names(self) -> list[str]:
        """Return the sorted names of the files in the folder.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            with os.scandir(self.folder) as entries:
                return sorted(
                    entry.name for entry in entries if entry.is_symlink() or entry.is_file()
                )
        except OSError as exc:
            raise CheckpointError(
                f"{self.folder} cannot be listed ({exc}); check that this user may read it"
            ) from exc

    def __str__(self) -> str:
        """Return the folder's path."""
        return str(self.folder)


class HubFiles:
    """A repository on the Hub; all files come from the commit that the first one came from."""

    def __init__(self, repo: str) -> None:
        """Name the repository; nothing is fetched yet.

        Args:
            repo: such as `lmms-lab/LongVA-7B-DPO`.
        """
        self.repo = repo
        self.caveat = ""
        self._commit: str | None = None
        self._unanswered: str | None = None  # why the Hub cannot be reached; "" if it was

    def find(self, name: str) -> Path | None:
        """Return the path of file `name` in the Hub's cache, fetched if necessary; None if there is no such file.

        Raises:
            CheckpointError: the repository cannot be reached.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if self._unanswered is None and not _is_cached(self.repo, name, self._commit):
            self._unanswered = knock(self.repo, name)
        try:
            if self._unanswered and not _is_cached(self.repo, name, self._commit):
                raise LocalEntryNotFoundError(self._unanswered)
            path = Path(hf_hub_download(self.repo, name, revision=self._commit))
        except LocalEntryNotFoundError as exc:
            if self._commit:  # offline, and the cache holds other files of this commit
                self.caveat = ", and the Hub cannot be reached: only its cache here was searched"
                return None
            raise self._unreachable(exc) from exc
        except EntryNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise self._unreachable(exc) from exc
        self._commit = self._commit or path.parent.name  # .../snapshots/<commit>/<name>
        return path

    def names(self) -> list[str]:
        """Return []: no message is worth a request."""
        return []

    def _unreachable(self, exc: Exception) -> CheckpointError:
        reason = str(exc).strip().partition("\n")[0]
        return CheckpointError(
            f"{self.repo!r} is not a folder here and cannot be fetched from the Hub ({reason})",
            remedy="give the path of a local folder, or check the name, the network and HF_HUB_OFFLINE",
        )

    def __str__(self) -> str:
        """Return the repository's name."""
        return self.repo


def _is_cached(repo: str, name: str, commit: str | None) -> bool:
    """Return whether the Hub's cache tells where a file is, or that there is none."""
    from huggingface_hub import try_to_load_from_cache

    return try_to_load_from_cache(repo, name, revision=commit) is not None


def knock(repo: str, name: str) -> str:
    """Return why the Hub cannot be reached, from one request without the retries of a download; "" if it can."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repo, name), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as exc:  # what the Hub answers is the download's to explain
        if type(exc).__module__.partition(".")[0] in _HTTP_LIBRARIES:
            return str(exc) or type(exc).__name__
    return ""


def open_files(checkpoint: str, example: str = "lmms-lab/LongVA-7B-DPO") -> Files:
    """Return the files of a local folder or, if there is none, of the Hub repository of that name.

    Args:
        checkpoint: path of a folder, or a name on the Hub.
        example: a name on the Hub, for messages.

    Raises:
        CheckpointError: it is neither.
    """
    folder = Path(checkpoint).expanduser()
    if checkpoint and os.path.isdir(folder):  # Path("") is the working directory
        _refuse_cache_folder(folder)
        return LocalFiles(folder.absolute())  # also after a chdir
    if checkpoint and os.path.exists(folder):
        raise CheckpointError(
            f"{checkpoint!r:.300} is a file",
            remedy="name the folder that holds config.json and safetensors",
        )
    if _HUB_ID.fullmatch(checkpoint):
        return HubFiles(checkpoint)
    raise CheckpointError(
        f"there is no folder {checkpoint!r:.300}",
        remedy=f"name a folder that holds config.json, or a name on the Hub such as {example}",
    )


def _refuse_cache_folder(folder: Path) -> None:
    """Refuse the Hub's cache folder of a model, in which each commit has a folder of its own."""
    owner, _, name = folder.name.removeprefix("models--").partition("--")
    if folder.name.startswith("models--") and os.path.isdir(folder / "snapshots"):
        raise CheckpointError(
            f"{folder} is the Hub's cache of {owner}/{name}; name that, or a folder in its snapshots/"
        )
