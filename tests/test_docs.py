"""What the docs show is true: examples run; commands, options, files and modules exist."""

import doctest
import importlib
import re
import shlex

import click
import pytest
from toys import REPOSITORY, run_python, store_videos, toy_features

from featstore.cli import main

MODULES = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for path in (REPOSITORY / "featstore").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def shell_lines(text: str) -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("featstore ")]


def test_there_are_examples():
    assert "featstore.sampling" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name, sample_clips, tmp_path, monkeypatch):
    """Where there are `clips`, and a `vision_cache` with one video."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").symlink_to(sample_clips)
    store_videos("vision_cache", "demo", {"water": toy_features(1)})
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_the_page_exists_with_its_options(page):
    for line in shell_lines(page.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)[1:]
        command = main.commands[words[0]]
        known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        ours = words[: words.index("--")] if "--" in words else words
        for word in ours[1:]:
            if word.startswith("--"):
                assert word in known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_tree_in_the_readme_is_that_of_the_package():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^  ([a-z_]+(?:/|\.py)) ", text, re.MULTILINE)
    package = REPOSITORY / "featstore"
    folders = [path.parent for path in package.glob("*/__init__.py")]
    there = folders + [path for path in package.glob("*.py") if path.name[:2] != "__"]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in there]
    assert sorted(listed) == sorted(name for name in names if name != "py.typed")


def test_every_module_named_on_a_page_exists():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(featstore/[\w/]+\.py)`", text):
            assert (REPOSITORY / name).is_file(), name


@pytest.mark.slow
def test_every_name_of_ours_in_the_readme_is_reached_from_featstore():
    """With `import featstore` alone, as its examples have it."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    names = set(re.findall(r"\bfeatstore(?:\.[A-Za-z_]+)+(?=[(`])", text))
    assert {"featstore.encoders.get_encoder", "featstore.ingest"} <= names
    done = run_python("import featstore\n" + "\n".join(sorted(names)))
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_says_what_it_does():
    for command in main.commands.values():
        assert command.help
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, (command.name, param.name)
