"""Frames to features: encoders in threads and processes."""
