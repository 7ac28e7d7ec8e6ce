"""The mutants of a file: the file with one expression or statement changed, by mutmut's operators.

Left out: strings, which are mostly words for people; whatever is raised, for the same reason; annotations, decorators
and type-only imports, which do not run.
"""

from __future__ import annotations

import ast
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import libcst as cst
from libcst.metadata import (
    CodeRange,
    MetadataWrapper,
    ParentNodeProvider,
    PositionProvider,
    WhitespaceInclusivePositionProvider,
)
from mutmut.mutation.mutators import mutation_operators, operator_string

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPERATORS = [(kind, change) for kind, change in mutation_operators if change is not operator_string]


class Mutant(NamedTuple):
    """One change: its file's path, the lines of what is changed, the whole file after it.

    first, last: from 1, both included. at_import: what is changed runs at import, not in a function. function: the one
    it is in, behind its class; empty if in none.
    """

    path: str
    first: int
    last: int
    at_import: bool
    diff: str
    code: str
    function: str


def mutants_of(root: Path, path: str) -> Iterator[Mutant]:
    """Yield every mutant of the file at `path`, relative to `root`, that compiles."""
    code = (root / path).read_text()
    wrapper = MetadataWrapper(cst.parse_module(code))
    changes = _Changes()
    wrapper.visit(changes)
    starts = [0, *accumulate(len(line) for line in code.splitlines(keepends=True))]
    seen, lines = {code}, code.splitlines()
    for changed, span, first, last, at_import, function in changes.found:
        begin = starts[span.start.line - 1] + span.start.column
        end = starts[span.end.line - 1] + span.end.column
        mutated = code[:begin] + wrapper.module.code_for_node(changed) + code[end:]
        if mutated in seen:
            continue
        seen.add(mutated)
        try:
            ast.parse(mutated, path)
        except SyntaxError:
            continue
        before, changed_lines = lines[first - 1 : last], mutated.splitlines()
        after = changed_lines[first - 1 : len(changed_lines) - (len(lines) - last)]
        diff = "\n".join([*(f"-{line}" for line in before), *(f"+{line}" for line in after)])
        yield Mutant(path, first, last, at_import, diff, mutated, function)


class _Changes(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (
        PositionProvider,
        WhitespaceInclusivePositionProvider,
        ParentNodeProvider,
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, CodeRange, int, int, bool, str]] = []
        self._bodies = 0  # of functions around the node
        self._names: list[str] = []  # of the classes and functions around it

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, (cst.Annotation, cst.Decorator, cst.Raise, cst.Import, cst.ImportFrom)):
            return False
        if isinstance(node, cst.If) and getattr(node.test, "value", None) == "TYPE_CHECKING":
            return False
        if isinstance(node, (cst.ClassDef, cst.FunctionDef)):
            self._names.append(node.name.value)
        place = self.get_metadata(PositionProvider, node, None)
        span = self.get_metadata(WhitespaceInclusivePositionProvider, node, None)
        if place is not None and span is not None:
            for kind, change in OPERATORS:
                if isinstance(node, kind):
                    for changed in change(node):
                        lines = place.start.line, place.end.line
                        names = ".".join(self._names)
                        self.found.append((changed, span, *lines, not self._bodies, names))
        self._bodies += self._is_body(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        super().on_leave(original_node)
        if isinstance(original_node, (cst.ClassDef, cst.FunctionDef)):
            self._names.pop()
        self._bodies -= self._is_body(original_node)

    def _is_body(self, node: cst.CSTNode) -> bool:
        parent = self.get_metadata(ParentNodeProvider, node, None)
        return isinstance(node, cst.BaseSuite) and isinstance(parent, cst.FunctionDef)
