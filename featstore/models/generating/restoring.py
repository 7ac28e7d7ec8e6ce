"""The configs of a model, put back as they were after each answer."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def configs_restored(model: Any) -> Iterator[None]:
    """Put the configs of `model` back as they were, however the block ends: all later answers depend on them."""
    held = [vars(config) for config in (model.config, model.generation_config)]
    before = copy.deepcopy(held)
    try:
        yield
    finally:
        for now, then in zip(held, before, strict=True):
            if now != then:
                now.clear()
                now.update(then)
