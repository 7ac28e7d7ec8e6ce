"""Features to tensors and back: the bridge between numpy and torch.

No tensor that leaves this folder shares memory with the store's map: torch has no read-only tensors, and a write to the
map ends the process.
"""

from featstore.torch.conversion import to_tensor
from featstore.torch.feature_dataset import FeatureDataset
from featstore.torch.kernels.quantize import measure_error, quantize
from featstore.torch.prefetching import prefetch
from featstore.torch.tensor_cache import TensorCache
from featstore.torch.upload.transfer import explain

__all__ = [
    "FeatureDataset",
    "TensorCache",
    "explain",
    "measure_error",
    "prefetch",
    "quantize",
    "to_tensor",
]


def __dir__() -> list[str]:
    """Return what this folder exports."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
