"""The command `featstore`, also as `python -m featstore`.

While its modules are imported, and after the command, an interrupt ends the process immediately with exit code 130: no
work needs to be stopped, and a KeyboardInterrupt would be a traceback out of whatever is being imported.
"""

from __future__ import annotations

import atexit
import os
import signal

INTERRUPTED = 130


def run() -> None:
    """Run the command line in `sys.argv`, and exit."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
        # The last exit function to run; after it the default action, which ends even a finished command, is restored.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    from featstore.cli import main

    try:
        main()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # If the interrupt arrived inside exec, as when a dataclass is made, the interpreter considers it unhandled
            # and would end by the signal.
            atexit._run_exitfuncs()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    run()
