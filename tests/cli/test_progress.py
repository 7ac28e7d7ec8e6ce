"""Progress as it is seen: on the screen of a terminal, and in a log."""

from __future__ import annotations

import io

import pytest
from terminals import Terminal

from featstore.cli import _progress
from featstore.cli._progress import show_bytes, show_count, show_progress
from featstore.pipeline.summary import Progress

AT_WORK = """
import sys
from featstore.cli._progress import show_progress
from featstore.cli._streams import say
from featstore.pipeline.summary import Progress

with show_progress() as show:
    for line in sys.stdin:
        exec(line)
"""
PLAN = "gym: 31 videos to ingest as int8/channel_token, 0 stored already; 137.6 KiB needed, 58.08 GiB free"
ID = "compared 映画/長い名前の動画.mp4"


def bars(lines: list[str]) -> list[str]:
    return [line for line in lines if "━" in line]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_there_is_one_bar_below_all_lines_and_none_at_the_end(columns):
    with Terminal(columns, "-c", AT_WORK) as terminal:
        terminal.until(lambda lines: lines[-1:] == [f"{14 * '━'} waiting for the first video"])
        terminal.send(f"say({PLAN!r})")
        terminal.send("show(Progress(31, 0, done=1, seconds=145.0))")
        shown = terminal.until(lambda lines: "1/31 videos" in "".join(lines))
        assert "".join(shown[:-2]) == PLAN or " ".join(shown[:-2]) == PLAN
        assert shown[-2] == f"{14 * '━'} 1/31 videos"  # no time left: it took that long to start
        terminal.send("show(Progress(31, 0, done=12, failed=1, record_bytes=2**20, seconds=151.0))")
        shown = terminal.until(lambda lines: "left" in "".join(lines))
        assert shown[-2:] == [
            f"━━━━━╸{8 * '━'} 13/31 videos, 1 failed, 0:09 left",
            f"{14 * ' '} 2.00 videos/s, 1.0 MiB written",
        ]
        terminal.send(f"say({ID!r})")
        shown = terminal.until(lambda lines: ID in lines)
        assert shown.index(ID) == len(shown) - 3
        assert len(bars(shown)) == 1
        shown = terminal.end()
        assert (shown[-1], bars(shown)) == (ID, [])
        assert not terminal.screen.cursor.hidden


def test_a_terminal_that_is_made_narrower_has_no_line_to_break():
    with Terminal(200, "-c", AT_WORK) as terminal:
        terminal.send("show(Progress(99999, 0, done=1, seconds=1.0))")
        terminal.until(lambda lines: "1/99999 videos" in "".join(lines))
        terminal.send(
            "show(Progress(99999, 0, done=100, failed=99, record_bytes=1e13, seconds=999.0))"
        )
        shown = terminal.until(lambda lines: "left" in "".join(lines))
        assert max(map(len, shown)) <= 60
        terminal.resize(60)
        terminal.send(
            "show(Progress(99999, 0, done=300, failed=99, record_bytes=1e13, seconds=1999.0))"
        )
        shown = terminal.until(lambda lines: "399/99999" in "".join(lines))
        assert shown[-2].endswith(" left")
        assert len(bars(shown)) == 1
        assert terminal.end() == []


def test_a_log_has_lines_now_and_then_and_the_last(monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 12.0])
    monkeypatch.setattr(_progress.time, "monotonic", lambda: 100 + next(clock))
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with show_progress() as show:
        for done, seconds in ((1, 20.0), (2, 21.0), (5, 30.0), (10, 40.0), (10, 41.0)):
            show(Progress(10, 0, done=done, seconds=seconds))
        show(Progress(0, 10))
    assert log.getvalue().splitlines() == [
        "1/10 videos, 0 B written",
        "5/10 videos, 0:13 left, 0.40 videos/s, 0 B written",
        "10/10 videos, 0.45 videos/s, 0 B written",
    ]


def test_a_count_that_is_soon_done_leaves_no_line_in_a_log(capsys):
    with show_count(2, "reading", "read") as count:
        count(5)
        count(5)
    assert capsys.readouterr().err == ""


def test_bytes_have_a_pace_and_a_time_left(monkeypatch, capsys):
    clock = iter([0.0, 0.0, 1.0, 1.0, 12.0, 12.0, 13.0, 13.0])
    monkeypatch.setattr(_progress.time, "monotonic", lambda: 100 + next(clock))
    with show_bytes("compacting demo") as show:
        for done in (1, 12, 20):
            show(done << 20, 20 << 20)
    assert capsys.readouterr().err == ("12.0 MiB of 20.0 MiB written, 0:08 left, 1.0 MiB/s\n")


def test_a_program_that_ends_at_once_leaves_the_line_and_the_cursor():
    with Terminal(80, "-c", AT_WORK) as terminal:
        terminal.until(lambda lines: "waiting" in "".join(lines))
        terminal.send("import os; from featstore.cli._progress import show_cursor")
        terminal.send("show_cursor(); os.write(2, b'$ '); os._exit(130)")
        assert terminal.end()[-1] == "$"
        assert not terminal.screen.cursor.hidden


def test_in_a_notebook_there_are_lines_in_place_of_a_bar(monkeypatch):
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    with Terminal(80, "-c", AT_WORK) as terminal:
        terminal.send("show(Progress(3, 0, done=3, seconds=1.0))")
        assert terminal.end() == ["3/3 videos, 0 B written"]
