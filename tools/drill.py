"""Run a drill: python tools/drill.py NAME [OPTIONS]. tools/drills/README.md says what each one proves."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

DRILLS = sorted(path.parent.name for path in Path(__file__).parent.glob("drills/*/drill.py"))


def main() -> None:
    """Hand the options to the drill that is named."""
    if len(sys.argv) < 2 or sys.argv[1] not in DRILLS:
        sys.exit(f"usage: python tools/drill.py {{{','.join(DRILLS)}}} [OPTIONS]")
    name = sys.argv.pop(1)
    sys.argv[0] = f"tools/drill.py {name}"
    import_module(f"drills.{name}.drill").main()


if __name__ == "__main__":
    main()
