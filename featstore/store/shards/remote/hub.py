"""Datasets of shards in a dataset repository of the Hugging Face Hub, read: `hf://datasets/owner/name@revision/prefix`."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from featstore.defaults import REMOTE_TIMEOUT
from featstore.errors import StoreError, StoreNotFound
from featstore.store.shards.remote.bucket import BucketPlace, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.-]+))?((?:/[\w.-]+)*)/?")


class HubPlace(BucketPlace):
    """A folder of a dataset repository; see FilePlace. Nothing is written to it: upload with huggingface_hub.

    The repository lists its files; their bytes come by ranged reads, as from any web server.
    """

    def __init__(self, url: str) -> None:
        """Take the URL; raise StoreError if it is none, MissingExtra without obstore."""
        from huggingface_hub import HfApi, get_token

        found = _URL.fullmatch(url)
        if found is None:
            raise StoreError(
                f"{url} names no dataset repository", remedy="write hf://datasets/OWNER/NAME"
            )
        self.where = url.rstrip("/")
        self.is_web = False
        self._repo, self._revision = found[1], found[2] or "main"
        self._prefix = found[3].strip("/")
        self._api = HfApi()
        token = get_token()
        address = f"{self._api.endpoint}/datasets/{self._repo}/resolve/{self._revision}"
        self._store = open_store(
            f"{address}/{self._prefix}".rstrip("/"),
            REMOTE_TIMEOUT,
            {"authorization": f"Bearer {token}"} if token else None,
        )

    def names(self, folder: str) -> dict[str, int]:
        """Return the names and bytes of the files right in `folder`."""
        return {name: size for name, size in self._entries(folder) if size is not None}

    def folders(self) -> list[str]:
        """Return the names of the folders at the top, sorted."""
        return sorted(name for name, size in self._entries("") if size is None)

    def _entries(self, folder: str) -> list[tuple[str, int | None]]:
        """Return what is right in a folder: names and bytes, None for a folder; nothing if it is not there."""
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        path = "/".join(filter(None, (self._prefix, folder))) or None
        with self._named():
            try:
                found = [
                    *self._api.list_repo_tree(
                        self._repo, path, revision=self._revision, repo_type="dataset"
                    )
                ]
            except EntryNotFoundError:
                return []
        return [
            (each.path.rpartition("/")[2], each.size if isinstance(each, RepoFile) else None)
            for each in found
        ]

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Raise what huggingface_hub raises as errors of ours that name the place."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            yield
        except (RepositoryNotFoundError, RevisionNotFoundError) as exc:
            raise StoreNotFound(
                f"there is no {self.where} that may be read",
                remedy="correct its name, or log in with hf auth login",
            ) from exc
        except (
            Exception
        ) as exc:  # its own, or of the library that it asks by, which its versions change
            raise StoreError(
                f"{self.where} does not answer ({str(exc)[:200]})", remedy="try again later"
            ) from exc

    def refuse_writing(self) -> None:
        """Raise StoreError."""
        raise StoreError(
            f"{self.where} is only read by featstore",
            remedy="push into a folder, and upload that: hf upload OWNER/NAME FOLDER --repo-type dataset",
        )
