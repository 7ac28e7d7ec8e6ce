"""LongVA's vision side."""
