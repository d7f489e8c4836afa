"""A small world and a small model that knows it to a known degree."""
