"""A default value is stated once, in featstore/defaults.py."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import click
import pytest

import featstore
from featstore import defaults
from featstore.cli import main
from featstore.cli._ingest_options import choose_storage
from featstore.models.compare import compare
from featstore.pipeline.options import IngestOptions
from featstore.records.storage import Storage

CLI = sorted((Path(featstore.__file__).parent / "cli").glob("*.py"))


def stated_defaults(path: Path) -> list[ast.expr]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [word.value for call in calls for word in call.keywords if word.arg == "default"]


@pytest.mark.parametrize("path", CLI, ids=lambda path: path.name)
def test_no_option_states_a_default_of_its_own(path):
    for value in stated_defaults(path):
        read = [node.value.id for node in ast.walk(value) if isinstance(node, ast.Attribute)]
        assert "defaults" in read, f"{path.name}:{value.lineno} has {ast.unparse(value)}"


def test_the_check_sees_the_options():
    assert sum(len(stated_defaults(path)) for path in CLI) >= 18


@pytest.mark.parametrize(
    ("command", "function", "least"),
    [("ingest", IngestOptions, 4), ("compare", compare, 4)],
)
def test_the_command_line_and_the_library_agree(command, function, least):
    command = main.commands[command]
    options = command.make_context(command.name, [], resilient_parsing=True).params
    parameters = inspect.signature(function).parameters
    shared = [
        name
        for name in options.keys() & parameters.keys()
        if parameters[name].default not in (inspect.Parameter.empty, None)
    ]
    assert len(shared) >= least
    for name in shared:
        assert options[name] == parameters[name].default, name


def test_a_new_feature_set_is_stored_as_the_defaults_say():
    assert Storage() == Storage(defaults.VALUES, defaults.GRANULARITY, defaults.CODEC)
    options = main.commands["ingest"].make_context("ingest", [], resilient_parsing=True).params
    assert choose_storage(options) is None  # which follows the set, and is Storage() for a new one
    shown = " ".join(main.commands["ingest"].get_help(click.Context(main)).split())
    for value in vars(Storage()).values():
        assert f"[default: {value}]" in shown


def test_each_default_is_used():
    package = Path(featstore.__file__).parent
    files = [path for path in package.rglob("*.py") if path.name != "defaults.py"]
    text = "".join(path.read_text() for path in files)
    for name in vars(defaults):
        if name.isupper():
            assert name in text, name
