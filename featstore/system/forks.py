"""Forks: none in the middle of what a child could not go on with, and each child told what is its parent's.

A fork of this process waits while another thread is inside `no_fork`, for a minute at most: the thread may wait for the
one that forks.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LONGEST_WAIT = 60.0  # seconds

Value = TypeVar("Value")


class Forked(Protocol):
    """Something that is told in a forked child that it is a copy of the parent's."""

    def after_fork(self) -> None:
        """Let go of what is the parent's; called in the child before anything else of it runs."""
        ...


_told: weakref.WeakSet[Forked] = weakref.WeakSet()
_turn = threading.Condition()
_inside = 0  # threads that are inside `no_fork`
_forking = 0  # threads that are about to fork
_mine = threading.local()


def tell_of_forks(thing: Forked) -> None:
    """Have `thing.after_fork()` called in each forked child, for as long as it lives."""
    _told.add(thing)


@contextmanager
def no_fork() -> Iterator[None]:
    """Let no other thread fork this process inside the block; several threads may be inside at once."""
    global _inside
    if _own():
        yield
        return
    with _turn:
        _turn.wait_for(lambda: not _forking)
        _inside += 1
    _mine.inside = 1
    try:
        yield
    finally:
        _mine.inside = 0
        with _turn:
            _inside -= 1
            _turn.notify_all()


def import_attribute(module: str, name: str) -> Any:
    """Return an attribute of a module; no fork copies the lock that the module is imported under."""
    with no_fork():
        return getattr(import_module(module), name)


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package that imports what is in it at first use, then keeps it.

    Args:
        package: the package's name.
        homes: of each name the module that has it, and after a colon what it is called there if that is another name;
            of a folder of the package, the folder itself.
    """

    def find(name: str) -> Any:
        module, _, original = homes.get(name, "").partition(":")
        if not module:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if module == f"{package}.{name}":
            with no_fork():
                return import_module(module)
        value = import_attribute(module, original or name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return [*homes, *(name for name in vars(sys.modules[package]) if name.startswith("__"))]

    return find, list_names


class cached_property(Generic[Value]):
    """functools' without its lock: until Python 3.12 that is one for all instances, and a fork copies it locked.

    Threads may compute a value at once; all get the one that was first.
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        """Decorate the method `compute`."""
        self._compute = compute
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[Value]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...
    def __get__(self, instance: object, owner: type) -> cached_property[Value] | Value:
        """Return the value, which later accesses find in the instance itself."""
        if instance is None:
            return self
        found: Value = vars(instance).setdefault(self._compute.__name__, self._compute(instance))
        return found


def _own() -> int:
    return getattr(_mine, "inside", 0)


def _wait_for_others() -> None:
    global _forking
    _turn.acquire()  # and kept, so that none begins, until the fork is done
    _forking += 1
    _turn.wait_for(lambda: _inside == _own(), LONGEST_WAIT)


def _let_others_go_on() -> None:
    global _forking
    _forking -= 1
    _turn.notify_all()
    _turn.release()


def _tell() -> None:
    global _turn, _inside, _forking
    _turn, _inside, _forking = threading.Condition(), _own(), 0
    for thing in list(_told):
        thing.after_fork()


os.register_at_fork(
    before=_wait_for_others, after_in_parent=_let_others_go_on, after_in_child=_tell
)
