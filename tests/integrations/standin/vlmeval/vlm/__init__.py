from .base import BaseModel as BaseModel

# Where a source edit would import LongVA_Cached: while this package is only half there.
from featstore.integrations.vlmevalkit import LongVA_Cached as LongVA_Cached_in_tree  # isort: skip

__all__ = ["BaseModel", "LongVA_Cached_in_tree"]
