"""Keys and values that grow in place: transformers copies all of them, a gigabyte, for each further token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import is_inference_mode_enabled
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    import torch

_ROOM = 256  # rows that are made at a time; 14 MB of a 7B model


def growing_cache() -> DynamicCache:
    """Return an empty cache."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a layer, the first rows of tensors with room for more.

    What `update` returned before is overwritten only after a `crop`.
    """

    _rooms: tuple[Any, Any] = (None, None)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append rows; return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, self.keys = _append(self._rooms[0], self.keys, key_states)
        values, self.values = _append(self._rooms[1], self.values, value_states)
        self._rooms = keys, values
        return self.keys, self.values


def _append(room: Any, held: Any, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a tensor that has room, by default the given one, and its first rows: those held and the new ones."""
    length = held.shape[-2] if held.numel() else 0
    total = length + new.shape[-2]
    if not _has_room(room, held, total):
        batch, heads, _, width = new.shape
        room = new.new_empty((batch, heads, total + _ROOM, width))
        if length:
            room[:, :, :length] = held
    room[:, :, length:total] = new
    return room, room[:, :, :total]


def _has_room(room: Any, held: Any, total: int) -> bool:
    return (
        room is not None
        and held.data_ptr() == room.data_ptr()  # and not what transformers put in its place
        and len(held) == len(room)
        and total <= room.shape[-2]
        and (is_inference_mode_enabled() or not room.is_inference())
    )
