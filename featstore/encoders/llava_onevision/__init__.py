"""LLaVA-OneVision's vision side: SigLIP tower, projector, pooling, and one newline token a video."""
