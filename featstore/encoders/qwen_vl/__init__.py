"""Qwen-VL's vision side: tower with merger, of pairs of frames."""
