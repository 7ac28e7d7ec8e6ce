"""What the drills share: features anyone can make again, journals, processes to kill, figures to print."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's featstore, whatever is installed
