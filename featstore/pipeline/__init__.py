"""From video files to stored features: plan, decode, encode, quantize, hand to the writer."""
