"""Features to disk: the process that owns the write transaction."""
