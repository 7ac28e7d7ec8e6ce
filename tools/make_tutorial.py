"""Runs the cells of docs/tutorial.ipynb and writes what they print and show into it."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def code_cells(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cells of a notebook that are run."""
    return [cell for cell in page["cells"] if cell["cell_type"] == "code"]


def run_cells(page: dict[str, Any]) -> None:
    """Run the cells of a notebook in the working directory and put their outputs in place of those that they have."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(page), 1):
        cell["execution_count"], cell["outputs"] = number, []
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)  # nosec
            value = last and compile(ast.Expression(last.value), f"cell {number}", "eval")
            value = value and eval(value, names)  # nosec
        # As a notebook shows it: what follows \r takes the place of what is before it in its line.
        text = "\n".join(line.rpartition("\r")[2] for line in printed.getvalue().split("\n"))
        if text:
            shown = text.splitlines(keepends=True)
            cell["outputs"].append({"name": "stdout", "output_type": "stream", "text": shown})
        if value is not None:
            data = {"text/plain": repr(value).splitlines(keepends=True)}
            if hasattr(value, "_repr_jpeg_"):
                data = {"image/jpeg": base64.b64encode(value._repr_jpeg_()).decode()}
            kind = {"execution_count": number, "metadata": {}, "output_type": "execute_result"}
            cell["outputs"].append({"data": data, **kind})


if __name__ == "__main__":
    os.chdir(PAGE.parent)
    found = json.loads(PAGE.read_text(encoding="utf-8"))
    run_cells(found)
    PAGE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
