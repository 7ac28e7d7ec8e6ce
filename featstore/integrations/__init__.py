"""featstore inside other programs: a folder for each program, and what they share."""
