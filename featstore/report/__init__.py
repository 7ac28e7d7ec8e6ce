"""Pictures of what is stored: a page about a cache, and a strip of frames and features of one video."""
