"""The command `featstore`, also as `python -m featstore`.

Before its modules are imported, and once it is over, nothing is at work that an interrupt would have to end: the
process goes at once, with 130. A KeyboardInterrupt would come out of whatever is being imported, as a traceback.
"""

from __future__ import annotations

import atexit
import os
import signal

INTERRUPTED = 130


def run() -> None:
    """Run the command with the words of `sys.argv`, and exit."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    from featstore.cli import main

    try:
        main()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # Where it came in code made of text, as a dataclass is, the interpreter takes it for unhandled, and would
            # end by the signal.
            atexit._run_exitfuncs()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    run()
