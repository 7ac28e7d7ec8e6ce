"""LongVA's language side, and the model that answers from stored features."""
