"""Encoders by name, those of other packages too, and recipes that build one in another process.

Another package adds an encoder by an entry point of the group GROUP; docs/encoders.md shows one.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError, no_keyword
from featstore.system.forks import import_attribute, no_fork

if TYPE_CHECKING:
    from featstore.encoders.base import Encoder

ENCODERS = {
    "longva": "featstore.encoders.longva.encoder:LongVAEncoder",
    "llava_onevision": "featstore.encoders.llava_onevision.encoder:LlavaOnevisionEncoder",
    "qwen_vl": "featstore.encoders.qwen_vl.encoder:QwenVLEncoder",
    "toy": "featstore.encoders.toy:ToyEncoder",
    "transformers": "featstore.encoders.transformers_vision.encoder:TransformersEncoder",
}
GROUP = "featstore.encoders"


def get_encoder(name: str, **options: Any) -> Encoder:
    """Return an encoder by its name.

    Args:
        name: a key of ENCODERS, or the name of another package's entry point.
        options: passed on to the encoder's class.

    Raises:
        ValueError: there is no encoder of that name, or it has no such options.
        FeatstoreError: an encoder of another package cannot be imported, or calls its family by another name.
    """
    cls = encoder_class(name)
    takes = inspect.signature(cls)
    known = takes.parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in known.values())
    for unknown in () if takes_all else options.keys() - known.keys():
        said = no_keyword(unknown, known)
        raise ValueError(f"the encoder {name!r} cannot be built so: it takes no {said}")
    try:
        takes.bind(**options)
    except TypeError as exc:
        raise ValueError(f"the encoder {name!r} cannot be built so: {exc}") from None
    encoder: Encoder = cls(**options)
    if name not in ENCODERS and encoder.identity.family != name:
        raise FeatstoreError(
            f"the encoder {name!r} says in its identity that its family is {encoder.identity.family!r}; features are "
            f"kept apart by it, so its package must call both {name!r}"
        )
    return encoder


def check_encoder(encoder: Any) -> Encoder:
    """Return an encoder object; TypeError if it is none, as a name."""
    if not hasattr(encoder, "identity"):
        raise TypeError(
            f"encoder is {encoder!r}, not an encoder object; pass featstore.encoders.get_encoder(NAME, ...), NAME one "
            f"of {', '.join(ENCODERS)}"
        )
    found: Encoder = encoder
    return found


def encoder_class(name: str) -> Any:
    """Return the class of an encoder by its name; raise as `get_encoder` if it cannot be imported."""
    if name not in ENCODERS:
        return _import_added(name)
    module, _, attribute = ENCODERS[name].partition(":")
    return import_attribute(module, attribute)


def _import_added(name: str) -> Any:
    """Return the class of another package's encoder."""
    added: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        added.setdefault(point.name, []).append(point)
    found = {point.value for point in added.get(name, ())}
    if not found:
        names = ", ".join([*ENCODERS, *sorted(added.keys() - ENCODERS.keys())])
        raise ValueError(f"no encoder is called {name!r}; there are {names}")
    if len(found) > 1:
        raise ValueError(
            f"several packages have an encoder {name!r}: {', '.join(sorted(found))}; uninstall all but one"
        )
    try:
        with no_fork():
            return added[name][0].load()
    except (ImportError, AttributeError) as exc:
        raise FeatstoreError(
            f"the encoder {name!r}, which is {min(found)}, cannot be imported ({exc}); install what it needs, or "
            "another version of its package"
        ) from exc


@dataclass(frozen=True)
class EncoderRecipe:
    """How to build an encoder in another process.

    Attributes:
        name: as for `get_encoder`.
        options: arguments of the encoder's class, plain values.
        batch_frames: number of frames encoded at once, in place of the encoder's own.
    """

    name: str
    options: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    batch_frames: int | None = None

    def build(self) -> Encoder:
        """Return the encoder."""
        encoder = get_encoder(self.name, **self.options)
        if self.batch_frames is not None:
            encoder.batch_frames = self.batch_frames
        return encoder

    def __str__(self) -> str:
        """Return a name for messages: `longva on cuda:1`."""
        device = self.options.get("device")
        return f"{self.name} on {device}" if device else self.name
