"""LongVA's vision side: CLIP tower, projector and pooling."""
