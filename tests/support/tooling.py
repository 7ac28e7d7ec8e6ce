"""The scripts of tools/, which is no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from toys import REPOSITORY

if TYPE_CHECKING:
    from types import ModuleType


def load_tool(name: str) -> ModuleType:
    """Import a script of tools/."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[name] = tool  # where dataclasses look for their module
    spec.loader.exec_module(tool)
    return tool
