"""Video models of transformers that take a video's features in place of its pixels."""
