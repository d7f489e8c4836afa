"""Checkpoints on disk: index, reader, layout, deltas, side files."""
