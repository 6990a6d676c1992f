"""Frozen nouns that travel between rooms. No I/O, no clock, nothing of ours imported."""
