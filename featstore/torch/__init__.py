"""Features to tensors and back: the only bridge between numpy's world and torch's.

No tensor that leaves this folder shares memory with the store's map: torch has no read-only tensors, and a write there
ends the process.
"""

from featstore.torch.cache import TensorCache
from featstore.torch.convert import to_tensor
from featstore.torch.dataset import FeatureDataset
from featstore.torch.prefetch import prefetch
from featstore.torch.quantize import measure_error, quantize
from featstore.torch.transfer import explain

__all__ = [
    "FeatureDataset",
    "TensorCache",
    "explain",
    "measure_error",
    "prefetch",
    "quantize",
    "to_tensor",
]
