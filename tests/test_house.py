"""Whether the code keeps to docs/architecture.md: no name is taken twice, folders and files can be surveyed."""

from __future__ import annotations

import ast
from collections import defaultdict

from toys import REPOSITORY

PACKAGE = REPOSITORY / "featstore"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 300
MAX_FILES = 12
# Families have the same file names in each folder, and a command is named like what it does.
FAMILIES = ("cli", "encoders", "models", "integrations")


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def is_family(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] == "cli" or (parts[0] in FAMILIES and len(parts) > 2)


def test_no_two_files_have_one_name():
    homes = defaultdict(list)
    for path in FILES:
        if not is_family(path) and path.stem != "base" and not path.stem.startswith("__"):
            homes[path.name].append(name_of(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_no_two_public_classes_have_one_name():
    homes = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name_of(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_no_folder_holds_more_than_a_dozen_files():
    full = {
        name_of(folder): len(files)
        for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]
        if len(files := [path for path in folder.glob("*.py") if path.stem[:2] != "__"]) > MAX_FILES
        and folder.name != "cli"
    }
    assert full == {}


def test_every_file_can_be_surveyed():
    lines = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_the_c_library_is_bound_in_one_file():
    binding = [name_of(path) for path in FILES if "CDLL(" in path.read_text(encoding="utf-8")]
    assert binding == ["system/libc.py"]


def test_every_folder_says_what_is_in_it():
    for path in FILES:
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
