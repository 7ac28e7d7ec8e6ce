"""The command `featstore`, also as `python -m featstore`.

Before its modules are imported, and once it is over, nothing is at work that an interrupt would have to end: the
process goes at once, with 130. A KeyboardInterrupt would come out of whatever is being imported, as a traceback.
"""

from __future__ import annotations

import os
import signal


def run() -> None:
    """Run the command with the words of `sys.argv`, and exit."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    from featstore.cli import main

    main()


if __name__ == "__main__":
    run()
