"""Find VLMEvalKit: the installed package, or a clone."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.errors import MissingExtra

if TYPE_CHECKING:
    from types import ModuleType

ROOT_VARIABLE = "VLMEVALKIT_ROOT"
_REMEDY = f"clone VLMEvalKit, install it (pip install -e VLMEvalKit), or name the clone in the variable {ROOT_VARIABLE}"


def import_vlmevalkit(module: str) -> ModuleType:
    """Return the module of VLMEvalKit with this name; raise MissingExtra if VLMEvalKit is not available."""
    _make_importable()
    try:
        return import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name and exc.name.partition(".")[0] == "vlmeval":
            raise MissingExtra(f"the module {exc.name} cannot be found; {_REMEDY}") from exc
        raise MissingExtra(
            f"VLMEvalKit cannot be loaded, it needs the module {exc.name}: install its requirements "
            "(pip install -r requirements.txt in its folder)"
        ) from exc


def find_run_py(run_py: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of VLMEvalKit's run.py, without loading VLMEvalKit.

    Args:
        run_py: Path of run.py. By default it is looked for in the clone that the variable VLMEVALKIT_ROOT names, or
            else beside the installed package.

    Raises:
        MissingExtra: If there is none.
    """
    if run_py is not None:
        places = [Path(run_py)]
    elif root := os.environ.get(ROOT_VARIABLE):
        places = [Path(root) / "run.py"]
    else:
        spec = find_spec("vlmeval")
        places = [Path(place).parent / "run.py" for place in _folders(spec)] + [Path("run.py")]
    for place in places:
        if place.is_file():
            return place.absolute()
    looked = ", ".join(map(str, places))
    raise MissingExtra(
        f"there is no run.py of VLMEvalKit at {looked}; name it with --run-py, or {_REMEDY}"
    )


def _folders(spec: object) -> list[str]:
    return list(getattr(spec, "submodule_search_locations", None) or [])


def _make_importable() -> None:
    root = os.environ.get(ROOT_VARIABLE)
    if "vlmeval" not in sys.modules and root and root not in sys.path:
        sys.path.insert(0, root)
