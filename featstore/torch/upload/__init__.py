"""Ways for bytes to reach a GPU."""
