import errno
import inspect
import pickle
import re

import pytest

from featstore import errors
from featstore.errors import FeatstoreError


def drawn_tree() -> dict[str, tuple[str, set[str]]]:
    """Read the drawing in errors.py: class -> (class above it, builtins beside it)."""
    tree: dict[str, tuple[str, set[str]]] = {}
    above = {0: "FeatstoreError"}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([│ ]*)[├└]── (\w+)\s*(?:also (\w+))?", line)
        if found:
            depth = len(found[1]) // 4 + 1
            above[depth] = found[2]
            tree[found[2]] = (above[depth - 1], {found[3]} - {None})
    return tree


def real_tree() -> dict[str, tuple[str, set[str]]]:
    classes = inspect.getmembers(errors, inspect.isclass)
    return {
        name: (cls.__bases__[0].__name__, {base.__name__ for base in cls.__bases__[1:]})
        for name, cls in classes
        if cls is not FeatstoreError
    }


ERRORS = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, FeatstoreError)
]


def test_the_tree_in_the_docstring_is_the_real_one():
    assert drawn_tree() == real_tree()


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_reads_as_its_message(error):
    """KeyError would quote it, OSError would show a number or nothing."""
    message = "video 'a' is not stored"
    assert error(message).found == message
    assert str(error(message)) == (f"{message}; {error.remedy}" if error.remedy else message)


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_survives_the_way_between_processes(error):
    there = pickle.loads(pickle.dumps(error("it failed")))
    assert type(there) is error
    assert (there.found, there.remedy) == ("it failed", error.remedy)


def test_a_remedy_is_printed_once_also_after_the_way_between_processes():
    error = errors.RecordError("it is damaged", remedy="fetch it again")
    there = pickle.loads(pickle.dumps(error))
    told = errors.retold("RecordError", str(error))
    assert str(error) == str(there) == str(told) == "it is damaged; fetch it again"
    assert str(errors.RecordError("it is damaged")) == (
        "it is damaged; run featstore check --repair, then ingest the video again"
    )


def test_a_system_error_keeps_the_number_a_caller_may_look_for():
    assert errors.StoreFull("no room").errno == errno.ENOSPC
    assert errors.StoreNotFound("no store").errno == errno.ENOENT
    assert errors.DatasetNotFound("no dataset").errno == errno.ENOENT


def test_a_video_error_names_the_file_also_after_the_way_between_processes():
    there = pickle.loads(pickle.dumps(errors.VideoError("cannot be decoded", path="a.mp4")))
    assert (str(there), there.path) == ("cannot be decoded", "a.mp4")
