"""What is loaded when: looked up in sys.modules and in the source, never on a clock."""

from __future__ import annotations

import ast
import importlib
from functools import cache
from typing import TYPE_CHECKING

import pytest
from toys import REPOSITORY, run_python

import featstore

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = REPOSITORY / "featstore"
HEAVY = {"torch", "transformers", "av", "decord", "numpy", "ray", "matplotlib"}

# What may be imported where a file is loaded; import-linter (setup.cfg) holds all else.
AT_THE_TOP = {
    "torch": (
        "torch/",
        "encoders/llava_onevision/modeling.py",
        "encoders/longva/",
        "encoders/transformers_vision/encoder.py",
        "encoders/qwen_vl/modeling.py",
        "models/",
        "pipeline/encode/cuda_",
        "pipeline/on_demand.py",
    ),
    "transformers": (
        "encoders/llava_onevision/modeling.py",
        "encoders/longva/",
        "encoders/qwen_vl/modeling.py",
        "models/generating/",
        "models/longva/",
        "models/transformers_video/",
    ),
    "av": ("decoding/",),
    "decord": (),
    "ray": (),
    "matplotlib": (),
}


@cache
def imports_at_the_top(path: Path) -> set[str]:
    """Return the libraries that loading a file imports."""
    libraries = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            libraries |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import: name the whole path"
            libraries.add((node.module or "").split(".")[0])
    return libraries


@pytest.mark.parametrize("library", AT_THE_TOP)
def test_a_heavy_library_is_loaded_only_by_files_it_is_the_subject_of(library):
    loading = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        if library in imports_at_the_top(path)
    ]
    assert [file for file in loading if not file.startswith(AT_THE_TOP[library])] == []


def loaded_by(program: str) -> set[str]:
    done = run_python(f"{program}\nimport sys; print('loaded:', *sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_importing_featstore_loads_nothing_heavy():
    loaded = loaded_by("import featstore; dir(featstore); featstore.__version__")
    assert "featstore" in loaded
    assert not loaded & (HEAVY | {"lmdb", "msgpack", "PIL", "click"})


FOLDERS = sorted(
    ".".join(path.parent.relative_to(REPOSITORY).parts)
    for path in PACKAGE.rglob("__init__.py")
    if "\n__all__" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_lists_what_it_exports_and_nothing_else(name):
    """For tab completion; what is listed is there."""
    folder = importlib.import_module(name)
    listed = {name for name in dir(folder) if not name.startswith("_")}
    folders = {"encoders", "models", "torch"} if name == "featstore" else set()
    assert listed == {name for name in folder.__all__ if name[0] != "_"} | folders
    if name != "featstore.integrations.vlmevalkit":  # which needs VLMEvalKit
        assert [getattr(folder, name) for name in listed]


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
