"""The drills of tools/, in short: run as a user would, judged by their exit code and their figures."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

from toys import REPOSITORY, python_env


def run_drill(name: str, *options: object, timeout: float = 250) -> dict[str, Any]:
    """Run `tools/drill.py <name>` with `options` and a fresh seed, which is printed, and return its figures."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    done = subprocess.run(
        [
            sys.executable,
            REPOSITORY / "tools" / "drill.py",
            name,
            "--json",
            *map(str, [*options, "--seed", seed]),
        ],
        env=python_env(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.stdout, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert not figures["problems"], "\n".join(map(str, figures["problems"]))
    assert done.returncode == 0
    return figures
