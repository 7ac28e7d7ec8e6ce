"""A dataset of several sealed files: their indices, the lists of them, where they lie, and how they are read as one."""
