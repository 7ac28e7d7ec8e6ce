"""How the mutation drill knows a mutant again of which it is written down why no test kills it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from drills.mutation.equivalents import FILE, key_of, read_equivalents, stale
from toys import REPOSITORY


def change(diff: str) -> str:
    path, function, found = key_of(SimpleNamespace(path="a.py", function="f", diff=diff))
    assert (path, function) == ("a.py", "f")
    return found


@pytest.mark.parametrize(
    ("diff", "found"),
    [
        ("-    if a <= b:\n+    if a < b:", "if a [<= -> <] b:"),
        ("-x = 60\n+x = 61", "x = [60 -> 61]"),
        ("-f(a, b)\n+f(a, )", "f(a, [b -> ])"),
        ("-f(a,\n-  b,\n-)\n+f(a,\n+  None,\n+)", "f(a, [b -> None], )"),
        (f"-{'x ' * 99}= 1\n+{'x ' * 99}= 2", f"{'x ' * 19}= [1 -> 2]"),
        (f"-g(1{', y' * 99})\n+g(2{', y' * 99})", f"g([1 -> 2]{', y' * 13},"),
    ],
)
def test_a_change_is_named_by_its_words_wherever_it_moves(diff, found):
    assert change(diff) == found


def test_each_reason_is_for_a_file_that_is_there_and_a_change_that_is_not_is_told():
    known = read_equivalents()
    assert len(known) == len(FILE.read_text().splitlines())
    assert all((REPOSITORY / path).is_file() for path, _, _ in known)
    assert all(known.values())
    path, *_ = next(iter(known))
    mutant = SimpleNamespace(path=path, function="f", diff="-a\n+b")
    assert len(stale([mutant])) == sum(there == path for there, *_ in known)
    assert stale([SimpleNamespace(path="a.py", function="f", diff="-a\n+b")]) == []
