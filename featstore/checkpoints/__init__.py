"""A checkpoint's files: found on disk or on the Hub, read and checked; nothing here knows a model family."""
