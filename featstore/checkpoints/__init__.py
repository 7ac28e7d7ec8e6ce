"""Checkpoints of any family: their files, fields and tensors."""
