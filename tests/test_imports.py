"""What is loaded when, and who may import whom; looked up in sys.modules and in the source, never on a clock."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from toys import REPOSITORY, run_python

import featstore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGE = REPOSITORY / "featstore"
HEAVY = {"torch", "transformers", "av", "decord", "numpy", "ray", "matplotlib"}

# A room imports only from floors below its own, or from itself.
FLOORS = {
    "errors": 1,
    "durable": 2,
    "sampling": 2,
    "quant": 2,
    "system": 2,
    "codecs": 2,
    "preprocess": 2,
    "forks": 1,
    "children": 2,
    "readin": 2,
    "spec": 3,
    "encoders": 4,
    "record": 4,
    "decoding": 5,
    "export": 5,
    "store": 5,
    "torch": 5,
    "quantizing": 6,
    "longva": 7,
    "pipeline": 7,
    "report": 7,
    "integrations": 8,
    "cli": 9,
}
# Rooms whose subject a library is, and those that may import it inside a function.
AT_THE_TOP = {
    "lmdb": {"store"},
    "torch": {"torch", "longva"},
    "transformers": {"longva"},
    "av": {"decoding"},
    "decord": set(),
    "ray": set(),
    "matplotlib": set(),
}
IN_FUNCTIONS = {
    "torch": {"pipeline", "quantizing", "integrations"},
    "decord": {"decoding", "integrations"},
    "ray": {"pipeline"},
    "matplotlib": {"report"},
}
# These reach the store by the public face, as a user would.
BY_THE_FACE = {"cli/__init__.py"}


@dataclass(frozen=True)
class Import:
    """One import of one file: of what, and whether it happens when the file is loaded."""

    file: str
    room: str
    name: str
    at_the_top: bool

    @property
    def imported_room(self) -> str:
        parts = self.name.split(".")
        return parts[1] if parts[0] == "featstore" and len(parts) > 1 else ""


def imports_of(path: Path) -> Iterator[Import]:
    file = path.relative_to(PACKAGE).as_posix()
    room = file.split("/")[0].removesuffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loaded = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import: name the whole path"
            module = node.module or ""
            bare = module == "featstore"
            names = [f"{module}.{alias.name}" for alias in node.names] if bare else [module]
        else:
            continue
        for name in names:
            yield Import(file, room, name, id(node) in loaded)


ALL = [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path)]
INNER = [found for found in ALL if found.room not in ("__init__", "__main__")]


def test_every_room_has_a_floor():
    rooms = {found.room for found in INNER}
    assert rooms <= set(FLOORS), "give the new room a floor, in style and here"


def test_arrows_run_down():
    wrong = [
        f"{found.file} imports {found.name}"
        for found in INNER
        if found.imported_room in FLOORS
        and found.imported_room != found.room
        and FLOORS[found.imported_room] >= FLOORS[found.room]
    ]
    assert wrong == []


def test_only_the_top_uses_the_public_face():
    face = {
        found.file
        for found in INNER
        if found.name.split(".")[0] == "featstore" and found.imported_room not in FLOORS
    }
    assert face <= BY_THE_FACE


def test_a_library_is_named_only_where_it_is_the_subject():
    wrong = []
    for found in ALL:
        library = found.name.split(".")[0]
        if library not in AT_THE_TOP:
            continue
        allowed = AT_THE_TOP[library]
        if not found.at_the_top:
            allowed = allowed | IN_FUNCTIONS.get(library, set())
        if found.room not in allowed:
            wrong.append(f"{found.file} imports {found.name}")
    assert wrong == []


def test_the_store_knows_neither_torch_nor_videos_nor_encoders():
    rooms = {found.imported_room for found in ALL if found.room == "store"} - {""}
    assert rooms <= {"codecs", "durable", "errors", "quant", "readin", "record", "spec", "store"}


def loaded_by(program: str) -> set[str]:
    done = run_python(f"{program}\nimport sys; print('loaded:', *sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_importing_featstore_loads_nothing_heavy():
    loaded = loaded_by("import featstore; dir(featstore); featstore.__version__")
    assert "featstore" in loaded
    assert not loaded & (HEAVY | {"lmdb", "msgpack", "PIL", "click"})


@pytest.mark.skipif(not (PACKAGE / "cli").exists(), reason="the command line is not there yet")
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["ingest", "--help"]])
def test_asking_the_command_line_for_help_loads_nothing_heavy(words):
    loaded = loaded_by(
        f"""
import runpy, sys
sys.argv = ["featstore", *{words}]
try:
    runpy.run_module("featstore", run_name="__main__", alter_sys=True)
except SystemExit as exc:
    assert not exc.code, exc.code
"""
    )
    assert "featstore.cli" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", featstore.__all__)
def test_a_public_name_resolves(name):
    value = getattr(featstore, name)
    assert value is getattr(featstore, name)
    assert name == "open" or value.__name__ == name
    assert value.__doc__


def test_the_public_names_are_those_the_type_checker_sees():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    [checked] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {}
    for node in checked.body:
        assert isinstance(node, ast.ImportFrom)
        seen |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    assert sorted(seen) == sorted(featstore.__all__) == list(featstore.__all__)
    for name, (module, original) in seen.items():
        assert getattr(importlib.import_module(module), original) is getattr(featstore, name)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'ignest'"):
        featstore.ignest  # noqa: B018


def test_no_public_name_is_overwritten_by_a_module_of_that_name():
    """Importing `featstore.ingest` would put the module where the function was."""
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not modules & set(featstore.__all__)
