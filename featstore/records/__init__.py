"""One video's features as bytes."""
