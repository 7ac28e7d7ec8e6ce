"""How often the store had what was asked for; a process logs one report when it ends.

If $FEATSTORE_STATISTICS names a file, it also adds a line of JSON to it: one file takes those of all processes of an
evaluation, and `featstore report` shows it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import threading
import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError
from featstore.system.logs import tell

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_VARIABLE = "FEATSTORE_STATISTICS"
_MAX_FILE_BYTES = 64 << 20

_adding = threading.Lock()


@dataclass(repr=False)
class CacheStatistics:
    """What a model asked of its store.

    Attributes:
        hits: number of videos whose features came from the store.
        misses: number of videos that were decoded and encoded, or could not be.
        bytes_read: bytes of features brought from the store to the device.
        seconds_reading: time spent on looking up and reading.
        seconds_encoding: time spent on misses: waiting, decoding, encoding and storing.
        seconds_generating: time spent on generating.
        decoders: `auto`, `exact` or both: whose frames the features are of.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    seconds_reading: float = 0.0
    seconds_encoding: float = 0.0
    seconds_generating: float = 0.0
    decoders: frozenset[str] = frozenset()

    @property
    def asked(self) -> int:
        """Return how many videos were asked for."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """Return hits over all videos asked for, 0 if there were none."""
        return self.hits / self.asked if self.asked else 0.0

    def add(self, **amounts: float) -> None:
        """Add to the named fields; thread-safe."""
        with _adding:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to the field `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{name: time.perf_counter() - start})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self) | {"hit_rate": self.hit_rate, "decoders": sorted(self.decoders)}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> CacheStatistics:
        """Return the statistics that `to_dict` described; raise ValueError if they are none."""
        amounts = {name: row[name] for name in _AMOUNTS if name in row}
        decoders = row.get("decoders", [])
        sound = all(type(n) in (int, float) and 0 <= n < 2**63 for n in amounts.values())
        if not (sound and {"hits", "misses"} <= set(amounts) and isinstance(decoders, list)):
            raise ValueError("hits, misses and other amounts must be numbers, decoders a list")
        return cls(**amounts, decoders=frozenset(map(str, decoders)))

    def __add__(self, other: CacheStatistics) -> CacheStatistics:
        """Return the sums of both, and all their decoders."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in _AMOUNTS}
        return CacheStatistics(**sums, decoders=self.decoders | other.decoders)

    def __str__(self) -> str:
        """Return the report, a few lines."""
        decoders = f"\n  Decoder: {', '.join(sorted(self.decoders))}" if self.decoders else ""
        return (
            "Vision Cache Statistics:\n"
            f"  Cache hits: {self.hits}\n"
            f"  Cache misses: {self.misses}\n"
            f"  Hit rate: {100 * self.hit_rate:.1f}%\n"
            f"  Bytes read: {self.bytes_read:,}\n"
            f"  Seconds: {self.seconds_reading:.2f} reading, {self.seconds_encoding:.2f} encoding, "
            f"{self.seconds_generating:.2f} generating{decoders}"
        )

    __repr__ = __str__


_AMOUNTS = [field.name for field in fields(CacheStatistics) if field.name != "decoders"]
_of_this_process: list[CacheStatistics] = []


def read_statistics(file: str | os.PathLike[str]) -> CacheStatistics:
    """Return the sum of the lines of a statistics file, each as `CacheStatistics.to_dict` gives it.

    Raises:
        FeatstoreError: the file cannot be read, or is not such a file.
    """
    try:
        with open(file, "rb") as opened:
            text = opened.read(_MAX_FILE_BYTES)
        lines = text.splitlines()
        if not lines:
            raise ValueError("it is empty")
        return sum(map(CacheStatistics.from_dict, map(json.loads, lines)), CacheStatistics())
    except OSError as exc:
        raise FeatstoreError(f"{file} cannot be read: {exc.strerror}") from exc
    except (AttributeError, TypeError, ValueError, RecursionError) as exc:
        raise FeatstoreError(
            f"{file} is not a file of statistics ({exc!s:.80}); name one that ${FILE_VARIABLE} named when models ran"
        ) from exc


def report_at_exit(statistics: CacheStatistics) -> None:
    """Include `statistics` in the one report that this process logs when it ends.

    A forked child starts from zero and reports what it asked itself.
    """
    _of_this_process.append(statistics)


def _report() -> None:
    total = sum(_of_this_process, CacheStatistics())
    if not total.asked:
        return
    said = str(total)
    if file := os.environ.get(FILE_VARIABLE):
        try:
            _append(file, json.dumps(total.to_dict()) + "\n")
        except OSError as exc:
            said += f"\nThese statistics cannot be added to {file}: {exc.strerror}"
    tell(__name__, said, logging.INFO)


def _append(file: str, line: str) -> None:
    """Add a line in one piece: other processes of the evaluation add theirs."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _start_from_zero() -> None:
    global _adding
    _adding = threading.Lock()
    for statistics in _of_this_process:
        vars(statistics).update(vars(CacheStatistics(decoders=statistics.decoders)))


atexit.register(_report)
os.register_at_fork(after_in_child=_start_from_zero)
