"""featstore as other programs see it, a folder or file a program."""
