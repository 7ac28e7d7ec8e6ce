"""Encoders by name, also those that other packages add."""

from __future__ import annotations

import importlib

import pytest

import featstore
from featstore.encoders.registry import ENCODERS, EncoderRecipe, get_encoder
from featstore.errors import FeatstoreError

MODULE = """
from featstore.encoders.toy import ToyEncoder

class Added(ToyEncoder):
    def __init__(self, *, family="added", **options):
        super().__init__(**options)
        from dataclasses import replace
        self.identity = replace(self.identity, family=family)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Add a package's entry points to the path; the module is `added_encoder`."""
    (tmp_path / "added_encoder.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def add(package: str, **points: str) -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[featstore.encoders]", *lines]))
        importlib.invalidate_caches()

    return add


def test_another_package_adds_an_encoder_by_an_entry_point(install):
    install("one", added="added_encoder:Added")
    encoder = EncoderRecipe("added", {"grid": 3}, batch_frames=5).build()
    assert encoder.identity.geometry.grid == (3, 3)
    assert encoder.batch_frames == 5
    with pytest.raises(ValueError, match=f"there are {', '.join(ENCODERS)}, added"):
        get_encoder("addde")


def test_an_encoder_of_ours_is_never_replaced(install):
    install("one", toy="added_encoder:Added")
    assert get_encoder("toy").identity.family == "toy"


def test_a_family_of_another_name_is_refused(install):
    """Else it could be served features of that family."""
    install("one", added="added_encoder:Added")
    with pytest.raises(FeatstoreError, match=r"its family is 'longva'.*must call both 'added'"):
        get_encoder("added", family="longva")


def test_two_packages_with_one_name_are_refused(install):
    install("one", added="added_encoder:Added")
    install("two", added="elsewhere:Added")
    with pytest.raises(ValueError, match="several packages have an encoder 'added': added_encoder"):
        get_encoder("added")


@pytest.mark.parametrize("value", ["nowhere_at_all:Added", "added_encoder:Missing"])
def test_an_encoder_that_cannot_be_imported_says_so(install, value):
    install("one", added=value)
    with pytest.raises(FeatstoreError, match=r"cannot be imported.*install what it needs"):
        get_encoder("added")


def test_an_option_that_an_encoder_does_not_have_is_a_value_error():
    with pytest.raises(ValueError, match=r"cannot be built so: .*'colour'; it takes grid, hidden_"):
        get_encoder("toy", colour=1)
    with pytest.raises(ValueError, match="did you mean 'grid'"):
        get_encoder("toy", gird=1)


def test_a_name_where_an_encoder_is_expected_is_refused_in_words(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(TypeError, match=r"encoder is 'longva', .*\.get_encoder\(NAME"):
        featstore.ingest(tmp_path, tmp_path / "cache", "demo", encoder="longva")
