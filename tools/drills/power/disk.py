"""A disk that loses its power: what is surely on it, and what may be.

Of a file, what was synced is there. Of what was written since, any sectors may be there and others not, in any of the
versions they had. A name that was made, moved or removed is there for sure once its folder was synced, and may be
before: each change by itself, whole. That is less than what journaling file systems promise, so what holds here holds
there. Sectors of 512 bytes are whole, old or new.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from drills.power.write_log import Kind

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from drills.power.write_log import Entry

MODES = ("nothing", "everything", "a first part", "some", "torn at 512", "torn at 4096")


@dataclass
class Write:
    """Bytes that were written and not synced, or a new length where there are none."""

    offset: int
    data: bytes | None


@dataclass
class File:
    """The durable content, and what was written since, in order."""

    content: bytearray = field(default_factory=bytearray)
    newer: list[Write] = field(default_factory=list)

    def sync(self) -> None:
        """Make what was written durable."""
        for write in self.newer:
            _apply(self.content, write)
        self.newer.clear()

    def write(self, write: Write, *, durable: bool) -> None:
        """Take a write; a durable one makes itself so, and nothing of what came before."""
        if not durable:
            self.newer.append(write)
            return
        assert write.data is not None
        self.newer = [
            part
            for old in self.newer
            for part in _outside(old, write.offset, write.offset + len(write.data))
        ]
        _apply(self.content, write)

    def after_power_loss(self, rng: random.Random) -> bytes:
        """Return one content that may be found."""
        mode = rng.choice(MODES)
        found = bytearray(self.content)
        cut = rng.randint(0, len(self.newer))
        for number, write in enumerate(self.newer):
            if mode.startswith("torn"):
                _apply_torn(found, write, rng, int(mode.split()[-1]))
            elif _is_there(mode, number < cut, rng):
                _apply(found, write)
        if mode != "everything" and rng.random() < 0.2:
            del found[len(self.content) :]  # the new length was lost
        elif mode != "nothing" and rng.random() < 0.2:
            ends = [write.offset + len(write.data or b"") for write in self.newer]
            found.extend(
                bytes(max([len(found), *ends]) - len(found))
            )  # or it came before the bytes
        return bytes(found)


@dataclass
class Folder:
    """The names in a folder: those that are durable, and those a running program sees."""

    durable: dict[str, Folder | File] = field(default_factory=dict)
    live: dict[str, Folder | File] = field(default_factory=dict)


@dataclass
class Change:
    """Names that change together: (folder, name, what it is of then)."""

    names: list[tuple[Folder, str, Folder | File | None]]


class Disk:
    """The folder `root`, empty at first, and what a log does to it."""

    def __init__(self, root: Path, inode: int) -> None:
        """Begin with an empty folder, known to the log by `inode`."""
        self._root_path = PurePosixPath(root)
        self.root = Folder()
        self._by_inode: dict[int, Folder | File] = {inode: self.root}
        self._changes: list[Change] = []

    def apply(self, entry: Entry, *, returned: bool = True) -> None:
        """Do what `entry` says; a call that has not returned yet has made nothing durable."""
        if entry.kind in (Kind.WRITE, Kind.TRUNCATE):
            data = entry.first if entry.kind is Kind.WRITE else None
            file = self._by_inode[entry.inode]
            assert isinstance(file, File)
            file.write(Write(entry.offset, data), durable=entry.durable and returned)
        elif entry.kind is Kind.SYNC and returned:
            self._sync(self._by_inode[entry.inode])
        elif entry.kind in (Kind.CREATE, Kind.MKDIR):
            node = File() if entry.kind is Kind.CREATE else Folder()
            self._by_inode[entry.inode] = node
            self._change((*self._place(entry.path), node))
        elif entry.kind is Kind.LINK:
            self._change((*self._place(entry.target), self._node(entry.path)))
        elif entry.kind is Kind.RENAME:
            node = self._node(entry.path)
            self._change((*self._place(entry.path), None), (*self._place(entry.target), node))
        elif entry.kind is Kind.EXCHANGE:
            one, other = self._node(entry.path), self._node(entry.target)
            self._change((*self._place(entry.path), other), (*self._place(entry.target), one))
        elif entry.kind is Kind.REMOVE:
            self._change((*self._place(entry.path), None))

    def lose_power(self, rng: random.Random, target: Path) -> None:
        """Write one state that may be found after a power loss to the folder `target`."""
        mode = rng.choice(MODES[:4])
        names: dict[int, dict[str, Folder | File]] = {}
        cut = rng.randint(0, len(self._changes))
        for number, change in enumerate(self._changes):
            if _is_there(mode, number < cut, rng):
                for folder, name, node in change.names:
                    _set(names.setdefault(id(folder), dict(folder.durable)), name, node)
        self._write_out(self.root, names, rng, target)

    def live_files(self) -> dict[str, bytes]:
        """Return the files a running program sees, by path below the root."""
        found: dict[str, bytes] = {}
        waiting: list[tuple[str, Folder]] = [("", self.root)]
        while waiting:
            path, folder = waiting.pop()
            for name, node in folder.live.items():
                if isinstance(node, Folder):
                    waiting.append((f"{path}{name}/", node))
                else:
                    content = bytearray(node.content)
                    for write in node.newer:
                        _apply(content, write)
                    found[path + name] = bytes(content)
        return found

    def _write_out(
        self,
        folder: Folder,
        names: dict[int, dict[str, Folder | File]],
        rng: random.Random,
        target: Path,
    ) -> None:
        target.mkdir(parents=True)
        for name, node in names.get(id(folder), folder.durable).items():
            if isinstance(node, Folder):
                self._write_out(node, names, rng, target / name)
            else:
                (target / name).write_bytes(node.after_power_loss(rng))

    def _sync(self, node: Folder | File) -> None:
        if isinstance(node, File):
            node.sync()
            return
        kept = []
        for change in self._changes:
            if any(folder is node for folder, _, _ in change.names):
                for folder, name, what in change.names:
                    _set(folder.durable, name, what)
            else:
                kept.append(change)
        self._changes = kept

    def _change(self, *names: tuple[Folder, str, Folder | File | None]) -> None:
        for folder, name, node in names:
            _set(folder.live, name, node)
        self._changes.append(Change(list(names)))

    def _place(self, path: str) -> tuple[Folder, str]:
        *folders, name = PurePosixPath(os.path.normpath(path)).relative_to(self._root_path).parts
        folder = self.root
        for part in folders:
            below = folder.live[part]
            assert isinstance(below, Folder)
            folder = below
        return folder, name

    def _node(self, path: str) -> Folder | File:
        folder, name = self._place(path)
        return folder.live[name]


def _is_there(mode: str, first: bool, rng: random.Random) -> bool:
    return mode == "everything" or (
        first if mode == "a first part" else mode == "some" and rng.random() < 0.5
    )


def _set(names: dict[str, Folder | File], name: str, node: Folder | File | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _apply(content: bytearray, write: Write) -> None:
    if write.data is None:
        del content[write.offset :]
        content.extend(bytes(write.offset - len(content)))
        return
    content.extend(bytes(max(0, write.offset - len(content))))
    content[write.offset : write.offset + len(write.data)] = write.data


def _apply_torn(content: bytearray, write: Write, rng: random.Random, sector: int) -> None:
    if write.data is None:
        if rng.random() < 0.5:
            _apply(content, write)
        return
    end = write.offset + len(write.data)
    for start in range(write.offset // sector * sector, end, sector):
        if rng.random() < 0.5:
            a, b = max(start, write.offset), min(start + sector, end)
            _apply(content, Write(a, write.data[a - write.offset : b - write.offset]))


def _outside(write: Write, start: int, end: int) -> list[Write]:
    """Return the parts of `write` that do not lie in `start`..`end`."""
    if write.data is None:
        return [write]
    parts = [
        Write(write.offset, write.data[: max(0, start - write.offset)]),
        Write(max(end, write.offset), write.data[max(0, end - write.offset) :]),
    ]
    return [part for part in parts if part.data]
