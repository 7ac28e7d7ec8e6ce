"""`--quiet`, `--verbose` and `--log-file` of the commands that take long."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner
from toys import store_videos, toy_features

from featstore.cli import main
from featstore.cli._streams import keep_log, show_log
from featstore.system.logs import tell


@pytest.fixture(autouse=True)
def as_before():
    yield
    keep_log(None)
    show_log()


@pytest.fixture
def merge(tmp_path):
    """Merge a cache of two videos into an empty one."""
    store_videos(tmp_path / "from", "demo", {"a": toy_features(1), "b": toy_features(2)})
    words = ["merge", str(tmp_path / "from"), "--dataset", "demo", "--min-free", "1MB"]

    def run(*more):
        done = CliRunner().invoke(main, [*words, "--cache-dir", str(tmp_path / "to"), *more])
        return done.exit_code, done.stdout, done.stderr

    return run


def test_quiet_leaves_the_result_and_errors(merge, tmp_path):
    code, out, err = merge("--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("demo: 2 copied")
    code, _, err = merge("-q", "--max-size", "1")
    assert (code, err) == (0, "")  # nothing to copy
    (tmp_path / "from" / "demo" / "data.mdb").write_bytes(b"damaged")
    code, out, err = merge("--quiet")
    assert (code, out) == (1, "")
    assert err.startswith("featstore: ")


def test_a_log_file_has_what_is_not_shown_with_its_time(merge, tmp_path):
    log = tmp_path / "log"
    assert merge("--quiet", "--log-file", str(log))[2] == ""
    line = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO 2/2 videos, .* written\n"
    assert re.search(line, log.read_text())
    merge()
    before = log.read_text()
    merge("--log-file", str(log), "--quiet")
    assert log.read_text().startswith(before)


def test_a_log_file_says_that_there_is_no_room(merge, tmp_path):
    log = tmp_path / "log"
    code, _, err = merge("--log-file", str(log), "--max-size", "1")
    assert code == 1
    assert err.splitlines()[-1].startswith("featstore: ")
    said = err.splitlines()[-1].removeprefix("featstore: ")
    assert f"ERROR {said}\n" in log.read_text()


def test_opposites_and_files_that_cannot_be_written_are_refused(merge, tmp_path):
    assert "pass one of them" in merge("-q", "-v")[2]
    code, _, err = merge("--log-file", str(tmp_path / "no" / "log"))
    assert code == 2
    assert "cannot be written: No such file or directory" in err


def test_a_full_disk_costs_the_log_and_not_the_work(merge):
    code, out, err = merge("--log-file", "/dev/full")
    assert (code, out[:14]) == (0, "demo: 2 copied")
    assert err.count("/dev/full cannot be written to") == 1


@pytest.mark.slow
def test_verbose_names_each_video(sample_clips, tmp_path):
    words = ["ingest", "--encoder", "toy", "--videos", str(sample_clips), "--dataset", "demo"]
    more = ["--cache-dir", str(tmp_path / "c"), "--min-free", "1MB", "--nframe", "6"]
    done = CliRunner().invoke(main, [*words, *more, "--decode-workers", "1", "-v"])
    assert done.exit_code == 0
    assert re.search(r"^stored blink, \d+ bytes$", done.stderr, re.MULTILINE)


def test_what_is_said_without_a_stderr_costs_nothing(monkeypatch):
    """As after a command that ran in a program of others, whose handler stays."""
    show_log()
    monkeypatch.setattr("sys.stderr", None)
    tell("featstore.models", "nobody sees this")


def test_every_command_that_takes_long_has_them():
    quick = {"default", "get", "info", "ls", "shape", "show", "status"}
    having = {
        name
        for name, command in main.commands.items()
        if any("--log-file" in option.opts for option in command.params)
    }
    assert having == {*main.commands} - quick - {"lmms-eval"}, "lmms-eval has its own"
