"""Features as files of other programs."""
