"""Datasets elsewhere, in an object store or on a network file system, read through a folder on a local disk."""
