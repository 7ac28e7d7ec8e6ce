"""The targets of tools/drill.py fuzz under hypothesis: each parser raises its own errors and nothing else."""

from __future__ import annotations

import pytest
from drills.fuzz.targets import TARGETS, Target
from hypothesis import given
from hypothesis import strategies as st
from quick import examples

pytestmark = pytest.mark.fuzz

by_name = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@by_name
def test_golden_bytes_are_read(target: Target):
    for seed in target.seeds():
        target.run(seed)


@by_name
@examples(60)
@given(data=st.data())
def test_edited_golden_bytes_are_read_or_refused(target: Target, data: st.DataObject):
    edited = bytearray(data.draw(st.sampled_from(target.seeds())))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(edited)))
        edited[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    target.run(bytes(edited))


@by_name
@examples(60)
@given(garbage=st.binary(max_size=200))
def test_garbage_is_refused(target: Target, garbage: bytes):
    target.run(garbage)
