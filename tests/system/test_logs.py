"""What the library says: as records of loggers below `featstore`; who shows them, and in which words."""

import logging

from toys import run_python

from featstore.system.logs import LineHandler

SAY = """
from featstore.models.notices import say
from featstore.models.statistics import CacheStatistics, report_at_exit
from featstore.store.engine.waiting import report_waiting
report_at_exit(CacheStatistics(hits=3))
say("not\\x1bstored")
report_waiting("waiting for a process")
"""


def test_without_any_set_up_warnings_are_seen_and_nothing_else():
    done = run_python(SAY)
    assert (done.stdout, done.stderr) == ("", "not\\x1bstored\nwaiting for a process\n")


def test_a_program_may_keep_all_of_it_silent():
    silent = "import logging; logging.getLogger('featstore').addHandler(logging.NullHandler())"
    done = run_python(f"{silent}\n{SAY}")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_may_show_it_as_it_likes():
    form = "import logging; logging.basicConfig(level='INFO', format='%(levelname)s %(name)s')"
    assert run_python(f"{form}\n{SAY}").stderr.splitlines() == [
        "WARNING featstore.models.notices",
        "WARNING featstore.store.engine.waiting",
        "INFO featstore.models.statistics",
    ]


def test_evaluation_programs_show_warnings_and_the_report():
    shown = f"from featstore.system.logs import show_on_stderr; show_on_stderr()\n{SAY}"
    said = run_python(shown).stderr.splitlines()
    assert said[:3] == [
        "featstore: not\\x1bstored",
        "featstore: waiting for a process",
        "Vision Cache Statistics:",
    ]


def test_a_warning_names_who_warns():
    lines = []
    handler = LineHandler(lines.append)
    for level in (logging.WARNING, logging.INFO):
        handler.handle(logging.LogRecord("featstore.x", level, "", 0, "%s", ("a",), None))
    assert lines == ["featstore: a", "a"]
