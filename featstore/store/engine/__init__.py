"""LMDB, as nobody outside the store sees it."""
