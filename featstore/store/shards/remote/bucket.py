"""Shard files in a bucket of an object store, or on a web server: a FilePlace through obstore.

A broken or stalled connection is taken up where it ended, for as long as each try brings some bytes. Nothing that comes
is verified here: who reads a file knows its checksum.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from featstore.defaults import REMOTE_CONNECT_TIMEOUT, REMOTE_RETRIES, REMOTE_TIMEOUT
from featstore.errors import MissingExtra, StoreDamaged, StoreError, StoreNotFound
from featstore.store.shards.manifest_list import MAX_NUMBER, list_name
from featstore.store.shards.places import GOOD_COPY, verified_pieces
from featstore.store.shards.remote.obstore_words import REFUSES, ask, explain, refuse_forked, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PART_BYTES = 64 << 20  # 10,000 parts are the most of an object: 625 GiB
PARTS_AT_ONCE = 4
READ_BYTES = 1 << 20  # of a stream at once
UPLOAD_TIMEOUT = 600.0  # seconds for a part, whose upload cannot be taken up in its middle
_NAME = "name the dataset"


def is_url(place: str | os.PathLike[str]) -> bool:
    """Return whether `place` names something on a server, not a folder."""
    return isinstance(place, str) and "://" in place


class BucketPlace:
    """A prefix of a bucket; see FilePlace.

    Attributes:
        where: Its URL.
    """

    def __init__(self, url: str) -> None:
        """Take the URL, as `s3://bucket/prefix`, asking nothing; raise MissingExtra without obstore, or StoreError."""
        self.where = url.rstrip("/")
        self.is_web = urlsplit(url).scheme in ("http", "https")
        self._store = open_store(self.where, REMOTE_TIMEOUT)

    def names(self, folder: str) -> dict[str, int]:
        """Return the names and bytes of the objects right in `folder`."""
        import obstore

        if self.is_web:
            return self._lists(folder)
        with self._told(folder):
            found = ask(obstore.list_with_delimiter, self._store, f"{folder}/")
        return {each["path"].rpartition("/")[2]: each["size"] for each in found["objects"]}

    def folders(self) -> list[str]:
        """Return the names of the folders at the top, sorted."""
        import obstore

        if self.is_web:
            raise StoreError(f"{self.where} is a web server, which lists no folders", remedy=_NAME)
        with self._told(""):
            found = ask(obstore.list_with_delimiter, self._store)
        return sorted(each.rstrip("/").rpartition("/")[2] for each in found["common_prefixes"])

    def read(self, name: str, most: int) -> bytes:
        """Return a whole object."""
        import obstore

        with self._told(name):
            size = ask(obstore.head, self._store, name)["size"]
        if size > most:
            raise StoreDamaged(
                f"{self.where}/{name} has {size} bytes, more than such a file can have",
                remedy=GOOD_COPY,
            )
        self.read_into(name, 0, memoryview(found := bytearray(size)))
        return bytes(found)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a part of an object."""
        at = 0

        def take(piece: memoryview) -> None:
            nonlocal at
            buffer[at : at + len(piece)] = piece
            at += len(piece)

        self.stream(name, offset, len(buffer), take)

    def stream(
        self, name: str, offset: int, length: int, take: Callable[[memoryview], None]
    ) -> None:
        """Call `take` with each piece of a part of an object, in order; StoreDamaged if the object is shorter."""
        import obstore

        done = 0
        while done < length:
            before = done
            try:
                with self._told(name, offset, length):
                    options: Any = {"range": (offset + done, offset + length)}
                    answer = ask(obstore.get, self._store, name, options=options)
                    stream = iter(answer.stream(min_chunk_size=READ_BYTES))
                    while (chunk := ask(next, stream, None)) is not None:
                        piece = memoryview(chunk)[: length - done]
                        take(piece)
                        done += len(piece)
            except (StoreNotFound, StoreDamaged):
                raise
            except StoreError:
                if done == before:
                    raise
                continue  # from where it ended
            if done < length and done == before:
                raise StoreDamaged(
                    f"{self.where}/{name} has no {length} bytes at {offset}: it was cut short",
                    remedy=GOOD_COPY,
                )

    def create(self, name: str, data: bytes) -> bool:
        """Make a small object if there is none of its name."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self.refuse_writing()
        with self._told(name):
            try:
                ask(obstore.put, self._store, name, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def put(self, name: str, data: bytes) -> None:
        """Put a small object in place of any of its name."""
        import obstore

        self.refuse_writing()
        with self._told(name):
            store = open_store(self.where, UPLOAD_TIMEOUT)
            ask(obstore.put, store, name, data, chunk_size=PART_BYTES)

    def upload(self, name: str, path: Path) -> None:
        """Copy a file in parts; the object appears when all are there and what was read is verified."""
        import obstore

        self.refuse_writing()
        wrong: list[StoreError] = []
        try:
            with self._told(name):
                ask(
                    obstore.put,
                    open_store(self.where, UPLOAD_TIMEOUT),
                    name,
                    _noted(verified_pieces(path, name), wrong),
                    use_multipart=True,
                    chunk_size=PART_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                )
        except StoreError as exc:
            if wrong:  # what ended the upload comes back as words only
                raise wrong[0] from exc
            raise
        with self._told(name):
            size = ask(obstore.head, self._store, name)["size"]
        if size != path.stat().st_size:
            raise StoreDamaged(
                f"{self.where}/{name} has {size} bytes after the upload of {path.stat().st_size}",
                remedy="run the command again",
            )

    def _lists(self, folder: str) -> dict[str, int]:
        """Return the newest list of shards in `folder` of a web server, which lists no files: numbers have no gaps."""
        there, beyond = 0, 1
        while self._has(f"{folder}/{list_name(beyond)}", there):
            there, beyond = beyond, 2 * beyond
            if beyond > MAX_NUMBER:
                raise StoreError(
                    f"{self.where} answers to every name, so it is no place of datasets",
                    remedy="correct the URL",
                )
        while beyond - there > 1:
            middle = (there + beyond) // 2
            if self._has(f"{folder}/{list_name(middle)}", there):
                there = middle
            else:
                beyond = middle
        return {list_name(there): 0} if there else {}

    def _has(self, name: str, beside: int) -> bool:
        """Return whether an object is there. `beside` others, S3 refuses who may not list one that is not there."""
        import obstore

        try:
            with self._told(name):
                ask(obstore.head, self._store, name)
        except StoreNotFound:
            return False
        except StoreError as exc:
            if beside and REFUSES in exc.found:
                return False
            raise
        return True

    def refuse_writing(self) -> None:
        """Raise StoreError if nothing can be written here."""
        if self.is_web:
            raise StoreError(
                f"{self.where} is read as a web server, to which nothing is written",
                remedy="name the bucket (s3://BUCKET/PREFIX), and its server with AWS_ENDPOINT_URL",
            )

    @contextlib.contextmanager
    def _told(self, name: str, offset: int = 0, length: int = 0) -> Iterator[None]:
        """Raise what obstore raises as errors of ours that name the place."""
        from obstore.exceptions import BaseError

        refuse_forked(self.where)
        try:
            yield
        except FileNotFoundError as exc:
            if isinstance(exc, StoreError):
                raise
            raise StoreNotFound(f"there is no file {self.where}/{name}") from exc
        except (BaseError, OSError, ValueError) as exc:
            if isinstance(exc, StoreError):
                raise
            said = str(exc)
            if "NoSuchBucket" in said:
                raise StoreNotFound(
                    f"there is no bucket {self.where}", remedy="make it first, or correct its name"
                ) from exc
            if "416 Range" in said or "Wanted range starting at" in said:
                raise StoreDamaged(
                    f"{self.where}/{name} has no {length} bytes at {offset}: it was cut short",
                    remedy=GOOD_COPY,
                ) from exc
            what, remedy = explain(said, self.where)
            raise StoreError(f"{self.where} {what} ({short(said)})", remedy=remedy) from exc


def _noted(pieces: Iterator[bytes], wrong: list[StoreError]) -> Iterator[bytes]:
    """Yield the pieces, and keep in `wrong` why there are no more of them."""
    try:
        yield from pieces
    except StoreError as exc:
        wrong.append(exc)
        raise


def open_store(url: str, timeout: float, headers: dict[str, str] | None = None) -> Any:
    """Return obstore's store at a URL, each of whose answers takes `timeout` seconds at most; see BucketPlace."""
    try:
        from obstore.store import from_url
    except ImportError as exc:
        raise MissingExtra(
            f"obstore is not installed, by which {url} is reached: pip install featstore[remote]"
        ) from exc
    endpoint = url
    if not url.startswith("http"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or url
    options: Any = {
        "connect_timeout": timedelta(seconds=REMOTE_CONNECT_TIMEOUT),
        "timeout": timedelta(seconds=timeout),
        "allow_http": endpoint.startswith("http://"),
        "default_headers": headers or {},
    }
    # A try that brings nothing is counted in `stream`; these are for single requests. One that gets no answer at all,
    # which takes the whole timeout, is tried once more.
    limit = timedelta(seconds=1.5 * timeout)
    retries: Any = {"max_retries": REMOTE_RETRIES, "retry_timeout": limit}
    try:
        return from_url(url, client_options=options, retry_config=retries)
    except Exception as exc:  # obstore raises several unrelated types for what it does not know
        raise StoreError(
            f"{url} cannot be opened: {short(str(exc))}",
            remedy="name a store as s3://BUCKET/PREFIX, gs://..., az://... or https://...",
        ) from exc
