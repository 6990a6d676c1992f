"""Bytes in, nouns out: readers without clock, network or side effects, bounded by the input's size."""
