"""Plain values to dataclasses: exactly the declared fields and types, or an error that names the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.fields import build, to_plain


@dataclass(frozen=True)
class Part:
    size: int
    name: str = ""


@dataclass(frozen=True)
class Whole:
    count: int
    ratio: float
    blob: bytes
    flag: bool
    shape: tuple[int, int]
    names: list[str]
    parts: tuple[Part, ...]
    options: dict[str, int | str | None]
    note: str | None = None


WHOLE = Whole(1, 0.5, b"x", True, (2, 3), ["a"], (Part(1, "p"), Part(2)), {"a": 1, "b": None}, "n")

parts = st.builds(
    Part, st.integers(-(1 << 63), (1 << 64) - 1), st.text(st.characters(codec="utf-8"))
)
texts = st.text(st.characters(codec="utf-8"))
wholes = st.builds(
    Whole,
    st.integers(0, 1 << 40),
    st.floats(allow_nan=False),
    st.binary(),
    st.booleans(),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.lists(texts),
    st.lists(parts).map(tuple),
    st.dictionaries(texts, st.one_of(st.integers(0, 9), texts, st.none())),
    st.none() | texts,
)


@given(wholes)
def test_what_went_out_comes_back_also_through_msgpack(whole):
    assert build(Whole, to_plain(whole)) == whole
    assert build(Whole, msgpack.unpackb(msgpack.packb(to_plain(whole)))) == whole


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": "1"}, "count: '1' is not of type int"),
        ({"count": True}, "count: True is not of type int"),
        ({"ratio": "0.5"}, "ratio: '0.5' is not a float"),
        ({"ratio": 1 << 2000}, "ratio: .* is not a float"),
        ({"ratio": False}, "ratio: False is not a float"),
        ({"flag": 1}, "flag: 1 is not of type bool"),
        ({"blob": "x"}, "blob: 'x' is not of type bytes"),
        ({"shape": [2]}, "shape: .* is not a list of 2"),
        ({"shape": {"0": 2, "1": 3}}, "shape: .* is not a list of 2"),
        ({"names": "a"}, "names: 'a' is not a list"),
        ({"parts": [{"size": 1}]}, "parts: Part has other fields: 'name' missing"),
        ({"parts": [{"size": 1, "name": 2}]}, "parts: name: 2 is not of type str"),
        ({"options": {"a": 1.5}}, "options: 1.5 is not"),
        ({"note": 3}, "note: 3 is not"),
        ({"more": 1}, "other fields: 'more' missing or unknown"),
    ],
)
def test_any_other_value_is_refused_by_the_name_of_its_field(change, says):
    with pytest.raises(ValueError, match=says):
        build(Whole, {**to_plain(WHOLE), **change})


@pytest.mark.parametrize("plain", [None, [], "x", 3, {1: 2}])
def test_what_is_no_map_of_the_fields_is_refused(plain):
    with pytest.raises(ValueError, match="Part"):
        build(Part, plain)


def test_an_int_is_a_float_where_one_is_declared():
    built = build(Whole, {**to_plain(WHOLE), "ratio": 2})
    assert type(built.ratio) is float


@dataclass(frozen=True)
class Round:
    radius: float
    kind: Literal["round"] = "round"


@dataclass(frozen=True)
class Long:
    size: tuple[int, int] | None
    kind: Literal["long"] = "long"


@dataclass(frozen=True)
class Drawn:
    shape: Round | Long
    parts: dict[str, Part]
    corner: tuple[int, str, float]


DRAWN = Drawn(Long((1, 2)), {"a": Part(3)}, (1, "x", 0.5))


@pytest.mark.parametrize("shape", [Round(1.5), Long((1, 2)), Long(None)], ids=str)
def test_dataclasses_in_a_union_are_told_apart_by_a_literal(shape):
    drawn = Drawn(shape, {"a": Part(3), "b": Part(4)}, (1, "x", 0.5))
    assert build(Drawn, to_plain(drawn)) == drawn
    assert build(Drawn, msgpack.unpackb(msgpack.packb(to_plain(drawn)))) == drawn
    assert build(Round | Long, to_plain(shape)) == shape


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": {"kind": "square"}}, "shape: .*Round has other fields"),
        (
            {"shape": {"radius": 1.0, "kind": "long"}},
            r"shape: kind: 'long' is not one of \('round',\)",
        ),
        ({"shape": {"size": [1], "kind": "long"}}, "shape: .*size: .*is not a list of 2"),
        ({"shape": None}, "shape: None is not a map of the fields of Round"),
        ({"parts": {"a": {"size": 1}}}, "parts: Part has other fields: 'name' missing"),
        ({"parts": {3: {"size": 1, "name": ""}}}, "parts: .* is not a map with names"),
        ({"parts": []}, "parts: .* is not a map with names"),
        ({"corner": [1, "x"]}, "corner: .* is not a list of 3"),
        ({"corner": ["x", 1, 0.5]}, "corner: 'x' is not of type int"),
    ],
)
def test_a_value_of_no_member_of_a_union_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        build(Drawn, {**to_plain(DRAWN), **change})


def test_a_literal_that_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="kind"):
        build(Round, {"radius": 1.0, "kind": [1]})


def test_an_int_in_a_tuple_is_a_float_where_one_is_declared():
    built = build(Drawn, {**to_plain(DRAWN), "corner": [1, "x", 2]})
    assert type(built.corner[2]) is float


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(ValueError, match="size") as caught:
        build(Part, {"size": "x" * 10_000, "name": ""})
    assert len(str(caught.value)) < 200


def test_a_type_that_plain_values_cannot_say_is_a_mistake_in_the_code():
    @dataclass
    class Odd:
        value: set

    with pytest.raises(TypeError, match="cannot be read"):
        build(Odd, {"value": []})
