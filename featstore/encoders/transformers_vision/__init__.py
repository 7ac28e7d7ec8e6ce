"""Any frozen vision model of transformers as an encoder: its layers' tokens, pooled or not, of frames or of clips."""
