"""Plain values to dataclasses and back; the one place that checks a mapping from outside field by field.

Headers, catalog rows, feature sets and messages between processes are dataclasses in the code and maps of plain
values on the outside. `build` accepts a map only if it has exactly the fields of the dataclass, each of its declared
type; what the values mean together is for the dataclass itself to check (`__post_init__`).
"""

from __future__ import annotations

import dataclasses
import math
import types
from datetime import datetime, timezone
from functools import cache
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    # Turns a plain value into a field's; raises ValueError if it is of another type.
    Reader = Callable[[Any], Any]

Built = TypeVar("Built")
_EXACT = (str, bytes, bool, int, types.NoneType)
_LEAVES = frozenset((*_EXACT, float))


def build(kind: type[Built], plain: object) -> Built:
    """Return the `kind` that `plain` describes.

    Args:
        kind: a dataclass whose fields are str, int, float, bool, bytes, None, literals, further dataclasses, or
            tuples, lists, string dicts and unions of these. Dataclasses in a union are told apart by a literal field.
        plain: a dict with exactly its field names; tuples may be lists, a float may be an int.

    Raises:
        ValueError: anything else was found; it names the field and its value. What the dataclass's own
            `__post_init__` raises passes through.
    """
    built: Built = _reader(cast("Hashable", kind))(plain)
    return built


def to_plain(value: Any) -> Any:
    """Return `value` with dataclasses as dicts and tuples as lists, ready for msgpack or JSON."""
    kind = type(value)
    if kind in _LEAVES:
        return value
    if dataclasses.is_dataclass(kind):
        return {name: to_plain(getattr(value, name)) for name in _names(kind)}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    return value


def time_text(seconds: float) -> str | None:
    """Return a time as JSON has it, ISO 8601 in UTC; None if it is outside the calendar.

    >>> time_text(1_700_000_000.25)
    '2023-11-14T22:13:20.250000+00:00'
    """
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds")
    except (OverflowError, ValueError, OSError):
        return None


def all_finite(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a map as JSON has it: None in place of NaN and of infinity, for which it has no words."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in plain.items()
    }


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@cache
def _reader(hint: Hashable) -> Reader:
    """Return the function that checks and converts a plain value of type `hint`."""
    if dataclasses.is_dataclass(hint):
        return _dataclass_reader(hint)
    origin, inner = get_origin(hint), get_args(hint)
    if hint is float:
        return _read_float
    if hint in _EXACT:
        return _exact(hint)
    if origin is Literal:
        return _literal_reader(inner)
    if origin is tuple and inner[-1] is not ...:
        return _tuple_reader(inner)
    if origin in (tuple, list):
        return _sequence_reader(origin, _reader(inner[0]))
    if origin is dict and inner[0] is str:
        return _dict_reader(_reader(inner[1]))
    if origin in (Union, types.UnionType):
        return _union_reader(inner)
    raise TypeError(f"a field of type {hint} cannot be read from plain values")


def _dataclass_reader(kind: Any) -> Reader:
    hints, names = get_type_hints(kind), _names(kind)
    readers = [(name, _reader(hints[name])) for name in names]
    expected = set(names)
    # Most values are of their type already: where all are, only the others are read one by one.
    leaves = [name for name in names if hints[name] in _LEAVES]
    leaf_types = [hints[name] for name in leaves]
    others = [(name, reader) for name, reader in readers if name not in leaves]

    def read(plain: Any) -> Any:
        if type(plain) is not dict:
            raise ValueError(f"{plain!r:.80} is not a map of the fields of {kind.__name__}")
        if plain.keys() != expected:
            odd = sorted(map(repr, plain.keys() ^ expected))
            raise ValueError(
                f"{kind.__name__} has other fields: {', '.join(odd):.200} missing or unknown"
            )
        as_declared = [type(plain[name]) for name in leaves] == leaf_types
        if as_declared and not others:
            return kind(**plain)
        values = dict(plain)
        name = ""
        try:
            for name, reader in others if as_declared else readers:
                values[name] = reader(plain[name])
        except ValueError as exc:
            raise ValueError(f"{name}: {exc}") from None
        return kind(**values)

    return read


def _exact(kind: Any) -> Reader:
    def read(plain: Any) -> Any:
        if type(plain) is not kind:
            raise ValueError(f"{plain!r:.80} is not of type {kind.__name__}")
        return plain

    return read


def _literal_reader(values: tuple[Any, ...]) -> Reader:
    def read(plain: Any) -> Any:
        if plain not in values:
            raise ValueError(f"{plain!r:.80} is not one of {values}")
        return plain

    return read


def _read_float(plain: Any) -> float:
    if type(plain) is float:
        return plain
    if type(plain) is not int or abs(plain) >> 64:
        raise ValueError(f"{plain!r:.80} is not a float")
    return float(plain)


def _sequence_reader(kind: Any, reader: Reader) -> Reader:
    def read(plain: Any) -> Any:
        if type(plain) not in (list, tuple):
            raise ValueError(f"{plain!r:.80} is not a list")
        return kind(reader(item) for item in plain)

    return read


def _tuple_reader(hints: tuple[Any, ...]) -> Reader:
    readers = [_reader(hint) for hint in hints]

    def read(plain: Any) -> Any:
        if type(plain) not in (list, tuple) or len(plain) != len(readers):
            raise ValueError(f"{plain!r:.80} is not a list of {len(readers)}")
        if tuple(map(type, plain)) == hints:
            return tuple(plain)
        return tuple([reader(item) for reader, item in zip(readers, plain, strict=True)])

    return read


def _dict_reader(reader: Reader) -> Reader:
    def read(plain: Any) -> Any:
        if type(plain) is not dict or not all(type(name) is str for name in plain):
            raise ValueError(f"{plain!r:.80} is not a map with names")
        return {name: reader(item) for name, item in plain.items()}

    return read


def _union_reader(hints: tuple[Any, ...]) -> Reader:
    readers = [_reader(hint) for hint in hints]
    leaves = _LEAVES.intersection(hints)

    def read(plain: Any) -> Any:
        if type(plain) in leaves:
            return plain
        problems = []
        for reader in readers:
            try:
                return reader(plain)
            except ValueError as exc:
                problems.append(str(exc))
        raise ValueError("; ".join(problems))

    return read
