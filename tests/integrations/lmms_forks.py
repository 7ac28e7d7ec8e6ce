"""Runs modules as `python -m` does, each in a fork of this process, which has loaded what takes long to load.

A line of JSON on stdin is a job: the words of the command, and files for its output. The answer is its exit code.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

import lmms_eval.__main__
import lmms_eval.evaluator  # noqa: F401
from lmms_eval.tasks import TaskManager

import featstore.cli.ingest
import featstore.models.longva.model
import featstore.models.transformers_video.model  # noqa: F401


def main() -> None:
    """Work until stdin ends."""
    tasks = TaskManager().task_index  # of 3,000 files, in which runs only look things up
    TaskManager.initialize_tasks = lambda *_, **__: tasks
    for line in sys.stdin:
        words, *files = json.loads(line)
        child = os.fork()
        if not child:
            become(words, files)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(words: list[str], files: list[str]) -> None:
    """Run a module; the exit code is that of this process."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
