"""The command line: each command parses, calls one function of the library and prints.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 an error, 2 wrong usage, 3 some videos
failed, 4 a plan does not fit, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from featstore import __version__

# The submodules, not the commands in them: both have the same names.
from featstore.cli import (
    check,
    compact,
    compare,
    cp,
    default,
    export,
    get,
    import_files,
    info,
    ingest,
    lmms_eval,
    ls,
    merge,
    mv,
    plan,
    pull,
    push,
    report,
    rm,
    seal,
    shape,
    show,
    status,
    vlmeval,
)
from featstore.cli._interrupts import INTERRUPTED, raise_interrupts
from featstore.cli._streams import keep_log, say, show_log, standard_streams
from featstore.errors import FeatstoreError, plain


class _Group(click.Group):
    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program, even if its streams are closed or cannot be written to."""
        with standard_streams():
            return super().main(*args, **extra)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first sentence of each command's help, whole."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, self.commands[name].get_short_help_str(limit=200))
                    for name in self.list_commands(ctx)
                ]
            )

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a FeatstoreError is printed as one message, with exit code 1."""
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        keep_log(None)
        show_log()
        try:
            with raise_interrupts():
                return super().invoke(ctx)
        except FeatstoreError as exc:
            say(f"featstore: {plain(str(exc))}")
            ctx.exit(1)
        except ModuleNotFoundError as exc:
            if not exc.name or exc.name.startswith("featstore"):
                raise
            say(
                f"featstore: this needs the package of {exc.name}, which is not installed: install featstore again, "
                "without --no-deps"
            )
            ctx.exit(1)
        except KeyboardInterrupt:
            say("featstore: interrupted")
            ctx.exit(INTERRUPTED)


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="featstore")
def main() -> None:
    """Compute the vision features of videos once, store them, serve them at memory speed."""


for command in (
    ingest.ingest,
    plan.plan,
    get.get,
    ls.ls,
    info.info,
    check.check,
    compare.compare,
    default.default,
    rm.rm,
    compact.compact,
    seal.seal,
    merge.merge,
    push.push,
    pull.pull,
    cp.cp,
    mv.mv,
    export.export,
    import_files.import_files,
    shape.shape,
    show.show,
    status.status,
    report.report,
    lmms_eval.lmms_eval,
    vlmeval.vlmeval,
):
    main.add_command(command)
