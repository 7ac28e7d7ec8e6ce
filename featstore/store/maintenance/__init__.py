"""What is done to a dataset as a whole: check, repair, remove, compact, merge, seal."""
