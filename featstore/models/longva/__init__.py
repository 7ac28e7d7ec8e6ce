"""LongVA's language side, on stored features."""
