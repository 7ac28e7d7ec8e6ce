"""An encoder that runs anywhere: numpy only, no checkpoint."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from featstore.geometry import Geometry
from featstore.preprocessing import ShortestEdgeCrop, normalization_table
from featstore.spec import EncoderIdentity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ToyEncoder:
    """Averages a few patches of each frame and mixes them with fixed random weights, in numpy only.

    A real encoder's shape without its cost: for tests, for trying featstore out, and to see what an encoder must offer.
    Its features are the same bytes on any machine, and in any batch.
    """

    def __init__(
        self, *, grid: int = 2, hidden_dim: int = 8, size: int = 28, seed: int = 0
    ) -> None:
        """Draw the weights.

        Args:
            grid: patches along one side of a frame, which becomes `grid * grid` tokens.
            hidden_dim: width of the features.
            size: height and width of the frames in pixels.
            seed: seed of the weights.
        """
        import numpy as np

        self._mix = np.random.default_rng(seed).normal(size=(3, hidden_dim)).astype(np.float32)
        self._grid = grid
        self.preprocessing = ShortestEdgeCrop(shortest_edge=size, crop_height=size, crop_width=size)
        self._table = normalization_table(self.preprocessing)
        self.origin = "toy"
        self.names: dict[str, str] = {}
        self.batch_frames = 32
        self.identity = EncoderIdentity(
            family="toy",
            weights=hashlib.sha256(self._mix.tobytes()).hexdigest(),
            dtype="fp32",
            geometry=Geometry(
                tokens_per_unit=grid * grid, hidden_dim=hidden_dim, grid=(grid, grid)
            ),
        )

    def __repr__(self) -> str:
        """Return weights and geometry."""
        geometry = self.identity.geometry
        return (
            f"<featstore.encoders.ToyEncoder: weights {self.identity.weights[:8]}, "
            f"{geometry.tokens_per_unit} x {geometry.hidden_dim} a frame>"
        )

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features (B, grid * grid, hidden_dim) float32 of `frames` (B, H, W, 3) uint8."""
        import numpy as np

        count, height, width, _ = frames.shape
        pixels = self._table[frames, np.arange(3)]  # (B, H, W, 3) float32
        side = self._grid
        patches = pixels.reshape(count, side, height // side, side, width // side, 3)
        means = patches.mean(axis=(2, 4), dtype=np.float32).reshape(count, side * side, 3)
        # (B, T, 3) -> (B, T, D); a matrix product would round as the local BLAS does.
        features: NDArray[np.float32] = (means[..., None] * self._mix).sum(axis=-2)
        return features
