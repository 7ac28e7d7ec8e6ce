"""Names of formats and of files, for the command line, which loads nothing heavy to list them."""

from __future__ import annotations

FEATURE_FILES = ("safetensors", "npz", "npy", "pt")  # a file a video, written and read
EXPORTED = (*FEATURE_FILES, "hf")
INDEX = "index.jsonl"  # a line a file: what its record says
SET_FILE = "feature_set.json"  # what all of them are
