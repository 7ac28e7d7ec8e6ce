"""How what differs between two feature sets is shown."""

import pytest

from featstore.store.selection import _BEFORE, _SHOWN, _around_difference

LONG = "x" * (_SHOWN + 2 * _BEFORE)


@pytest.mark.parametrize(
    ("here", "there", "shown"),
    [
        ("a", "b", ("a", "b")),
        (LONG, LONG + "y", ("..." + "x" * _BEFORE, "..." + "x" * _BEFORE + "y")),
        (LONG + "y", LONG, ("..." + "x" * _BEFORE + "y", "..." + "x" * _BEFORE)),
        ("y" + LONG, "z", (("y" + LONG)[:_SHOWN], "z")),
        ("", LONG, ("", LONG[:_SHOWN])),
    ],
)
def test_of_long_values_what_differs_is_shown_also_if_one_begins_with_the_other(here, there, shown):
    assert _around_difference(here, there) == shown
