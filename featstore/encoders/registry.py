"""Encoders by name, and recipes that build one in another process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featstore.system.forks import import_attribute

if TYPE_CHECKING:
    from featstore.encoders.base import Encoder

ENCODERS = {
    "longva": "featstore.encoders.longva.encoder:LongVAEncoder",
    "toy": "featstore.encoders.toy:ToyEncoder",
}


def get_encoder(name: str, **options: Any) -> Encoder:
    """Return an encoder by its name.

    Args:
        name: a key of ENCODERS.
        options: passed on to the encoder's class.

    Raises:
        ValueError: there is no encoder of that name.
    """
    try:
        target = ENCODERS[name]
    except KeyError:
        raise ValueError(
            f"no encoder is called {name!r}; there are {', '.join(ENCODERS)}"
        ) from None
    module, _, cls = target.partition(":")
    encoder: Encoder = import_attribute(module, cls)(**options)
    return encoder


@dataclass(frozen=True)
class EncoderRecipe:
    """How to build an encoder in another process.

    Attributes:
        name: a key of ENCODERS.
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
