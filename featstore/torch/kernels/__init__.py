"""Features to stored values and back, on any device."""
