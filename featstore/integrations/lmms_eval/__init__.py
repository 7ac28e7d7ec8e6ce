"""featstore inside lmms-eval: models that answer from stored features, found through an entry point.

lmms-eval loads every entry point of its group, whatever model is asked for: so this file loads nothing that is heavy.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featstore.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterator

# Name on lmms-eval's command line -> the class that model.py makes.
MODELS = {"longva_cached": "LongVACached", "featstore_video": "FeatstoreVideo"}


def manifests() -> list[Any]:
    """Return what lmms-eval is to know of the models here; it calls this through the group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    home = "featstore.integrations.lmms_eval.model"
    return [
        ModelManifest(model_id=name, simple_class_path=f"{home}.{cls}")
        for name, cls in MODELS.items()
    ]


@contextmanager
def importing_lmms_eval() -> Iterator[None]:
    """Raise MissingExtra, which says how to install lmms-eval, if what the block imports cannot be."""
    try:
        yield
    except ImportError as exc:
        raise MissingExtra(
            f"lmms-eval cannot be loaded ({exc}); pip install 'featstore[lmms-eval]'"
        ) from exc
