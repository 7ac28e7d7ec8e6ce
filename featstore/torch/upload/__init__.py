"""How bytes reach a GPU."""
